"""The sources of a folder of classes, and what is wrong with one that cannot be opened."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fracbits_jax.data import folders
from fracbits_jax.data.encoded import AS_STORED, Encoded, Reading
from fracbits_jax.data.sources import FolderExamples
from fracbits_jax.data.splits import choose_splits, complete
from fracbits_jax.system.files import shown

_SAMPLED, _SAMPLED_BYTES = 1000, 2**14  # files that take part in a digest, and how much of each


class Folder:
  """The images of class folders, `root/<class>/<image>`, read from disk when they are asked for.

  The names of the files are kept as one string of bytes: a million Python strings would take a worker seconds to
  receive.

  Args:
    root: the folder.
    classes: names of the classes, in the order of their labels; some may have no folder.
    reading: how the files are read.
    left: counts what is no image.

  Attributes:
    counts: images of each class.

  Raises:
    ValueError: no image in it.
  """

  def __init__(
    self,
    root: str,
    classes: Sequence[str],
    reading: Reading = AS_STORED,
    left: folders.LeftOut | None = None,
  ):
    self._root, self._classes, self._channels, self._reading = root, tuple(classes), 3, reading
    left = folders.LeftOut() if left is None else left
    per_class = [folders.image_names(os.path.join(root, name), left) for name in classes]
    self.counts = tuple(len(names) for names in per_class)
    self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), self.counts)
    names = [os.fsencode(name) for names in per_class for name in names]
    self._names, self._ends = b''.join(names), np.cumsum([0, *map(len, names)])
    if not names:
      raise ValueError(f'{shown(root)} holds no image: put JPEG, PNG or other image files into its class folders')

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self.path(index)
    try:
      with open(path, 'rb') as file:
        data = file.read()
    except OSError as error:
      raise ValueError(
        f'{shown(path)} cannot be read: {error.strerror}; restore it, or start anew without it'
      ) from None
    return {'image': Encoded(data, self._channels, shown(path), self._reading), 'label': self._labels[index]}

  def path(self, index: int) -> str:
    """Where an image lies."""
    name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
    return os.path.join(self._root, self._classes[self._labels[index]], name)

  def label(self, index: int) -> int:
    """The label of an image."""
    return int(self._labels[index])

  def digest(self) -> str:
    """SHA-256 of the names of all files, and of the beginnings of some.

    Names alone would not tell two classes with the files 1.jpg, 2.jpg, ... that changed their names, so the first image
    of each class takes part, or of every so many where there are more than a thousand.
    """
    found = hashlib.sha256(self._names)
    found.update(self._ends.astype('<i8').tobytes())
    found.update(self._labels.astype('<i4').tobytes())
    firsts = np.unique(self._labels, return_index=True)[1]
    for index in firsts[:: -(-len(firsts) // _SAMPLED)]:
      with contextlib.suppress(OSError), open(self.path(index), 'rb') as file:
        found.update(file.read(_SAMPLED_BYTES))
    return found.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedFolder:
  """A folder of classes.

  Attributes:
    classes: names in the order of their labels.
    splits: train, validation and test.
    files: a digest of the files, as `Folder.digest`.
    notes: sentences on what was left out and what looks like a mistake.
  """

  classes: tuple[str, ...]
  splits: tuple[FolderExamples, FolderExamples, FolderExamples]
  files: str
  notes: tuple[str, ...]


def open_folder(root: str | None) -> tuple[tuple[str, ...], tuple[FolderExamples, FolderExamples, FolderExamples]]:
  """The class names and the three splits of a folder; see `read_folder`."""
  opened = read_folder(root)
  return opened.classes, opened.splits


def read_folder(root: str | None, reading: Reading = AS_STORED) -> OpenedFolder:
  """Lists a folder of classes.

  It holds `train/<class>/` and folders for validation and test beside `train` with the same classes, by any of the
  names in `folders.SPLITS`; what is missing is held out as `splits.choose_splits` says. A class that another split
  lacks is allowed, one that `train` lacks is not. Images in a class folder and in folders below it count, see
  `folders.image_names`.

  Raises:
    ValueError: what is missing or too much, by its name.
  """
  if root is None:
    raise ValueError("dataset 'folder' needs its place: give the folder that holds train/<class>/ as data.data_dir")
  root = os.path.expanduser(root)
  if not os.path.isdir(root):
    raise ValueError(
      f'the folder {shown(root)} does not exist: give the one that holds train/<class>/ as data.data_dir'
    )
  left = folders.LeftOut()
  found = folders.split_folders(root, left)
  train = found['train']
  assert train is not None  # or it would have been refused
  classes = folders.class_names(train, left)
  sources = {'train': Folder(train, classes, reading, left)}
  _check_classes(train, classes, sources['train'].counts)
  for split in ('validation', 'test'):
    folder = found[split]
    if folder is not None:
      _check_known(folder, folders.class_names(folder, left), train, classes)
      sources[split] = Folder(folder, classes, reading, left)
  digests = [f'{split} {source.digest()}' for split, source in sources.items()]
  _, *others = choose_splits(sources)
  validation, test = (None if name is None else sources[name] for name in others)
  return OpenedFolder(
    classes=classes,
    splits=complete(sources['train'], validation, test),
    files=hashlib.sha256('\n'.join(digests).encode()).hexdigest(),
    notes=tuple(_notes(root, classes, left)),
  )


def _check_classes(train: str, classes: Sequence[str], counts: Sequence[int]) -> None:
  """Raises `ValueError` for a class that has no image to train with."""
  empty = [name for name, count in zip(classes, counts, strict=True) if not count]
  if empty:
    folder, left = os.path.join(train, empty[0]), folders.LeftOut()
    folders.image_names(folder, left)
    holds = left.described(folder)
    raise ValueError(f'{shown(folder)} holds no image{holds and ", but "}{holds}: add JPEG or PNG files or remove it')


def _check_known(folder: str, names: Sequence[str], train: str, classes: Sequence[str]) -> None:
  """Raises `ValueError` for a class that is not among those to train with."""
  unknown = sorted(set(names) - set(classes))
  if unknown:
    alike = next((name for name in classes if folders.spelling(name) == folders.spelling(unknown[0])), None)
    remedy = 'remove it or add it' if alike is None else f'there it is {alike!a}, so rename one of them'
    raise ValueError(f'{shown(os.path.join(folder, unknown[0]))} is a class that {shown(train)} lacks: {remedy}')


def _notes(root: str, classes: Sequence[str], left: folders.LeftOut) -> Iterator[str]:
  described = left.described(root)
  if described:
    yield f'left out of {shown(root)}: {described}'
  spelled: dict[str, str] = {}
  for name in classes:
    alike = spelled.setdefault(folders.spelling(name), name)
    if alike != name and len(name) > 1:
      yield f'the classes {alike!a} and {name!a} differ in their spelling alone, and are taken as two'
      return
