"""What a source of images is: random access to `{'image': ..., 'label': int32}`, some with a float32 `target`.

That of a text, `Windows`, gives `tokens` and a `mask`.

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


class Windows:
  """A text of tokens in memory, as windows of one length.

  The next token is told of each but the last, and so the windows, one behind the other, overlap by a token.

  Args:
    tokens: integers `[n]`, at least 2.
    context: T, tokens that a network sees at once.
  """

  def __init__(self, tokens: np.ndarray, context: int):
    self.tokens, self.context = tokens, context

  def __len__(self) -> int:
    return -(-(len(self.tokens) - 1) // self.context)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The window at its place: `tokens` int32 `[T + 1]`, and `mask` float32 `[T]`, 0 where the text has ended."""
    start, length = index * self.context, self.context + 1
    found = self.tokens[start : start + length]
    tokens, mask = np.zeros(length, np.int32), np.zeros(self.context, np.float32)
    tokens[: len(found)], mask[: len(found) - 1] = found, 1
    return {'tokens': tokens, 'mask': mask}

  def near(self, index: int, rng: np.random.Generator) -> np.ndarray:
    """A whole window, int32 `[T + 1]`, that begins anywhere between the place of one and that of the next."""
    start = index * self.context + int(rng.integers(self.context))
    start %= max(len(self.tokens) - self.context, 1)
    return self.tokens[start : start + self.context + 1].astype(np.int32)


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
