"""What a task measures of a network on a split of the data."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from fracbits_jax import tasks
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.data.dataset import Dataset
from fracbits_jax.train import preemption
from fracbits_jax.train.placement import host_shard, limit_steps_ahead, to_devices, unreplicate
from fracbits_jax.train.step import make_eval_step, over_devices


class Evaluator:
  """Metrics and loss of networks of one definition on the splits of a data set."""

  def __init__(
    self,
    model: nn.Module,
    dataset: Dataset,
    batch_size: int,
    workers: int = 0,
    task: tasks.Task = tasks.CLASSIFICATION,
  ):
    self._step = over_devices(make_eval_step(model, task))
    self._dataset, self._batch_size, self._workers, self._task = dataset, batch_size, workers, task

  def __call__(self, variables: Any, split: str) -> dict[str, float]:
    """The metrics of the task and the `loss` of replicated variables, each example counted once."""
    batches = eval_batches(self._dataset, split, batch_size=self._batch_size, workers=self._workers, shard=host_shard())
    sums = []
    for batch in _received(batches):
      preemption.check()
      sums.append(self._step(variables, to_devices(batch)))
      limit_steps_ahead(sums)
    total = jax.tree.map(lambda *x: float(np.sum([unreplicate(y) for y in x])), *sums)
    means = {name: value / total['count'] for name, value in total.items() if name != 'count'}
    return {**self._task.values(means), 'loss': means['loss']}


def _received(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
  """The batches; where the run is asked to stop, one that does not come is not waited for."""
  while True:
    with preemption.waiting():
      batch = next(batches, None)
    if batch is None:
      return
    yield batch
