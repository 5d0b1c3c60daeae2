"""The files of a set that TFDS has prepared: whether they are all there, whole, and hold what they should.

A set is a folder with `dataset_info.json`, which tells how many records each array_record file holds. The records carry
checksums, so that a file that was changed is found when it is read.
"""

import json
import os
import re
from collections.abc import Callable, Sequence

from fracbits_jax.system import extras
from fracbits_jax.system.files import reason

with extras.needed('train'):
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordReader

_AT_ONCE = 256  # records that are read together
_INFO = 'dataset_info.json'


def damage(
  builder: tfds.core.DatasetBuilder,
  splits: Sequence[str] = (),
  *,
  thorough: bool = False,
  show: Callable[[int, int], None] | None = None,
) -> str:
  """What is wrong with a prepared set, the first thing that is found; empty if it is whole or not there at all.

  Args:
    builder: of the set.
    splits: those that it has to have; any others are looked at as well.
    thorough: reads every record, where otherwise each file is opened and its number of records compared.
    show: is told how many records have been read, of how many.
  """
  folder = os.fspath(builder.data_dir)
  if '://' in folder or not os.path.exists(folder):  # what is not local has no files to open
    return ''
  if not os.path.isfile(os.path.join(folder, _INFO)):
    return f'it has no {_INFO}'
  missing = [name for name in splits if name not in builder.info.splits]
  if missing or not builder.info.splits:
    return f'its {_INFO} lacks the {"splits" if not missing else f"split {missing[0]!r}"}'
  files = [
    file for info in builder.info.splits.values() for file in zip(info.filepaths, info.shard_lengths, strict=True)
  ]
  done, total = 0, sum(length for _, length in files)
  for path, length in files:
    wrong = _of_file(os.fspath(path), length, thorough)
    if wrong:
      return f'{os.path.basename(path)} {wrong}'
    done += length
    if show is not None:
      show(done, total)
  return ''


def _of_file(path: str, length: int, thorough: bool) -> str:
  """What is wrong with an array_record file that is to hold `length` records."""
  if not os.path.exists(path):
    return 'is missing'
  try:
    reader = ArrayRecordReader(path)
    try:
      found = reader.num_records()
      if found != length:
        return f'holds {found:,} records instead of {length:,}'
      for start in range(0, found if thorough else 0, _AT_ONCE):
        reader.read(start, min(start + _AT_ONCE, found))
    finally:
      reader.close()
  except Exception as error:  # whatever the reader says of a file that may be anything
    return f'is cut or changed ({reason(error)})'
  return ''


def with_unreadable_info(root: str, name: str) -> list[str]:
  """The folders of a set in TFDS's folder `root` whose `dataset_info.json` cannot be understood, which stops TFDS."""
  found = []
  for folder, _, _ in os.walk(os.path.join(root, *name.partition(':')[0].split('/'))):
    path, version = os.path.join(folder, _INFO), os.path.basename(folder)
    if re.fullmatch(r'\d+\.\d+\.\d+', version) and os.path.lexists(path) and _version(path) != version:
      found.append(folder)
  return found


def _version(path: str) -> str | None:
  try:
    with open(path, 'rb') as file:
      found = json.loads(file.read())
  except PermissionError:
    raise
  except (OSError, ValueError, RecursionError):
    return None
  return found.get('version') if isinstance(found, dict) else None
