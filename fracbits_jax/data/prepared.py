"""Data sets that TFDS has prepared: described, opened for random access, and what to do where they are missing."""

import contextlib
import dataclasses
import errno
import importlib
import io
import os

from fracbits_jax.system import extras

with extras.needed():
  import tensorflow_datasets as tfds

from fracbits_jax.data import shards, splits
from fracbits_jax.data.dataset import CROPPED, FOLDER, SPECS, Spec
from fracbits_jax.data.encoded import Reading
from fracbits_jax.data.prepared_source import Prepared
from fracbits_jax.data.sources import Splits
from fracbits_jax.system.files import reason

_SMALL_IMAGE = 64  # up to this size images are shifted, above it they are cropped at random


def builder_of(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
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


def derive(name: str, builder: tfds.core.DatasetBuilder) -> Spec:
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
    return dataclasses.replace(CROPPED, channels=channels)
  return Spec(image_size=height, channels=channels, shift=height // 8, flip=True)


def open_prepared(name: str, spec: Spec, data_dir: str | None, reading: Reading) -> tuple[tuple[str, ...], Splits, str]:
  """The class names, the splits and the version of a set that TFDS has prepared; an embedded one is made first."""
  if spec.embedded:
    importlib.import_module(f'fracbits_jax.data.datasets.{name}')
    make_embedded(name, data_dir)
  builder = reader_of(name, data_dir)
  damage = shards.damage(builder, [split.partition('[')[0] for split in spec.splits or ()])
  if damage:
    raise _damaged(name, data_dir, os.fspath(builder.data_dir), damage)
  try:
    train, validation, test = spec.splits or splits.choose_splits(builder.info.splits)
    decoders = {'image': tfds.decode.SkipDecoding()}
    opened = {split: builder.as_data_source(split, decoders=decoders) for split in (train, validation, test) if split}
  except _NOT_READABLE:
    raise _not_prepared(name, data_dir) from None
  label = builder.info.features['label']
  mend = f'run {command(name, data_dir)}, which makes it anew'
  common = dict(mend=mend, name=name, channels=spec.channels, num_classes=label.num_classes, reading=reading)
  made = {split: Prepared(source, split=split, **common) for split, source in opened.items()}
  chosen = (None if split is None else made[split] for split in (validation, test))
  return tuple(label.names), splits.complete(made[train], *chosen), str(builder.version)


def _damaged(name: str, data_dir: str | None, folder: str, damage: str) -> ValueError:
  return ValueError(f'{name} in {folder} is damaged, {damage}: run {command(name, data_dir)}, which makes it anew')


def reader_of(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
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
    f'{command(name, data_dir)}, or give class folders with --config.data.dataset={FOLDER}, or try the same '
    'recipe on the embedded digits with --config.data.dataset=digits --config.model.width=0.25'
  )


def command(name: str, data_dir: str | None) -> str:
  given = '' if data_dir is None else f' --data_dir={data_dir}'
  return f'python -m fracbits_jax.prepare --dataset={name}{given}'


def make_embedded(name: str, data_dir: str | None) -> None:
  """Makes an embedded data set unless it is there."""
  builder = reader_of(name, data_dir)
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
