"""What a source of images is: random access to `{'image': ..., 'label': int32}`, some with a float32 `target`.

Sources can be pickled, so that worker processes read them too.
"""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Examples(Protocol):
  """Examples by their index."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class StoredExamples(Examples, Protocol):
  """Examples that are read when they are asked for."""

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several examples at once."""


class FolderExamples(Examples, Protocol):
  """Images of a folder."""

  def path(self, index: int) -> str:
    """Where an image lies."""

  def label(self, index: int) -> int:
    """The label of an image."""


Splits = tuple[StoredExamples, StoredExamples, StoredExamples]  # to train, to validate and to test

_Source = TypeVar('_Source', bound=Examples, covariant=True)


class Memory:
  """Decoded images in memory."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, targets: np.ndarray | None = None):
    self._images, self._labels, self._targets = images, labels, targets

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = {'image': self._images[index], 'label': self._labels[index]}
    return example if self._targets is None else {**example, 'target': self._targets[index]}


class Part(Generic[_Source]):
  """Some examples of a source."""

  def __init__(self, source: _Source, indices: np.ndarray):
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[int(self._indices[index])]

  def path(self: 'Part[FolderExamples]', index: int) -> str:
    """Where an image of a folder lies."""
    return self._source.path(int(self._indices[index]))

  def label(self: 'Part[FolderExamples]', index: int) -> int:
    """The label of an image of a folder."""
    return self._source.label(int(self._indices[index]))

  def read(self: 'Part[StoredExamples]', indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several examples at once."""
    return self._source.read([int(i) for i in self._indices[indices]])
