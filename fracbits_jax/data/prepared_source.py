"""The source of a split that TFDS has prepared."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fracbits_jax.data.encoded import AS_STORED, Encoded, Reading
from fracbits_jax.system.files import reason


class Prepared:
  """A split that TFDS has prepared; its images are left encoded.

  Args:
    source: TFDS's own source.
    name: of the set, for errors.
    split: its name, for errors.
    channels: of the images.
    num_classes: labels go from 0 to one less.
    reading: how the images are read.
    mend: what an error about a record that cannot be read tells to do.
  """

  def __init__(
    self,
    source: Any,
    *,
    name: str,
    split: str,
    channels: int,
    num_classes: int,
    reading: Reading = AS_STORED,
    mend: str = 'prepare it anew',
  ):
    self._source, self._name, self._split = source, name, split
    self._channels, self._num_classes, self._reading, self._mend = channels, num_classes, reading, mend

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      example = self._source[index]
    except Exception as error:  # whatever the reader says of a file that may be anything
      raise ValueError(
        f'{self._name}, split {self._split!r}, example {index} cannot be read ({reason(error)}): {self._mend}'
      ) from None
    return self._checked(index, example)

  def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Several examples at once, which spares small images most of the time that reading takes."""
    try:
      examples = self._source.__getitems__(indices)
    except Exception:  # one by one, the one that cannot be read is named
      return [self[index] for index in indices]
    return [self._checked(*found) for found in zip(indices, examples, strict=True)]

  def _checked(self, index: int, example: dict[str, Any]) -> dict[str, Any]:
    name, label = f'{self._name}, split {self._split!r}, example {index}', int(example['label'])
    if not 0 <= label < self._num_classes:
      raise ValueError(
        f'{name} has the label {label}: labels go from 0 to {self._num_classes - 1}, and an unlabelled split cannot be '
        'used'
      )
    return {'image': Encoded(example['image'], self._channels, name, self._reading), 'label': np.int32(label)}
