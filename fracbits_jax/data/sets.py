"""Data sets by name: those that TFDS has prepared, folders of classes, files of arrays, and texts."""

import dataclasses

import numpy as np

from fracbits_jax.data import arrays, folder_source, prepared, sources, texts
from fracbits_jax.data.contents import Contents
from fracbits_jax.data.dataset import ARRAYS, CROPPED, FOLDER, SPECS, TEXTS, Dataset, Spec
from fracbits_jax.data.encoded import AS_STORED, Reading
from fracbits_jax.data.images import pixels

_MEMORY_BYTES = 512 * 2**20
_READ_AT_ONCE = 1000  # examples of a set that is decoded into memory


def check_name(name: str, data_dir: str | None = None) -> Spec:
  """The spec of a data set.

  One that is not in `SPECS` is described by TFDS: images of one fixed square size up to 64 keep it and are shifted by
  up to an eighth of it and mirrored in training, all others are cropped at random to 224 and mirrored. A folder of
  classes has RGB images of any size, treated as the latter; a file of arrays is taken as it is.

  Raises:
    ValueError: a name that is unknown to TFDS too, or a set that is not images with one label each.
  """
  if name in SPECS:
    return SPECS[name]
  if name == ARRAYS or name in TEXTS:
    return Spec(image_size=0, channels=0)  # its own say
  return CROPPED if name == FOLDER else prepared.derive(name, prepared.builder_of(name, data_dir))


def load(
  name: str,
  *,
  data_dir: str | None = None,
  image_size: int | None = None,
  random_crops: bool | None = None,
  reading: Reading = AS_STORED,
  tokens: str = 'characters',
  context: int = 128,
  noise: float = 0.0,
) -> Dataset:
  """Opens a prepared data set or a folder; an embedded one is prepared on first use.

  Where `SPECS` does not fix the splits, `validation` and `test` serve where they exist. If one is missing, the other
  is the test split and a tenth of `train`, at most 10,000 images, becomes validation; with `train` alone a tenth of it
  is held out for each. What is held out is spread evenly over `train` and always the same.

  Args:
    name: a name in `SPECS`, any other image classification set of TFDS, `folder`, `arrays`, `text` or `phrases`.
    data_dir: where TFDS keeps data, `None` for its own default; the folder itself for `folder`, the file for `arrays`
      and for `text`.
    image_size: height and width for the network; `None` for the data set's own.
    random_crops: whether training takes a random crop of random size, and evaluation the centre; otherwise images are
      taken whole, resized to a square and shifted in training by up to an eighth. `None` for the data set's own way.
    reading: how image files are read.
    tokens: of a text, `characters` or `bytes`.
    context: tokens of a text that the network sees at once.
    noise: standard deviation of the noise on images, as a part of 255; the targets are the images before it.

  Raises:
    ValueError: unknown name, data that have not been prepared, a folder that is not as `folder_source.read_folder`
      wants it, a file that is not as `arrays.read` or `texts.load` wants it.
  """
  if name == ARRAYS or name in TEXTS:
    _check_as_it_is(name, image_size, random_crops)
    if name == ARRAYS:
      return _with_noise(_of_arrays(data_dir), noise)
    return _with_noise(texts.load(name, data_dir, tokens=tokens, context=context), noise)
  spec = check_name(name, data_dir)
  train: sources.Examples
  validation: sources.Examples
  test: sources.Examples
  notes: tuple[str, ...] = ()
  if name == FOLDER:
    folder = folder_source.read_folder(data_dir, reading)
    class_names, (train, validation, test), notes = folder.classes, folder.splits, folder.notes
    which = {'files': folder.files}
  else:
    class_names, splits, version = prepared.open_prepared(name, spec, data_dir, reading)
    train, validation, test = (_decoded(split, spec) for split in splits)
    which = {'version': version}
  size = spec.image_size if image_size is None else image_size
  dataset = Dataset(
    name=name,
    spec=spec if random_crops is None else _with_crops(spec, random_crops, size),
    image_size=size,
    class_names=class_names,
    train=train,
    validation=validation,
    test=test,
    contents=Contents(class_names=class_names, sizes=(len(train), len(validation), len(test)), **which),
    notes=notes,
  )
  return _with_noise(dataset, noise)


def _with_noise(dataset: Dataset, noise: float) -> Dataset:
  """The data set with noise on its images, which before it are the targets; `ValueError` where that cannot be."""
  if not noise:
    return dataset
  given = f'data.noise={noise:g} is for images that a network gives back without it, and data.dataset={dataset.name}'
  if dataset.tokens is not None:
    raise ValueError(f'{given} is text: leave it at 0')
  if dataset.target_shape is not None:
    raise ValueError(f'{given} has targets of its own: leave it at 0, or take the targets out of the file')
  return dataclasses.replace(dataset, noise=noise, target_shape=dataset.image_shape)


def _with_crops(spec: Spec, random_crops: bool, size: int) -> Spec:
  """A spec with its training images cropped at random, or whole and shifted."""
  if random_crops == spec.resized_crop:
    return spec
  return dataclasses.replace(spec, resized_crop=random_crops, shift=0 if random_crops else size // 8)


def _check_as_it_is(which: str, image_size: int | None, random_crops: bool | None) -> None:
  """Raises `ValueError` for what is to be done to images that are none, or are taken as they are."""
  for name, value in (('image_size', image_size), ('random_crops', random_crops or None)):
    if value is not None:
      raise ValueError(f'data.{name}={value} is not for {which}, which are taken as they are: leave it at None')


def _of_arrays(path: str | None) -> Dataset:
  """The data set that a file of arrays holds."""
  found = arrays.read(path)
  train, validation, test = found.splits
  sizes = (len(train), len(validation), len(test))
  return Dataset(
    name=ARRAYS,
    spec=Spec(image_size=max(found.shape[:2]), channels=found.shape[2]),
    image_size=max(found.shape[:2]),
    class_names=found.class_names,
    train=train,
    validation=validation,
    test=test,
    contents=Contents(class_names=found.class_names, sizes=sizes, files=found.digest),
    shape=found.shape,
    target_shape=found.target_shape,
  )


def _decoded(source: sources.StoredExamples, spec: Spec) -> sources.Examples:
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
