"""Data sets by name: TFDS prepares them, or they lie in class folders; what a network must know of them.

`train_batches` and `eval_batches` read what is opened here.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import os
from collections.abc import Sequence

import numpy as np

from fracbits_jax import extras

with extras.needed():
  import tensorflow_datasets as tfds

from fracbits_jax import shards, sources
from fracbits_jax.batches import eval_batches, train_batches
from fracbits_jax.contents import Contents
from fracbits_jax.encoded import AS_STORED, Reading
from fracbits_jax.files import reason
from fracbits_jax.images import centre_crop, pixels, random_resized_crop, random_shift

__all__ = [
  'FOLDER',
  'SPECS',
  'Dataset',
  'Reading',
  'Spec',
  'centre_crop',
  'check_name',
  'eval_batches',
  'load',
  'random_resized_crop',
  'random_shift',
  'train_batches',
]

FOLDER = 'folder'  # the name of a data set that is a folder of classes
_MEMORY_BYTES = 512 * 2**20
_READ_AT_ONCE = 1000  # examples of a set that is decoded into memory
_SMALL_IMAGE = 64  # up to this size images are shifted, above it they are cropped at random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What a data set is and how its images are prepared.

  Attributes:
    image_size: height and width that the network sees by default.
    channels: colour channels.
    splits: TFDS splits for training, validation (choices are made on it) and test; `None` for those that
      `sources.choose_splits` chooses.
    shift: largest random shift in training, in pixels each way.
    flip: whether training mirrors images at random.
    resized_crop: whether training takes a random crop of random size and shape (Szegedy et al. 2015), and evaluation
      the centre; images of any size are allowed then.
    embedded: whether it is made on first use, without a download.
  """

  image_size: int
  channels: int
  splits: tuple[str, str, str] | None = None
  shift: int = 0
  flip: bool = False
  resized_crop: bool = False
  embedded: bool = False


_CIFAR_SPLITS = ('train[:45000]', 'train[45000:]', 'test')
_CROPPED = Spec(image_size=224, channels=3, flip=True, resized_crop=True)

SPECS = {
  'digits': Spec(image_size=32, channels=1, splits=('train', 'validation', 'test'), shift=2, embedded=True),
  'glyphs': Spec(image_size=32, channels=3, splits=('train', 'validation', 'test'), shift=2, embedded=True),
  'cifar10': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'cifar100': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'imagenet2012': dataclasses.replace(_CROPPED, splits=('train[10000:]', 'train[:10000]', 'validation')),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """The three splits of a data set as random-access sources, and what a network must know of them."""

  name: str
  spec: Spec
  image_size: int
  class_names: tuple[str, ...]
  train: Sequence
  validation: Sequence
  test: Sequence
  contents: Contents
  notes: tuple[str, ...] = ()  # what a run should say of it, such as files that were left out

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`[H, W, C]` of what the network sees."""
    return (self.image_size, self.image_size, self.spec.channels)

  @property
  def in_memory(self) -> bool:
    """Whether all images are decoded already."""
    return all(isinstance(split, sources.Memory) for split in (self.train, self.validation, self.test))


def check_name(name: str, data_dir: str | None = None) -> Spec:
  """The spec of a data set.

  One that is not in `SPECS` is described by TFDS: images of one fixed square size up to 64 keep it and are shifted by
  up to an eighth of it and mirrored in training, all others are cropped at random to 224 and mirrored. A folder of
  classes has RGB images of any size, treated as the latter.

  Raises:
    ValueError: a name that is unknown to TFDS too, or a set that is not images with one label each.
  """
  if name in SPECS:
    return SPECS[name]
  return _CROPPED if name == FOLDER else _derive(name, _builder(name, data_dir))


def load(
  name: str, *, data_dir: str | None = None, image_size: int | None = None, reading: Reading = AS_STORED
) -> Dataset:
  """Opens a prepared data set or a folder; an embedded one is prepared on first use.

  Where `SPECS` does not fix the splits, `validation` and `test` serve where they exist. If one is missing, the other
  is the test split and a tenth of `train`, at most 10,000 images, becomes validation; with `train` alone a tenth of it
  is held out for each. What is held out is spread evenly over `train` and always the same.

  Args:
    name: a name in `SPECS`, any other image classification set of TFDS, or `folder`.
    data_dir: where TFDS keeps data, `None` for its own default; the folder itself for `folder`.
    image_size: height and width for the network; `None` for the data set's own.
    reading: how image files are read.

  Raises:
    ValueError: unknown name, data that have not been prepared, a folder that is not as `sources.read_folder` wants it.
  """
  spec, notes = check_name(name, data_dir), ()
  if name == FOLDER:
    folder = sources.read_folder(data_dir, reading)
    class_names, splits, notes = folder.classes, folder.splits, folder.notes
    which = {'files': folder.files}
  else:
    class_names, splits, version = _open_prepared(name, spec, data_dir, reading)
    which = {'version': version}
  train, validation, test = (_decoded(split, spec) for split in splits)
  return Dataset(
    name=name,
    spec=spec,
    image_size=spec.image_size if image_size is None else image_size,
    class_names=class_names,
    train=train,
    validation=validation,
    test=test,
    contents=Contents(class_names=class_names, sizes=(len(train), len(validation), len(test)), **which),
    notes=notes,
  )


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """TFDS's builder of a data set that need not be prepared."""
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner where TensorFlow is missing
      return tfds.builder(name, data_dir=data_dir)
  except ImportError as error:
    raise ValueError(
      f'dataset {name!r} needs the Python module {missing_module(error)!r} to be described: install it, or give the '
      f'images as data.dataset={FOLDER}'
    ) from None
  except Exception:  # whatever the code of one of hundreds of sets raises
    if _is_known(name):
      raise _not_prepared(name, data_dir) from None
    raise ValueError(
      f'dataset {name!r} is unknown: choose one of {", ".join(SPECS)}, another image classification set of TFDS by its '
      f'name, or {FOLDER!r} with your own images in data.data_dir'
    ) from None


def _is_known(name: str) -> bool:
  """Whether TFDS has the code of a set, whatever its folder holds."""
  try:
    tfds.builder_cls(name.partition(':')[0])
  except Exception:  # as above
    return False
  return True


def missing_module(error: ImportError) -> str:
  """The name of the module that is missing; TFDS keeps it in the text only."""
  return error.name or str(error).rpartition('No module named ')[2].strip("'") or str(error)


def _derive(name: str, builder: tfds.core.DatasetBuilder) -> Spec:
  features = builder.info.features
  fits = isinstance(features, tfds.features.FeaturesDict) and {'image', 'label'} <= set(features)
  if not fits or not (
    isinstance(features['image'], tfds.features.Image) and isinstance(features['label'], tfds.features.ClassLabel)
  ):
    held = ', '.join(features) if isinstance(features, tfds.features.FeaturesDict) else type(features).__name__
    raise ValueError(
      f'dataset {name!r} is not made of an image and a class label each, it holds {held}: choose an image '
      'classification set'
    )
  height, width, channels = features['image'].shape
  channels = 1 if channels == 1 else 3
  if height is None or height != width or height > _SMALL_IMAGE:
    return dataclasses.replace(_CROPPED, channels=channels)
  return Spec(image_size=height, channels=channels, shift=height // 8, flip=True)


def _open_prepared(
  name: str, spec: Spec, data_dir: str | None, reading: Reading
) -> tuple[tuple[str, ...], Sequence[Sequence], str]:
  """The class names, the splits and the version of a set that TFDS has prepared."""
  if spec.embedded:
    importlib.import_module(f'fracbits_jax.datasets.{name}')
    _prepare(name, data_dir)
  builder = _reader(name, data_dir)
  damage = shards.damage(builder, [split.partition('[')[0] for split in spec.splits or ()])
  if damage:
    raise _damaged(name, data_dir, os.fspath(builder.data_dir), damage)
  try:
    splits = spec.splits or sources.choose_splits(builder.info.splits)
    decoders = {'image': tfds.decode.SkipDecoding()}
    opened = [split and builder.as_data_source(split, decoders=decoders) for split in splits]
  except _NOT_READABLE:
    raise _not_prepared(name, data_dir) from None
  label = builder.info.features['label']
  mend = f'run {_prepare_command(name, data_dir)}, which makes it anew'
  common = dict(mend=mend, name=name, channels=spec.channels, num_classes=label.num_classes, reading=reading)
  named = zip(opened, splits, strict=True)
  splits = (None if source is None else sources.Prepared(source, split=split, **common) for source, split in named)
  return tuple(label.names), sources.complete(*splits), str(builder.version)


def _damaged(name: str, data_dir: str | None, folder: str, damage: str) -> ValueError:
  return ValueError(
    f'{name} in {folder} is damaged, {damage}: run {_prepare_command(name, data_dir)}, which makes it anew'
  )


def _reader(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder(name, data_dir=data_dir, file_format='array_record')
  except PermissionError as error:
    place = error.filename or os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    raise ValueError(f'{name} cannot be read, {place}: {error.strerror}; mend that or give another data_dir') from None
  except Exception:  # what TFDS raises of a dataset_info.json that may be anything
    raise _not_prepared(name, data_dir) from None


# What TFDS raises where data are missing, or are there in a format without random access.
_NOT_READABLE = (
  AssertionError,
  FileNotFoundError,
  KeyError,
  NotImplementedError,
  ValueError,
  tfds.core.DatasetNotFoundError,
)


def _not_prepared(name: str, data_dir: str | None) -> ValueError:
  """What to do where TFDS finds nothing that it can read."""
  folder = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  for broken in shards.with_unreadable_info(folder, name):
    return _damaged(name, data_dir, broken, 'its dataset_info.json cannot be understood')
  first = ''
  if name == 'imagenet2012':
    first = f'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into {folder}/downloads/manual and '
  return ValueError(
    f'{name} has not been prepared in {folder} as array_record files: {first}run '
    f'{_prepare_command(name, data_dir)}, or give class folders with --config.data.dataset={FOLDER}, or try the same '
    'recipe on the embedded digits with --config.data.dataset=digits --config.model.width=0.25'
  )


def _prepare_command(name: str, data_dir: str | None) -> str:
  given = '' if data_dir is None else f' --data_dir={data_dir}'
  return f'python -m fracbits_jax.prepare --dataset={name}{given}'


def _prepare(name: str, data_dir: str | None) -> None:
  """Makes an embedded data set unless it is there."""
  builder = _reader(name, data_dir)
  done = os.path.join(builder.data_dir, 'dataset_info.json')
  if os.path.exists(done):
    return
  tfds.disable_progress_bar()
  try:
    builder.download_and_prepare()
  except (OSError, RuntimeError) as error:  # the latter from the writer of array_record
    # Of several runs that make it at the same time one is the first; its files are the same.
    if not os.path.exists(done):
      full = os.strerror(errno.ENOSPC)
      why = full if full in str(error) else getattr(error, 'strerror', None) or reason(error)
      raise ValueError(f'{name} cannot be written to {builder.data_dir}: {why}') from None


def _decoded(source: Sequence, spec: Spec) -> Sequence:
  """Images of one size that fit into memory are decoded once."""
  if spec.resized_crop or len(source) * spec.image_size**2 * spec.channels > _MEMORY_BYTES:
    return source
  images = np.empty((len(source), spec.image_size, spec.image_size, spec.channels), np.uint8)
  labels = np.empty(len(source), np.int32)
  for start in range(0, len(source), _READ_AT_ONCE):
    indices = range(start, min(start + _READ_AT_ONCE, len(source)))
    for i, example in zip(indices, source.read(indices), strict=True):
      images[i], labels[i] = pixels(example['image']), example['label']
  return sources.Memory(images, labels)
