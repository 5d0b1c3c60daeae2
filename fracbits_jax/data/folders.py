"""Folders of classes as people have them: which of them are splits and classes, what in them is an image.

Nothing is opened here, names and kinds of entries decide. What is neither read nor obviously no data is counted by
`LeftOut`, so that a run can say it.
"""

import collections
import os
import re
import unicodedata
from collections.abc import Iterable

from fracbits_jax.data.encoded import SUFFIXES
from fracbits_jax.system.files import shown

SPLITS = {
  'train': ('train', 'training'),
  'validation': ('val', 'valid', 'validation', 'dev', 'eval', 'evaluation'),
  'test': ('test', 'testing'),
}
# What systems put beside people's files; what begins with a dot, as ._x.jpg and .DS_Store do, is hidden anyway.
_OF_SYSTEMS = frozenset(('__macosx', '@eadir', '$recycle.bin', 'system volume information', 'lost+found'))
_LISTED = 6  # kinds of what was left out, and names of folders, that a line names


class LeftOut:
  """How often what was left out, by kind, with an example each."""

  def __init__(self):
    self._counts: collections.Counter[str] = collections.Counter()
    self._examples: dict[str, str] = {}

  def add(self, kind: str, path: str) -> None:
    """Counts one more of a kind, which is in the singular."""
    self._counts[kind] += 1
    self._examples[kind] = min(path, self._examples.get(kind, path))

  def update(self, other: 'LeftOut') -> None:
    """Adds what another one has counted."""
    self._counts.update(other._counts)
    for kind, path in other._examples.items():
      self._examples[kind] = min(path, self._examples.get(kind, path))

  def described(self, root: str) -> str:
    """All of it in one line, the most frequent first, with paths below `root`; empty where nothing was left out."""
    kinds = sorted(self._counts, key=lambda kind: (-self._counts[kind], kind))
    parts = []
    for kind in kinds[:_LISTED]:
      count, example = self._counts[kind], shown(os.path.relpath(self._examples[kind], root))
      parts.append(f'{count:,} {_plural(kind, count)} ({"" if count == 1 else "such as "}{example})')
    rest = sum(self._counts[kind] for kind in kinds[_LISTED:])
    return ', '.join([*parts, f'{rest:,} of other kinds'] if rest else parts)


def _plural(kind: str, count: int) -> str:
  return kind if count == 1 else re.sub(r'\b(file|folder|image|link)\b', r'\1s', kind, count=1)


def split_folders(root: str, left: LeftOut) -> dict[str, str | None]:
  """The folders of the splits in `root`, by the names in `SPLITS` in any case; `None` where there is none.

  Raises:
    ValueError: two of one kind, no folder for training, or a folder that cannot be listed.
  """
  found: dict[str, list[str]] = {split: [] for split in SPLITS}
  others = []
  for entry in _entries(root):
    kind = _kind(entry)
    if kind == 'image':
      left.add('image outside of class folders', entry.path)
    elif kind == 'broken link':
      left.add(kind, entry.path)
    elif kind == 'folder':
      split = next((split for split, names in SPLITS.items() if entry.name.lower() in names), None)
      others.append(entry.name) if split is None else found[split].append(entry.name)
      if split is None:
        left.add('folder beside the splits', entry.path)
  for split, names in found.items():
    if len(names) > 1:
      raise ValueError(
        f'{shown(root)} has both {" and ".join(map(shown, sorted(names)))}, which are all names of the {split} split: '
        'keep one of them'
      )
  if not found['train']:
    holds = f'; it holds {listed(others)}' if others else ''
    target = os.path.join(root, 'train', '<class>')
    raise ValueError(f'{shown(root)} has no folder train: put the images into {shown(target)}{holds}')
  return {split: os.path.join(root, names[0]) if names else None for split, names in found.items()}


def class_names(folder: str, left: LeftOut) -> tuple[str, ...]:
  """The sorted names of the class folders of a split.

  Raises:
    ValueError: there are none, or the folder cannot be listed.
  """
  names = []
  for entry in _entries(folder):
    kind = _kind(entry)
    if kind == 'image':
      left.add('image outside of class folders', entry.path)
    elif kind == 'broken link':  # of what may have been a class
      left.add(kind, entry.path)
    elif kind == 'folder':
      names.append(entry.name)
  if not names:
    raise ValueError(f'{shown(folder)} has no class folders: put the images of each class into a folder of its name')
  return tuple(sorted(names))


def image_names(folder: str, left: LeftOut) -> list[str]:
  """The images in a class folder and its sub-folders, as sorted paths below it; none where it does not exist.

  An image is a file, or a link to one, with one of the `SUFFIXES` in any case.

  Raises:
    ValueError: a folder that cannot be listed.
  """
  if not os.path.isdir(folder):
    return []
  around = tuple(_identity(path) for path in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))))
  found, ahead = [], [(folder, around)]
  while ahead:
    path, above = ahead.pop()
    here = _identity(path)
    if here in above:  # a link to where it lies itself would never end
      left.add('link to a folder around it', path)
      continue
    entries = _entries(path)
    if not entries and path.lower().endswith(SUFFIXES):
      left.add('empty folder with the name of an image', path)
    for entry in entries:
      kind = _kind(entry)
      if kind == 'image':
        found.append(entry.path)
      elif kind == 'folder':
        ahead.append((entry.path, (*above, here)))
      elif kind:
        left.add(kind, entry.path)
  start = len(folder) + len(os.sep)
  return sorted(path[start:] for path in found)


def _identity(folder: str) -> tuple[int, int]:
  stat = os.stat(folder or os.curdir)
  return stat.st_dev, stat.st_ino


def _kind(entry: os.DirEntry) -> str:
  """Of an entry of a folder: `image`, `folder`, or what `LeftOut` calls it, which is empty for what no one misses."""
  is_image = entry.name.lower().endswith(SUFFIXES)
  if _is_hidden(entry.name):
    return 'hidden file' if is_image else ''
  try:
    if entry.is_file():
      suffix = os.path.splitext(entry.name)[1].lower()
      return 'image' if is_image else f'{shown(suffix)} file' if suffix else 'file without a suffix'
    if entry.is_dir():
      return 'folder'
  except OSError:  # such as a link to itself
    return 'broken link'
  return 'broken link' if entry.is_symlink() else 'special file'


def _entries(folder: str) -> list[os.DirEntry]:
  try:
    with os.scandir(folder) as entries:
      return list(entries)
  except OSError as error:
    raise ValueError(f'{shown(folder)} cannot be listed: {error.strerror}; mend that or remove it') from None


def _is_hidden(name: str) -> bool:
  return name.startswith('.') or name.lower() in _OF_SYSTEMS


def spelling(name: str) -> str:
  """The same for names that differ in upper and lower case, in spaces around them or in Unicode's form only."""
  return unicodedata.normalize('NFC', name).casefold().strip()


def listed(names: Iterable[str]) -> str:
  """Some names, and how many more there are."""
  names = sorted(map(shown, names))
  more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
  return ', '.join(names[:_LISTED]) + more
