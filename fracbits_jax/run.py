"""A run: its folder, its phases one after the other, its result."""

import contextlib
import json
import os
import pathlib
import re
from typing import Any

import jax
from flax import traverse_util
from ml_collections import ConfigDict

from fracbits_jax import begin, cost, data, policy, report, train, weights
from fracbits_jax.checkpoint import Checkpoints
from fracbits_jax.experiment import PHASES, Experiment, prepare
from fracbits_jax.files import write_whole
from fracbits_jax.monitor import Monitor
from fracbits_jax.progress import Progress, read_rows
from fracbits_jax.step import TrainState


def default_workdir(config_file: str) -> pathlib.Path:
  """The folder of a recipe's run: `runs/NAME` for `configs/NAME.py`, and `runs/NAME-4` for `configs/NAME.py:4`."""
  path, colon, argument = config_file.partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs') / (f'{name}-{re.sub(r"[^A-Za-z0-9.]", "_", argument)}' if colon else name)


def run(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
  """Runs the phases of a configuration in a folder, or continues there; returns what `result.json` holds.

  Raises:
    ValueError: one sentence on what is wrong with the configuration or the folder, before anything is trained.
    FloatingPointError: a loss that is not finite.
  """
  workdir = pathlib.Path(workdir)
  experiment = prepare(config, workdir)
  _claim(workdir, experiment.config)
  finished = workdir / 'result.json'
  if finished.exists():
    print(f'{workdir} is finished; start a new one with another --workdir')
    result = _read_object(finished)
    print(report.summary(workdir, result))
    return result
  return Run(experiment, workdir).run()


def _claim(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the run's folder, or checks that the run in it has the same configuration."""
  mine = json.loads(config.to_json())
  path = workdir / 'config.json'
  if path.exists():
    theirs = _read_object(path)
    mine_flat, theirs_flat = (traverse_util.flatten_dict(c, sep='.') for c in (mine, theirs))
    changed = [
      f'{name} is {mine_flat.get(name)!r} and was {theirs_flat.get(name)!r}'
      for name in sorted(mine_flat.keys() | theirs_flat.keys())
      if mine_flat.get(name) != theirs_flat.get(name)
    ]
    if changed:
      raise ValueError(
        f'{workdir} holds a run of another configuration: {"; ".join(changed)}; choose another --workdir'
      )
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(mine, indent=2) + '\n')
  except OSError as error:
    raise ValueError(f'{workdir} cannot be written: {error.strerror}; choose another --workdir') from None


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise ValueError(f'{path} is broken: choose another --workdir, or remove the file')
  return found


class Run:
  """The state of a run between its phases."""

  def __init__(self, experiment: Experiment, workdir: pathlib.Path):
    self.experiment, self.workdir, self.config = experiment, workdir, experiment.config
    self.phases = tuple(self.config.phases)
    self.steps_per_epoch = len(experiment.dataset.train) // self.config.data.batch_size
    self.steps = {phase: round(self.config[phase].epochs * self.steps_per_epoch) for phase in self.phases}
    self.progress = Progress(workdir, self.phases)
    self.policy: policy.Policy | None = experiment.policy
    self.seconds = 0.0

  def run(self) -> dict[str, Any]:
    """All phases, then the test split, the report and the result."""
    say, experiment = self.progress.say, self.experiment
    devices = f'{jax.local_device_count()} {jax.default_backend()} device(s)'
    say(f'{self.workdir}: {", ".join(self.phases)} on {experiment.dataset.name}, {devices}')
    budgets = ', '.join(f'{b.target:.4g} {b.unit}' for b in experiment.budget.all)
    say(f'budget {budgets}; {len(experiment.layers)} layers')
    if experiment.initial is not None:
      weights.keep(self.workdir, experiment.initial)
      say(f'starts from {experiment.initial.origin}')
    states: dict[str, TrainState] = {}
    for phase in self.phases:
      states[phase] = self.phase(phase, states)
    tested = {phase: state.variables for phase, state in states.items()}
    if experiment.initial is not None and experiment.initial.is_float:
      tested.setdefault('pretrain', begin.float_variables(experiment))
    accuracy = {phase: self._test_accuracy(phase, variables) for phase, variables in tested.items()}
    result = self._result(states, accuracy)
    self.progress.close()
    return result

  def start(self, phase: str, states: dict[str, TrainState]) -> begin.Variables:
    """The variables that a phase begins with, made of what the phases before it left."""
    if phase == 'pretrain':
      return begin.float_variables(self.experiment)
    bits = begin.as_float32(self.policy.bits()) if phase == 'finetune' else begin.initial_bits(self.experiment)
    if 'search' in states:
      return {**states['search'].variables, 'bits': bits}
    earlier = states['pretrain'].variables if 'pretrain' in states else begin.float_variables(self.experiment)
    return begin.quantized_variables(self.experiment, earlier, bits)

  def phase(self, phase: str, states: dict[str, TrainState]) -> TrainState:
    """Runs a phase, or what is left of it; its last state, in host memory."""
    if phase == 'finetune':
      self._fix_policy(states)
    experiment, steps = self.experiment, self.steps[phase]
    rate = begin.schedule(experiment, phase, steps=steps, steps_per_epoch=self.steps_per_epoch)
    optimizer = begin.optimizer(experiment, phase, rate)
    seed = self.config.seed + PHASES.index(phase)
    batches = data.train_batches(
      experiment.dataset,
      batch_size=self.config.data.batch_size,
      seed=seed,
      workers=self.config.data.workers,
      shard=train.host_shard(),
    )
    checkpoints = Checkpoints(self.workdir, phase)
    start = checkpoints.latest_step() or 0
    if start:
      like = jax.eval_shape(lambda shapes: begin.state(shapes, optimizer), begin.shapes(experiment, phase))
      state, meta = checkpoints.restore(like)
      batches.set_state(meta['data'])
      self.seconds = meta['seconds']
      self.progress.say(f'{phase} is done' if start == steps else f'{phase} continues at step {start} of {steps}')
    else:
      state = begin.state(self.start(phase, states), optimizer)
    if start < steps:
      self.progress.rewind(phase, start)
    monitor = Monitor(
      experiment,
      phase,
      steps=steps,
      steps_per_epoch=self.steps_per_epoch,
      start=start,
      earlier_steps=sum(self.steps[p] for p in self.phases[: self.phases.index(phase)]),
      earlier_seconds=self.seconds,
      progress=self.progress,
    )

    def save(step: int, state: TrainState) -> None:
      state = train.unreplicate(state)
      monitor.check(step, state)
      checkpoints.save(step, state, {'data': batches.get_state(), 'seconds': monitor.seconds()})

    with contextlib.closing(batches):
      state = train.run_phase(
        train.replicate(state),
        begin.train_step(experiment, phase, optimizer, rate),
        batches,
        start=start,
        steps=steps,
        report_steps=min(self.steps_per_epoch, self.config.report_steps),
        report=monitor.report,
        save=save,
        save_seconds=self.config.checkpoint_seconds,
      )
    checkpoints.close()
    self.seconds = monitor.seconds()
    return train.unreplicate(state)

  def _fix_policy(self, states: dict[str, TrainState]) -> None:
    """The policy of the finetuning: found in the folder, or given, or discretized from what was searched."""
    experiment, path = self.experiment, self.workdir / 'policy.json'
    if path.exists():
      self.policy = policy.load(path, experiment.layers)
      return
    if self.policy is None:
      bits = states['search'].bits if 'search' in states else begin.initial_bits(experiment)
      self.policy = policy.discretize(bits, experiment.layers, experiment.budget)
    self.policy.save(path)

  def _test_accuracy(self, phase: str, variables: begin.Variables) -> float:
    experiment, settings = self.experiment, self.config.data
    model = begin.model(experiment, phase)
    evaluate = begin.evaluator(model, experiment.dataset, settings.batch_size, settings.workers)
    return evaluate(train.replicate(variables), 'test')['accuracy']

  def _result(self, states: dict[str, TrainState], accuracy: dict[str, float]) -> dict[str, Any]:
    last, experiment = self.phases[-1], self.experiment
    costs = dict.fromkeys(('cost', 'bitops_g', 'size_mb', 'budgets'))
    if last != 'pretrain':
      bits = self.policy.bits() if last == 'finetune' else states[last].bits
      spent = experiment.budget.spent(bits, experiment.layers)
      amounts = (spent[0]['cost'], *(float(f(bits, experiment.layers)) for f in (cost.bitops, cost.model_size)))
      costs = dict(zip(costs, (*amounts, list(spent)), strict=True))
    result = {
      'phase': last,
      'test_accuracy': accuracy[last],
      'float_accuracy': accuracy.get('pretrain'),
      'searched_accuracy': accuracy.get('search'),
      'metric': experiment.budget.metric,
      'unit': experiment.budget.unit,
      'target': experiment.budget.target,
      **costs,
      'epochs': sum(float(self.config[phase].epochs) for phase in self.phases),
      'steps': sum(self.steps.values()),
      'seconds': round(self.seconds, 1),
    }
    uniform = cost.equivalent_bits(experiment.budget, experiment.layers)
    report.write(self.workdir, result, read_rows(self.workdir), self.policy, uniform)
    write_whole(self.workdir / 'result.json', json.dumps(result, indent=2) + '\n')
    self.progress.say(report.summary(self.workdir, result))
    return result
