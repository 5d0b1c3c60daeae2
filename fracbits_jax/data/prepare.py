"""Prepares a TFDS data set for training: downloads it, or takes what was put into its folder, and writes array_record.

What is there already is read through, and prepared anew where it is damaged.
"""

import contextlib
import errno
import importlib
import os
import shutil
from collections.abc import Callable
from typing import Any

from fracbits_jax.system import extras

with extras.needed():
  import tensorflow_datasets as tfds

from fracbits_jax.data import sets, shards
from fracbits_jax.data.dataset import ARRAYS, FOLDER, TEXTS
from fracbits_jax.data.datasets import without_tensorflow
from fracbits_jax.data.prepared import missing_module

_ASIDE = '.incomplete_damaged'  # behind the name of a folder that is being replaced
_OPEN_FILES = 4096  # TFDS shuffles through a thousand files at once


def prepare(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  show: Callable[[int, int], None] | None = None,
) -> str:
  """Prepares a data set unless it is there already and whole; says where it is and what its splits hold.

  What is damaged is kept beside it until the new one is there. TensorFlow is used where it is installed, and needed by
  few sets: see `datasets/without_tensorflow.py`.

  Args:
    name: of the set.
    data_dir: where TFDS keeps data, `None` for its own default.
    manual_dir: where files lie that cannot be downloaded.
    show: is told how many records of what is there have been read, of how many.

  Raises:
    ValueError: one sentence on what is unknown, missing, or could not be done.
  """
  if name in (FOLDER, ARRAYS, *TEXTS):
    what = {FOLDER: 'class folders', ARRAYS: 'files of arrays'}.get(name, 'texts')
    raise ValueError(f'{what} are read as they are: nothing has to be prepared')
  root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  with _Aside() as aside:
    try:
      for folder in shards.with_unreadable_info(root, name):
        aside.put(folder, 'its dataset_info.json cannot be understood')
    except OSError as error:
      raise ValueError(
        f'{name} in {root} cannot be read: {error.strerror}; mend that or give another --data_dir'
      ) from None
    spec = sets.check_name(name, data_dir)
    if spec.embedded:
      importlib.import_module(f'fracbits_jax.data.datasets.{name}')
    _raise_open_files()
    without = contextlib.nullcontext() if without_tensorflow.is_installed() else without_tensorflow.stand_in()
    builder = None
    try:
      with without:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        needed = [split.partition('[')[0] for split in spec.splits or ()]
        damage = shards.damage(builder, needed, thorough=True, show=show)
        if damage:
          aside.put(os.fspath(builder.data_dir), damage)
          builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except Exception as error:  # whatever the code of one of hundreds of sets raises
      raise ValueError(_sentence(name, builder, error) + aside.still()) from error
    damage = shards.damage(builder, needed)
    if damage:  # such as on a disk that has become full
      shutil.rmtree(builder.data_dir)
      raise ValueError(f'{name} could not be written whole to {builder.data_dir}, {damage}: make room and try again')
  splits = ', '.join(f'{split} {info.num_examples:,}' for split, info in builder.info.splits.items())
  classes = builder.info.features['label'].num_classes
  return f'{name} {builder.version} is in {builder.data_dir}: {splits} images; {classes} classes{aside.told()}'


class _Aside:
  """Folders that are out of the way until what they held is there anew; put back if that fails."""

  def __init__(self):
    self._damages: dict[str, str] = {}

  def put(self, folder: str, damage: str) -> None:
    """Puts a folder aside, under a name that TFDS passes over."""
    shutil.rmtree(folder + _ASIDE, ignore_errors=True)
    os.rename(folder, folder + _ASIDE)
    self._damages[folder] = damage

  def still(self) -> str:
    """The end of a sentence on a failure: what was damaged has been left as it was."""
    return ''.join(f'; {folder} stays damaged, {damage}' for folder, damage in self._damages.items())

  def told(self) -> str:
    """The end of a sentence on a success."""
    return ''.join(f'; it was damaged, {damage}, and has been made anew' for damage in self._damages.values())

  def __enter__(self) -> '_Aside':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    for folder in self._damages:
      if kind is None:
        shutil.rmtree(folder + _ASIDE, ignore_errors=True)
      elif os.path.isdir(folder + _ASIDE):
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(folder + _ASIDE, folder)


def _raise_open_files() -> None:
  try:
    import resource
  except ImportError:  # not on Windows
    return
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _sentence(name: str, builder: Any, error: Exception) -> str:
  """What went wrong and what helps, for what TFDS and its builders raise; without a builder `None` is in its place."""

  chain: list[BaseException] = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
    chain.append(cause)
  text = ' '.join(str(error).split())
  modules = {type(e).__module__.split('.')[0] for e in chain}
  numbers = {e.errno for e in chain if isinstance(e, OSError)}
  instructions = ' '.join((getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) or '').split()).rstrip('.')
  if builder is None:
    return f'{name} cannot be opened: {text}; give another --data_dir if that holds it in another format'
  full = ('Not enough disk space', os.strerror(errno.ENOSPC))
  if errno.ENOSPC in numbers or any(sign in str(e) for sign in full for e in chain):
    return f'there is no space left for {name} in {builder.data_dir}: make room or give another --data_dir'
  if {'requests', 'urllib', 'urllib3', 'http', 'socket'} & modules:
    return f'{name} cannot be downloaded: {text[:200]}; check the network connection and run the same command again'
  if instructions and isinstance(error, AssertionError | FileNotFoundError):
    return (
      f'{name} has no automatic download: {instructions} (manual_dir is what --manual_dir names, by default '
      f'downloads/manual in the --data_dir)'
    )
  if isinstance(error, ImportError) or (isinstance(error, AttributeError) and "'tensorflow'" in text):
    module = missing_module(error) if isinstance(error, ImportError) else 'tensorflow'
    return (
      f'the preparation of {name} needs the Python module {module!r}: install it for that, or give the images as class '
      f'folders with --config.data.dataset={FOLDER}'
    )
  if isinstance(error, OSError):
    return f'{name} cannot be written to {builder.data_dir}: {error.strerror or text}; give another --data_dir'
  return f'{name} could not be prepared, {type(error).__name__}: {text[:300]}'
