"""From the steps of a phase to its rows: means of the metrics, validation, cost, speed, time left."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fracbits_jax import cost
from fracbits_jax.run import begin
from fracbits_jax.run.experiment import Experiment
from fracbits_jax.run.progress import Progress
from fracbits_jax.train import placement
from fracbits_jax.train.nonfinite import NotFinite, first_variable
from fracbits_jax.train.step import TrainState


class Monitor:
  """Watches one phase.

  Attributes:
    best: `step` and, by the task's first metric, `validation_accuracy` or its like of the best state so far that can be
      deployed, one with integer bit-widths; `None` before there is one.

  Args:
    experiment: what is run.
    phase: the phase's name.
    steps: its length.
    steps_per_epoch: see there.
    start: steps that earlier starts have done.
    reported: those of them that are in a row.
    best: the best integer bit-widths so far, see `Monitor.best`.
    earlier_steps: steps of the phases before.
    earlier_seconds: what the run has taken before.
    progress: where the rows go.
  """

  def __init__(
    self,
    experiment: Experiment,
    phase: str,
    *,
    steps: int,
    steps_per_epoch: int,
    start: int,
    reported: int,
    best: dict[str, float] | None,
    earlier_steps: int,
    earlier_seconds: float,
    progress: Progress,
  ):
    self._experiment, self._phase, self._progress = experiment, phase, progress
    self._steps, self._steps_per_epoch = steps, steps_per_epoch
    self._earlier_steps, self._earlier_seconds = earlier_steps, earlier_seconds
    self._began = self._at = time.monotonic()
    self._from, self._reported = start, reported
    self.best = best

  def seconds(self) -> float:
    """Seconds that the run has taken so far, over all its starts."""
    return self._earlier_seconds + time.monotonic() - self._began

  def leave_out(self, seconds: float) -> None:
    """Says that so many of the seconds since the last row went into something else than steps."""
    self._at += seconds

  def check(self, step: int, state: TrainState, pending: Sequence[dict[str, jax.Array]]) -> list[dict[str, float]]:
    """Makes sure that a state can be saved.

    Args:
      step: steps done.
      state: after them, in host memory.
      pending: the metrics of the last of them.

    Returns:
      The metrics as numbers.

    Raises:
      NotFinite: names the step and the metric or the array whose values are not finite.
    """
    fetched = [{name: float(placement.unreplicate(value)) for name, value in metrics.items()} for metrics in pending]
    for i, metrics in enumerate(fetched, start=step - len(fetched) + 1):
      for name, value in metrics.items():
        if not math.isfinite(value):
          raise NotFinite(f'the {name} is {value} at step {i} of {self._phase}', i)
    if broken := first_variable(state.variables):
      raise NotFinite(f'{broken} is not finite after step {step} of {self._phase}', step)
    return fetched

  def report(self, step: int, state: TrainState, pending: Sequence[dict[str, jax.Array]]) -> None:
    """Makes the row of the steps since the last one, whose metrics are given.

    Raises:
      NotFinite: if a metric of one of these steps is not finite.
    """
    fetched = self.check(step, dataclasses.replace(state, params={}, bits={}, batch_stats={}), pending)
    values = {name: [metrics[name] for metrics in fetched] for name in fetched[0]}
    config, task = self._experiment.config, self._experiment.task
    means = {name: float(np.mean(value)) for name, value in values.items()}
    # Steps of this start only: a report that was interrupted is made again before there is any.
    steps_per_second = (step - self._from) / (time.monotonic() - self._at)
    row = {
      'phase': self._phase,
      'step': step,
      'steps': self._steps,
      'epoch': round(step / self._steps_per_epoch, 2),
      'epochs': config[self._phase].epochs,
      'loss': means['loss'],
      **task.values(means),
      'images_per_second': steps_per_second * config.data.batch_size * task.counted(self._experiment.inputs),
      'seconds_left': (self._steps - step) / steps_per_second if steps_per_second else 0.0,
    }
    if 'distill_loss' in values:
      row['distill_loss'] = means['distill_loss']
    if 'multiplier' in values:
      row['multiplier'] = values['multiplier'][-1]
    every = max(1, round(config.eval_epochs * self._steps_per_epoch))
    if step == self._steps or step // every > self._reported // every:
      metric, found = task.metric, self._validate(state)
      row |= found
      name = f'validation_{metric.name}'
      better = self.best is None or metric.goodness(found[name]) > metric.goodness(self.best[name])
      if self._phase == 'finetune' and better:
        self.best = {'step': step, name: found[name]}
    if self._phase != 'pretrain':
      row |= self._costs(state)
    self._progress.row(row, global_step=self._earlier_steps + step, last=step == self._steps)
    self._at, self._from, self._reported = time.monotonic(), step, step

  def _validate(self, state: TrainState) -> dict[str, float]:
    experiment, settings = self._experiment, self._experiment.config.data
    network = begin.model(experiment, self._phase)
    evaluate = begin.evaluator(network, experiment.dataset, settings.batch_size, settings.workers, experiment.task)
    found = evaluate(state.variables, 'validation')
    return {f'validation_{metric.name}': found[metric.name] for metric in experiment.task.metrics}

  def _costs(self, state: TrainState) -> dict[str, Any]:
    budget = self._experiment.budget
    bits = placement.unreplicate(state.bits)
    flat = traverse_util.flatten_dict(bits, sep='/')
    for layer in self._experiment.layers:
      for which in cost.learned(layer) if layer.stack else ():  # of a stack each layer by itself
        flat.pop(f'{layer.path}/{which}', None)
        flat[f'{layer.name}/{which}'] = cost.bits_of(bits, layer, which)
    return {
      'metric': budget.metric,
      'unit': budget.unit,
      'target': budget.target,
      'cost': float(budget.cost(bits, self._experiment.layers)),
      'ratio': float(budget.ratio(bits, self._experiment.layers)),
      'budgets': budget.spent(bits, self._experiment.layers),
      'bits': {name: round(float(np.mean(value)), 4) for name, value in flat.items()},
    }
