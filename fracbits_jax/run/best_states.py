"""The states of a phase that validated best, kept as long as a run can come back to them."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from fracbits_jax.run.checkpoint import PrimaryCheckpoints, steps

FOLDER = 'best'


def superseded(best: Sequence[int], kept: Sequence[int]) -> set[int]:
  """The best states that nothing can come back to.

  Args:
    best: their steps; each was better than all before it.
    kept: the steps of the phase's checkpoints. Where a run goes on from one of them, its best state is the newest up to
      that step.
  """
  reached = {max((b for b in best if b <= step), default=None) for step in kept}
  return set(best) - reached - {max(best, default=None)}


class BestStates:
  """The best states of a phase in the folder `checkpoints/best`; all hosts have to use it in the same order.

  Args:
    workdir: the run's folder.
    phase: the phase.
    start: where it goes on. States that are newer are of an earlier attempt, and are dropped.
    say: is told what is set aside.
  """

  def __init__(self, workdir: str | os.PathLike, phase: str, *, start: int, say: Callable[[str], None]):
    self._workdir, self._phase = workdir, phase
    self._states = PrimaryCheckpoints(workdir, FOLDER, keep=None, say=say)
    self._states.drop(lambda step: step > start)

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Writes a state that is better than all before, in the background; replaces that of an earlier attempt."""
    self._states.save(step, state, meta)

  def wait(self) -> None:
    """Waits for what is being written: a checkpoint may name its best state only when that is there."""
    self._states.wait()

  def tidy(self) -> None:
    """Drops the states that nothing can come back to."""
    self._states.drop(lambda step: step in superseded(steps(self._workdir, FOLDER), steps(self._workdir, self._phase)))

  def close(self) -> None:
    """Waits for what is being written, and ends it."""
    self._states.close()
