"""Training: batches on the devices, evaluation, and the one loop that every phase runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import data, hosts, preemption
from fracbits_jax.step import Batch, TrainState, make_eval_step, over_all_devices, over_devices

Metrics = dict[str, jax.Array]

_STEPS_AHEAD = 2  # that may wait for the devices, each with its batch in their memory


def replicate(tree: Any, devices: int | None = None) -> Any:
  """The tree with a leading axis of one copy for each device (by default those of all hosts), as `pmap` takes it.

  It lies on the devices as what a step returns does; otherwise the second step would be compiled anew.
  """
  copies = devices or jax.local_device_count()
  copied = jax.tree.map(lambda x: np.stack([np.asarray(x)] * copies), tree)
  return jax.tree.map(jnp.asarray, copied) if devices else _place(copied)


def unreplicate(tree: Any) -> Any:
  """One copy of a replicated tree, in host memory; what is a number there already stays one."""
  one = lambda x: np.asarray(np.asarray(x.addressable_data(0)).reshape(-1, *x.shape[1:])[0])
  return jax.tree.map(lambda x: one(x) if isinstance(x, jax.Array) else np.asarray(x), tree)


def shard(batch: dict[str, np.ndarray], devices: int | None = None) -> dict[str, np.ndarray]:
  """A batch `[N, ...]` as `[devices, N / devices, ...]`, over all local devices by default."""
  parts = devices or jax.local_device_count()
  return {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in batch.items()}


def to_devices(batch: dict[str, np.ndarray]) -> Batch:
  """A batch on the devices, each host's share on its own; the transfer goes on while the devices work."""
  return _place(shard(batch))


def _place(tree: Any) -> Any:
  """The tree on the devices of all hosts, along its leading axis, of which each host gives the part of its own."""
  sharding = over_all_devices()
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def _limit_steps_ahead(results: list[Metrics]) -> None:
  if len(results) > _STEPS_AHEAD:
    jax.block_until_ready(results[-1 - _STEPS_AHEAD])


def host_shard() -> tuple[int, int]:
  """Which share of a batch this process reads, `(index, count)`."""
  return jax.process_index(), jax.process_count()


class Evaluator:
  """Accuracy and loss of networks of one definition on the splits of a data set."""

  def __init__(self, model: nn.Module, dataset: data.Dataset, batch_size: int, workers: int = 0):
    self._step = over_devices(make_eval_step(model))
    self._dataset, self._batch_size, self._workers = dataset, batch_size, workers

  def __call__(self, variables: Any, split: str) -> dict[str, float]:
    """`accuracy` (0 to 1) and `loss` of replicated variables, each example counted once."""
    batches = data.eval_batches(
      self._dataset, split, batch_size=self._batch_size, workers=self._workers, shard=host_shard()
    )
    sums = []
    for batch in _received(batches):
      preemption.check()
      sums.append(self._step(variables, to_devices(batch)))
      _limit_steps_ahead(sums)
    total = jax.tree.map(lambda *x: float(np.sum([unreplicate(y) for y in x])), *sums)
    return {'accuracy': total['right'] / total['count'], 'loss': total['loss'] / total['count']}


def run_phase(
  state: TrainState,
  train_step: Callable,
  batches: Iterator[dict[str, np.ndarray]],
  *,
  start: int,
  steps: int,
  pending: Sequence[Metrics] = (),
  report_steps: int,
  report: Callable[[int, TrainState, list[Metrics]], None],
  save: Callable[[int, TrainState, list[Metrics]], None],
  save_steps: int | None = None,
  save_seconds: float,
  finish: Callable[[TrainState], TrainState] | None = None,
) -> TrainState:
  """The one loop: runs steps `start` to `steps` of a phase on a replicated state.

  Args:
    state: replicated state after `start` steps; its buffers are given away.
    train_step: a mapped `train_step(state, batch) -> (state, metrics)`.
    batches: yields this process's share of each batch. While the devices work on a step, the batch of the next one is
      read and goes to them; none is read ahead of `save`, so that a position saved there is that of the steps taken.
    start: steps already done.
    steps: length of the phase.
    pending: the metrics of the last of these steps, where they were not reported yet.
    report_steps: steps between two reports.
    report: called with the step, the state and the metrics of the steps since the last report.
    save: called with the step, the state and the metrics that are not reported yet.
    save_steps: steps between two calls of `save`, or `None`.
    save_seconds: least time after which `save` is called in any case; several hosts look at the primary's clock, and
      only after a report. It is also called after the last step, and when the run is asked to stop.
    finish: changes the state after the last step, before that is reported and saved.

  Returns:
    The replicated state after `steps` steps.

  Raises:
    Preempted: the run was asked to stop; the state is saved.
  """
  step, pending = start, list(pending)
  saved_step, saved_at = start, time.monotonic()

  def save_now() -> None:
    nonlocal saved_step, saved_at
    if step > saved_step:
      save(step, state, pending)
    saved_step, saved_at = step, time.monotonic()

  def time_is_up() -> bool:
    up = time.monotonic() - saved_at >= save_seconds
    return not pending and hosts.agree(up) if hosts.several() else up

  try:
    while True:
      if finish is not None and start < step == steps:  # else it is in the state that was saved
        saved_step, earlier = step, saved_step  # without it, the last step is not to be saved
        state, saved_step = finish(state), earlier
      if pending and (step % report_steps == 0 or step == steps):
        report(step, state, pending)
        pending = []
      on_step = save_steps is not None and step % save_steps == 0
      if step == steps or on_step or time_is_up():
        save_now()
      if step == steps:
        return state
      preemption.check()
      batch = to_devices(_next(batches))
      state, metrics = train_step(state, batch)
      step += 1
      pending.append(metrics)
      _limit_steps_ahead(pending)
  except preemption.Preempted:
    save_now()
    raise


def _received(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
  """The batches; where the run is asked to stop, one that does not come is not waited for."""
  while True:
    with preemption.waiting():
      batch = next(batches, None)
    if batch is None:
      return
    yield batch


def _next(batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  try:
    return next(batches)
  except ChildProcessError:
    preemption.check()  # who asks to stop may have asked the worker processes as well
    raise
