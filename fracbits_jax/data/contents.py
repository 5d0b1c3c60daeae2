"""What the data of a run are, kept with it: a run goes on with the classes and images that it began with.

Names, numbers and a few images are compared, not places: a folder may be moved, and a set be prepared anew.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from fracbits_jax.system.files import write_whole

_FILE = 'data.json'
_SPLITS = ('train', 'validation', 'test')
_LISTED = 4  # classes that a sentence names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
  """What tells one data set from another.

  Attributes:
    class_names: in the order of their labels.
    sizes: images for training, validation and test.
    version: of a set that TFDS prepares.
    files: a digest of the images in a folder of classes, see `folder_source.Folder.digest`.
  """

  class_names: tuple[str, ...]
  sizes: tuple[int, int, int]
  version: str | None = None
  files: str | None = None

  def same_network(self, other: 'Contents') -> bool:
    """Whether a network for the one has a logit for each class of the other."""
    return len(self.class_names) == len(other.class_names)


def from_json(found: Any) -> Contents:
  """The contents that `dataclasses.asdict` has made JSON of; raises `ValueError` for anything else."""
  try:
    names, sizes = tuple(found['class_names']), tuple(found['sizes'])
    version, files = found['version'], found['files']
  except (TypeError, KeyError):
    raise ValueError('the contents of no data') from None
  texts = (*names, *(text for text in (version, files) if text is not None))
  if not all(isinstance(text, str) for text in texts) or [type(size) for size in sizes] != [int] * 3:
    raise ValueError('the contents of no data')
  return Contents(class_names=names, sizes=sizes, version=version, files=files)


def read(workdir: str | os.PathLike) -> Contents | None:
  """The contents that a run's folder keeps; `None` for a run that has not begun or was begun by an older version.

  Raises:
    ValueError: one sentence, if the file is broken.
  """
  path = pathlib.Path(workdir) / _FILE
  if not path.exists():
    return None
  try:
    return from_json(json.loads(path.read_text()))
  except (OSError, ValueError, RecursionError):
    raise ValueError(
      f'{path} is broken: choose another --workdir, or remove the file if the data are still the same'
    ) from None


def keep(workdir: str | os.PathLike, contents: Contents) -> None:
  """Writes the contents into a run's folder, unless they are there."""
  if read(workdir) != contents:
    write_whole(pathlib.Path(workdir) / _FILE, json.dumps(dataclasses.asdict(contents), indent=2) + '\n')


def check_continued(workdir: str | os.PathLike, now: Contents, *, accept_changes: bool) -> str:
  """Compares the data with those that a run has been trained on; what has changed, for a line, or nothing.

  Raises:
    ValueError: one sentence on what was, what is, and how to go on, unless changes are accepted.
  """
  was = read(workdir)
  if was is None:
    return ''
  changed = differences(was, now)
  if changed and not (accept_changes and was.same_network(now)):
    anyway = ', or give --accept_changes to go on with its state' if was.same_network(now) else ''
    raise ValueError(
      f'{workdir} holds a run on other data: {changed}; put the old data back, choose another --workdir{anyway}'
    )
  return changed


def check_started(given: str, was: Contents | None, now: Contents, *, accept_changes: bool) -> str:
  """As `check_continued` for the weights that `init_from` has `given`, and the data that they were trained on."""
  if was is None:
    return ''
  changed = differences(was, now)
  if changed and not accept_changes:
    why = ', so that it may have seen what is to be validated or tested' if was.class_names == now.class_names else ''
    raise ValueError(
      f'init_from={given} was trained on other data: {changed}{why}; give weights of a run on these data, or '
      '--accept_changes to start from them all the same'
    )
  return changed


def differences(was: Contents, now: Contents) -> str:
  """What is different, one part after the other; empty where nothing is."""
  parts = []
  if was.class_names != now.class_names:
    parts.append(_of_classes(was.class_names, now.class_names))
  for split, before, after in zip(_SPLITS, was.sizes, now.sizes, strict=True):
    if before != after:
      parts.append(f'{split} had {before:,} images and has {after:,}')
  if was.version != now.version:
    parts.append(f'the version was {was.version} and is {now.version}')
  if not parts and was.files != now.files:
    parts.append('there are as many images as before, but others or under other names')
  return ', '.join(parts)


def _of_classes(was: tuple[str, ...], now: tuple[str, ...]) -> str:
  if len(was) != len(now):
    gone, new = (_some(sorted(set(a) - set(b))) for a, b in ((was, now), (now, was)))
    how = '; '.join(part for part in (new and f'new: {new}', gone and f'gone: {gone}') if part)
    return f'there were {len(was):,} classes and are {len(now):,} ({how or "others"})'
  changed = [(i, a, b) for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b]
  listed = ', '.join(f'class {i} was {a!a} and is {b!a}' for i, a, b in itertools.islice(changed, _LISTED))
  return listed + (f' and {len(changed) - _LISTED:,} more are others' if len(changed) > _LISTED else '')


def _some(names: list[str]) -> str:
  more = f' and {len(names) - _LISTED:,} more' if len(names) > _LISTED else ''
  return ', '.join(f'{name!a}' for name in names[:_LISTED]) + more
