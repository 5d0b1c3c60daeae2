"""Which splits of a data set train, validate and test, and what is held out where one is missing."""

from collections.abc import Collection
from typing import TypeVar

import numpy as np

from fracbits_jax.data.sources import Examples, Part

_HELD_OUT = 10_000  # images at most that are held out of training for a split

_Split = TypeVar('_Split', bound=Examples)


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


def complete(
  train: _Split, validation: _Split | None, test: _Split | None
) -> tuple[_Split | Part[_Split], _Split | Part[_Split], _Split | Part[_Split]]:
  """The three splits; those that are `None` are held out of `train`."""
  if validation is not None and test is not None:
    return train, validation, test
  missing = (validation is None) + (test is None)
  stays, *held = (Part(train, indices) for indices in hold_out(len(train), missing))
  return stays, held.pop(0) if validation is None else validation, held.pop(0) if test is None else test
