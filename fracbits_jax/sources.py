"""Where images come from: random-access sources of `{'image': ..., 'label': int32}` over TFDS, folders and memory.

Sources can be pickled, so that worker processes read them too.
"""

import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fracbits_jax.images import Encoded

_HELD_OUT = 10_000  # images at most that are held out of training for a split
_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
_FOLDERS = {'train': ('train',), 'validation': ('val', 'validation'), 'test': ('test',)}


class Memory:
  """Decoded images in memory."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._images[index], 'label': self._labels[index]}


class Prepared:
  """A split that TFDS has prepared; its images are left encoded."""

  def __init__(self, source: Sequence, *, name: str, split: str, channels: int, num_classes: int):
    self._source, self._name, self._split = source, name, split
    self._channels, self._num_classes = channels, num_classes

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._checked(index, self._source[index])

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several examples at once, which spares small images most of the time that reading takes."""
    return [self._checked(*found) for found in zip(indices, self._source.__getitems__(indices), strict=True)]

  def _checked(self, index: int, example: dict[str, Any]) -> dict[str, Any]:
    name, label = f'{self._name}, split {self._split!r}, example {index}', int(example['label'])
    if not 0 <= label < self._num_classes:
      raise ValueError(
        f'{name} has the label {label}: labels go from 0 to {self._num_classes - 1}, and an unlabelled split cannot be '
        'used'
      )
    return {'image': Encoded(example['image'], self._channels, name), 'label': np.int32(label)}


class Folder:
  """The images of class folders, `root/<class>/<image>`, read from disk when they are asked for.

  The names of the files are kept as one string of bytes: a million Python strings would take a worker seconds to
  receive.

  Args:
    root: the folder.
    classes: names of the classes, in the order of their labels; some may have no folder.

  Raises:
    ValueError: no image in it.
  """

  def __init__(self, root: str, classes: Sequence[str]):
    self._root, self._classes, self._channels = root, tuple(classes), 3
    per_class = [_image_names(os.path.join(root, name)) for name in classes]
    self.counts = tuple(len(names) for names in per_class)
    self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), self.counts)
    names = [os.fsencode(name) for names in per_class for name in names]
    self._names, self._ends = b''.join(names), np.cumsum([0, *map(len, names)])
    if not names:
      raise ValueError(f'{root} holds no image: put {", ".join(_SUFFIXES)} files into its class folders')

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    label = self._labels[index]
    name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
    path = os.path.join(self._root, self._classes[label], name)
    try:
      with open(path, 'rb') as file:
        data = file.read()
    except OSError as error:
      raise ValueError(f'{path} cannot be read: {error.strerror}; restore it, or start anew without it') from None
    return {'image': Encoded(data, self._channels, path), 'label': label}


class Part:
  """Some examples of a source."""

  def __init__(self, source: Sequence, indices: np.ndarray):
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[int(self._indices[index])]

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several examples at once."""
    return self._source.read([int(i) for i in self._indices[indices]])


def choose_splits(found: Collection[str]) -> tuple[str, str | None, str | None]:
  """Which splits train, validate and test; `None` for one that is held out of `train`.

  `validation` and `test` where they exist. If there is only one of them it is the test split.
  """
  if {'validation', 'test'} <= set(found):
    return 'train', 'validation', 'test'
  return 'train', None, next((name for name in ('validation', 'test') if name in found), None)


def hold_out(length: int, parts: int) -> list[np.ndarray]:
  """Sorted indices of what stays for training, and of `parts` splits of a tenth each, at most 10,000 images.

  What is held out is spread evenly over the whole, so that it is the same in every run and has every class of a source
  that is sorted by class in proportion.
  """
  each = max(1, min(length // 10, _HELD_OUT))
  picked = (2 * np.arange(parts * each) + 1) * length // (2 * parts * each)
  return [np.setdiff1d(np.arange(length), picked), *(picked[i::parts] for i in range(parts))]


def complete(train: Sequence, validation: Sequence | None, test: Sequence | None) -> tuple[Sequence, ...]:
  """The three splits; those that are `None` are held out of `train`."""
  missing = [validation, test].count(None)
  if not missing:
    return train, validation, test
  stays, *held = (Part(train, indices) for indices in hold_out(len(train), missing))
  return stays, *(held.pop(0) if given is None else given for given in (validation, test))


def open_folder(root: str | None) -> tuple[tuple[str, ...], tuple[Sequence, Sequence, Sequence]]:
  """The class names and the three splits of a folder.

  It holds `train/<class>/<image>`, and `val` or `validation`, and `test` beside `train` with the same classes; what is
  missing is held out as `choose_splits` says. A class that another split lacks is allowed, one that `train` lacks is
  not. Images directly in the class folders count, with the suffixes .jpg, .jpeg, .png, .bmp and .webp in any case.

  Raises:
    ValueError: what is missing or too much, by its name.
  """
  if root is None:
    raise ValueError("dataset 'folder' needs its place: give the folder that holds train/<class>/ as data.data_dir")
  root = os.path.expanduser(root)
  if not os.path.isdir(root):
    raise ValueError(f'the folder {root} does not exist: give the one that holds train/<class>/ as data.data_dir')
  folders = {split: _split_folder(root, names) for split, names in _FOLDERS.items()}
  train = folders['train']
  if train is None:
    raise ValueError(f'{root} has no folder train: put the images into {os.path.join(root, "train", "<class>")}')
  classes = _class_names(train)
  sources = {'train': Folder(train, classes)}
  for name, count in zip(classes, sources['train'].counts, strict=True):
    if not count:
      raise ValueError(f'{os.path.join(train, name)} holds no image: add {", ".join(_SUFFIXES)} files or remove it')
  for split in ('validation', 'test'):
    if folders[split] is not None:
      unknown = sorted(set(_class_names(folders[split])) - set(classes))
      if unknown:
        raise ValueError(
          f'{os.path.join(folders[split], unknown[0])} is a class that {train} lacks: remove it or add it'
        )
      sources[split] = Folder(folders[split], classes)
  return classes, complete(*(name and sources[name] for name in choose_splits(sources)))


def _split_folder(root: str, names: Sequence[str]) -> str | None:
  found = [path for path in (os.path.join(root, name) for name in names) if os.path.isdir(path)]
  if len(found) > 1:
    raise ValueError(f'{root} has both {" and ".join(os.path.basename(p) for p in found)}: keep one of them')
  return found[0] if found else None


def _class_names(folder: str) -> tuple[str, ...]:
  with os.scandir(folder) as entries:
    names = tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.')))
  if not names:
    raise ValueError(f'{folder} has no class folders: put the images of each class into a folder of its name')
  return names


def _image_names(folder: str) -> list[str]:
  if not os.path.isdir(folder):
    return []
  with os.scandir(folder) as entries:
    return sorted(e.name for e in entries if e.name.lower().endswith(_SUFFIXES) and not e.name.startswith('.'))
