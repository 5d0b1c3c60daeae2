"""From the steps of a phase to its rows: means of the metrics, validation, cost, speed, time left."""

import math
import time
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fracbits_jax import begin, train
from fracbits_jax.experiment import Experiment
from fracbits_jax.progress import Progress
from fracbits_jax.step import TrainState


class Monitor:
  """Watches one phase.

  Args:
    experiment: what is run.
    phase: the phase's name.
    steps: its length.
    steps_per_epoch: see there.
    start: steps that earlier starts have done.
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
    earlier_steps: int,
    earlier_seconds: float,
    progress: Progress,
  ):
    self._experiment, self._phase, self._progress = experiment, phase, progress
    self._steps, self._steps_per_epoch = steps, steps_per_epoch
    self._earlier_steps, self._earlier_seconds = earlier_steps, earlier_seconds
    self._began = self._at = time.monotonic()
    self._step = start

  def seconds(self) -> float:
    """Seconds that the run has taken so far, over all its starts."""
    return self._earlier_seconds + time.monotonic() - self._began

  def check(self, step: int, state: TrainState) -> None:
    """Raises `FloatingPointError` that names the first array of a state whose values are not finite."""
    for name, value in traverse_util.flatten_dict(state.variables, sep='/').items():
      if not np.isfinite(value).all():
        raise FloatingPointError(f'{name} is not finite after step {step} of {self._phase}')

  def report(self, step: int, state: TrainState, metrics: list[dict[str, jax.Array]]) -> None:
    """Makes the row of the steps since the last one.

    Raises:
      FloatingPointError: if a metric of one of these steps is not finite.
    """
    values = {name: [float(train.unreplicate(m[name])) for m in metrics] for name in metrics[0]}
    for name, series in values.items():
      for i, value in enumerate(series):
        if not math.isfinite(value):
          raise FloatingPointError(f'the {name} is {value} at step {step - len(metrics) + 1 + i} of {self._phase}')
    config = self._experiment.config
    steps_per_second = (step - self._step) / (time.monotonic() - self._at)
    row = {
      'phase': self._phase,
      'step': step,
      'steps': self._steps,
      'epoch': round(step / self._steps_per_epoch, 2),
      'epochs': config[self._phase].epochs,
      'loss': float(np.mean(values['loss'])),
      'accuracy': float(np.mean(values['accuracy'])),
      'images_per_second': steps_per_second * config.data.batch_size,
      'seconds_left': (self._steps - step) / steps_per_second,
    }
    if 'multiplier' in values:
      row['multiplier'] = values['multiplier'][-1]
    every = max(1, round(config.eval_epochs * self._steps_per_epoch))
    if step == self._steps or step // every > self._step // every:
      row['validation_accuracy'] = self._validate(state)
    if self._phase != 'pretrain':
      row |= self._costs(state)
    self._progress.row(row, global_step=self._earlier_steps + step, last=step == self._steps)
    self._at, self._step = time.monotonic(), step

  def _validate(self, state: TrainState) -> float:
    experiment, settings = self._experiment, self._experiment.config.data
    network = begin.model(experiment, self._phase)
    evaluate = begin.evaluator(network, experiment.dataset, settings.batch_size, settings.workers)
    return evaluate(state.variables, 'validation')['accuracy']

  def _costs(self, state: TrainState) -> dict[str, Any]:
    budget = self._experiment.budget
    bits = train.unreplicate(state.bits)
    flat = traverse_util.flatten_dict(bits, sep='/')
    return {
      'metric': budget.metric,
      'unit': budget.unit,
      'target': budget.target,
      'cost': float(budget.cost(bits, self._experiment.layers)),
      'ratio': float(budget.ratio(bits, self._experiment.layers)),
      'budgets': budget.spent(bits, self._experiment.layers),
      'bits': {name: round(float(np.mean(value)), 4) for name, value in flat.items()},
    }
