"""Batches of a text: windows of its tokens, near their places in training and one behind the other in evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.data.sources import Windows


@dataclasses.dataclass(frozen=True)
class Cut:
  """Cuts the windows of a batch out of a text, each near its place."""

  source: Windows

  def __call__(self, drawn: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    rng, found = np.random.Generator(np.random.Philox()), []
    for index, state in drawn:
      rng.bit_generator.state = state
      found.append(self.source.near(index, rng))
    return {'tokens': np.stack(found)}


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """The batches of a text in evaluation, by their index; arguments as for `batches.eval_batches`."""

  source: Windows
  batch_size: int
  shard: tuple[int, int]

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    first, (shard, count) = index * self.batch_size, self.shard
    n, context = self.batch_size // count, self.source.context
    batch = {'tokens': np.zeros((n, context + 1), np.int32), 'mask': np.zeros((n, context), np.float32)}
    for i, at in enumerate(range(first + shard, min(first + self.batch_size, len(self.source)), count)):
      for name, value in self.source[at].items():
        batch[name][i] = value
    return batch
