"""The one loop that every phase runs."""

import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from fracbits_jax.train import hosts, preemption
from fracbits_jax.train.placement import limit_steps_ahead, to_devices
from fracbits_jax.train.step import TrainState

Metrics = dict[str, jax.Array]


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
  step, unreported = start, list(pending)
  saved_step, saved_at = start, time.monotonic()

  def save_now() -> None:
    nonlocal saved_step, saved_at
    if step > saved_step:
      save(step, state, unreported)
    saved_step, saved_at = step, time.monotonic()

  def time_is_up() -> bool:
    up = time.monotonic() - saved_at >= save_seconds
    return not unreported and hosts.agree(up) if hosts.several() else up

  try:
    while True:
      if step == steps == 0:
        saved_step = -1  # without a step, the start is what there is to be saved
      # Else it is in the state that was saved.
      if finish is not None and step == steps and (start < step or not steps):
        saved_step, earlier = step, saved_step  # without it, the last step is not to be saved
        state, saved_step = finish(state), earlier
      if unreported and (step % report_steps == 0 or step == steps):
        report(step, state, unreported)
        unreported = []
      on_step = save_steps is not None and step % save_steps == 0
      if step == steps or on_step or time_is_up():
        save_now()
      if step == steps:
        return state
      preemption.check()
      batch = to_devices(_next(batches))
      state, metrics = train_step(state, batch)
      step += 1
      unreported.append(metrics)
      limit_steps_ahead(unreported)
  except preemption.Preempted:
    save_now()
    raise


def _next(batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  try:
    return next(batches)
  except ChildProcessError:
    preemption.check()  # who asks to stop may have asked the worker processes as well
    raise
