"""The input pipeline: TFDS prepares, Grain reads and shuffles, OpenCV decodes and crops.

Batches are dicts of NumPy arrays: `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`, and in evaluation `mask` float32
`[N]`, which is 0 where an example only fills the last batch.
"""

import dataclasses
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds

cv2.setNumThreads(0)  # one image is too small a task to share

_MEMORY_BYTES = 512 * 2**20
_SHORT_SIDE = 256 / 224  # of an image in evaluation, before its centre is cropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What a data set is and how its images are prepared.

  Attributes:
    image_size: height and width that the network sees by default.
    channels: colour channels.
    splits: TFDS splits for training, validation (choices are made on it) and test.
    shift: largest random shift in training, in pixels each way.
    flip: whether training mirrors images at random.
    resized_crop: whether training takes a random crop of random size and shape (Szegedy et al. 2015), and evaluation
      the centre; images of any size are allowed then.
    embedded: whether it is made on first use, without a download.
  """

  image_size: int
  channels: int
  splits: tuple[str, str, str]
  shift: int = 0
  flip: bool = False
  resized_crop: bool = False
  embedded: bool = False


_CIFAR_SPLITS = ('train[:45000]', 'train[45000:]', 'test')

SPECS = {
  'digits': Spec(image_size=32, channels=1, splits=('train', 'validation', 'test'), shift=2, embedded=True),
  'cifar10': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'cifar100': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'imagenet2012': Spec(
    image_size=224, channels=3, splits=('train[10000:]', 'train[:10000]', 'validation'), flip=True, resized_crop=True
  ),
}


class _Memory:
  """Decoded images in memory, as a random-access source."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._images[index], 'label': self._labels[index]}


class _Encoded:
  """A TFDS source whose images are decoded when they are read."""

  def __init__(self, source: Sequence, channels: int):
    self._source, self._channels = source, channels

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._source[index]
    image = _decode(example['image'], self._channels)
    return {'image': image, 'label': np.int32(example['label'])}


def _decode(encoded: bytes, channels: int) -> np.ndarray:
  """An image file's bytes as uint8 `[H, W, channels]`, RGB or grey."""
  flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
  if image is None:
    raise ValueError(f'an image of {len(encoded)} bytes cannot be decoded')
  return image.reshape(*image.shape[:2], channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """The three splits of a data set as random-access sources, and what a network must know of them."""

  name: str
  spec: Spec
  image_size: int
  num_classes: int
  train: Sequence
  validation: Sequence
  test: Sequence

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`[H, W, C]` of what the network sees."""
    return (self.image_size, self.image_size, self.spec.channels)


def check_name(name: str) -> Spec:
  """The spec of a data set; raises `ValueError` for an unknown name."""
  if name not in SPECS:
    raise ValueError(f'dataset {name!r} is unknown: choose one of {", ".join(SPECS)}')
  return SPECS[name]


def load(name: str, *, data_dir: str | None = None, image_size: int | None = None) -> Dataset:
  """Opens a prepared data set; an embedded one is prepared on first use.

  Args:
    name: a name in `SPECS`.
    data_dir: where TFDS keeps data; `None` for its own default.
    image_size: height and width for the network; `None` for the data set's own.

  Raises:
    ValueError: unknown name, or data that has not been prepared.
  """
  spec = check_name(name)
  if spec.embedded:
    importlib.import_module(f'fracbits_jax.datasets.{name}')
  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    if spec.embedded:
      _prepare(builder)
    decoders = {'image': tfds.decode.SkipDecoding()}
    sources = [builder.as_data_source(split, decoders=decoders) for split in spec.splits]
  except _NOT_READABLE:
    raise ValueError(_how_to_prepare(name, data_dir)) from None
  size = spec.image_size if image_size is None else image_size
  opened = [_open(source, spec) for source in sources]
  return Dataset(
    name=name,
    spec=spec,
    image_size=size,
    num_classes=builder.info.features['label'].num_classes,
    **dict(zip(('train', 'validation', 'test'), opened, strict=True)),
  )


# What TFDS raises where data are missing, or are there in a format without random access.
_NOT_READABLE = (
  AssertionError,
  FileNotFoundError,
  KeyError,
  NotImplementedError,
  ValueError,
  tfds.core.DatasetNotFoundError,
)


def _how_to_prepare(name: str, data_dir: str | None) -> str:
  folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  first = ''
  if name == 'imagenet2012':
    first = f'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into {folder}/downloads/manual and '
  given = '' if data_dir is None else f', data_dir={data_dir!r}'
  return (
    f'{name} has not been prepared in {folder} as array_record files: {first}run tfds.builder({name!r}{given}, '
    'file_format="array_record").download_and_prepare(), or try the same recipe on the embedded digits with '
    '--config.data.dataset=digits --config.model.width=0.25'
  )


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
  if os.path.exists(os.path.join(builder.data_dir, 'dataset_info.json')):
    return
  tfds.disable_progress_bar()
  try:
    builder.download_and_prepare()
  except OSError as error:
    raise ValueError(f'{builder.name} cannot be written to {builder.data_dir}: {error.strerror}') from None


def _open(source: Sequence, spec: Spec) -> Sequence:
  """Images of one size that fit into memory are decoded once."""
  encoded = _Encoded(source, spec.channels)
  if spec.resized_crop or len(source) * spec.image_size**2 * spec.channels > _MEMORY_BYTES:
    return encoded
  examples = [encoded[i] for i in range(len(encoded))]
  return _Memory(np.stack([e['image'] for e in examples]), np.asarray([e['label'] for e in examples], np.int32))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  shrinks = image.shape[0] * image.shape[1] > height * width
  resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
  return resized.reshape(height, width, image.shape[2])


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  """A crop of 8% to 100% of the area and of aspect 3/4 to 4/3, resized to `size` (Szegedy et al. 2015)."""
  height, width = image.shape[:2]
  for _ in range(10):
    area = height * width * rng.uniform(0.08, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return _resize(image[top : top + h, left : left + w], size, size)
  return centre_crop(image, size)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
  """The centre `size` x `size` of an image whose short side has been resized to 256/224 of that."""
  height, width = image.shape[:2]
  scale = size * _SHORT_SIDE / min(height, width)
  image = _resize(image, max(size, round(height * scale)), max(size, round(width * scale)))
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]


def random_shift(image: np.ndarray, largest: int, rng: np.random.Generator) -> np.ndarray:
  """The image moved by up to `largest` pixels each way, black where it left."""
  height, width = image.shape[:2]
  padded = np.pad(image, ((largest, largest), (largest, largest), (0, 0)))
  top, left = rng.integers(2 * largest + 1, size=2)
  return padded[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
  spec: Spec
  size: int

  def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    image = element['image']
    if self.spec.resized_crop:
      image = random_resized_crop(image, self.size, rng)
    else:
      image = _resize(image, self.size, self.size)
    if self.spec.shift:
      image = random_shift(image, self.spec.shift, rng)
    if self.spec.flip and rng.integers(2):
      image = image[:, ::-1]
    return {'image': np.ascontiguousarray(image), 'label': element['label']}


def train_batches(dataset: Dataset, *, batch_size: int, seed: int) -> grain.DatasetIterator:
  """Endless training batches, shuffled anew and augmented anew in every epoch.

  An epoch has `len(dataset.train) // batch_size` batches. The iterator's `get_state` and `set_state` give and take
  its position.
  """
  batches = (
    grain.MapDataset.source(dataset.train)
    .seed(seed)
    .shuffle()
    .random_map(_Augment(dataset.spec, dataset.image_size))
    .batch(batch_size, drop_remainder=True)
    .repeat()
  )
  return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(dataset: Dataset, split: str, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  """The batches of a split, each example exactly once; the last batch is filled up and masked."""
  source, size = getattr(dataset, split), dataset.image_size
  for start in range(0, len(source), batch_size):
    examples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
    crop = centre_crop if dataset.spec.resized_crop else lambda image, size: _resize(image, size, size)
    images = np.stack([crop(e['image'], size) for e in examples])
    labels = np.asarray([e['label'] for e in examples], np.int32)
    missing = batch_size - len(examples)
    yield {
      'image': np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
      'label': np.pad(labels, (0, missing)),
      'mask': np.pad(np.ones(len(examples), np.float32), (0, missing)),
    }
