"""A run: its folder, its phases one after the other, its result."""

import functools
import json
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from fracbits_jax import calibrate, cost, data, optim, policy, report, train
from fracbits_jax.checkpoint import Checkpoints
from fracbits_jax.experiment import AXIS, PHASES, Experiment, prepare
from fracbits_jax.progress import Progress, read_rows
from fracbits_jax.train import TrainState


def run(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
  """Runs the phases of a configuration in a folder, or continues there; returns what `result.json` holds.

  Raises:
    ValueError: one sentence on what is wrong with the configuration or the folder, before anything is trained.
    FloatingPointError: a loss that is not finite.
  """
  workdir = pathlib.Path(workdir)
  experiment = prepare(config)
  _claim(workdir, config)
  finished = workdir / 'result.json'
  if finished.exists():
    print(f'{workdir} is finished; start a new one with another --workdir')
    result = json.loads(finished.read_text())
    print(report.summary(workdir, result))
    return result
  return Run(experiment, workdir).run()


def _claim(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the run's folder, or checks that the run in it has the same configuration."""
  mine = json.loads(config.to_json())
  path = workdir / 'config.json'
  if path.exists():
    try:
      theirs = json.loads(path.read_text())
    except ValueError:
      raise ValueError(f'{path} is broken: choose another --workdir') from None
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
    path.write_text(json.dumps(mine, indent=2) + '\n')
  except OSError as error:
    raise ValueError(f'{workdir} cannot be written: {error.strerror}; choose another --workdir') from None


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
    say, budget = self.progress.say, self.experiment.budget
    say(
      f'{self.workdir}: {", ".join(self.phases)} on {self.experiment.dataset.name}, {jax.local_device_count()} x cpu'
      if jax.default_backend() == 'cpu'
      else f'{self.workdir}: {", ".join(self.phases)}'
    )
    say(f'budget {budget.target:.4g} {budget.unit}; {len(self.experiment.layers)} layers')
    states: dict[str, TrainState] = {}
    for phase in self.phases:
      states[phase] = self._phase(phase, states)
    accuracy = {phase: self._evaluator(phase)(train.replicate(s.variables), 'test') for phase, s in states.items()}
    result = self._result(states, {phase: a['accuracy'] for phase, a in accuracy.items()})
    self.progress.close()
    return result

  # What each phase starts from.

  def _model(self, phase: str):
    return self.experiment.float_model if phase == 'pretrain' else self.experiment.quant_model

  @functools.cache  # noqa: B019
  def _evaluator_of(self, quantized: bool) -> train.Evaluator:
    model = self.experiment.quant_model if quantized else self.experiment.float_model
    return train.Evaluator(model, self.experiment.dataset, self.config.data.batch_size)

  def _evaluator(self, phase: str) -> train.Evaluator:
    return self._evaluator_of(phase != 'pretrain')

  def _init(self, model, key: jax.Array) -> dict[str, Any]:
    return model.init(key, jnp.zeros((1, *self.experiment.dataset.image_shape), jnp.float32))

  def _float_start(self) -> dict[str, Any]:
    """Initial variables of the float network, which an untrained quantized one starts from as well."""
    init = jax.jit(functools.partial(self._init, self.experiment.float_model))
    return init(jax.random.key(self.config.seed))

  def _quantized(self, variables: dict[str, Any], bits: Any) -> dict[str, Any]:
    """The variables of the quantized network with a float network's weights, calibrated clips and given bits."""
    shapes = jax.eval_shape(functools.partial(self._init, self.experiment.quant_model), jax.random.key(0))
    flat = traverse_util.flatten_dict(variables['params'], sep='/')
    for name in traverse_util.flatten_dict(shapes['params'], sep='/'):
      flat.setdefault(name, jnp.float32(self.config.quant.alpha_init))
    params = traverse_util.unflatten_dict(flat, sep='/')
    if self.config.quant.calibration_batches:
      source = data.train_batches(
        self.experiment.dataset, batch_size=self.config.data.batch_size, seed=self.config.seed
      )
      images = [jnp.asarray(next(source)['image'], jnp.float32) for _ in range(self.config.quant.calibration_batches)]
      samples = calibrate.sample_inputs(self.experiment.float_model, variables, images)
      configs = calibrate.quant_configs(self.experiment.quant_model, self.experiment.dataset.image_shape)
      params = calibrate.clips(params, bits, samples, configs)
    return {'params': params, 'bits': bits, 'batch_stats': variables['batch_stats']}

  def _start(self, phase: str, states: dict[str, TrainState]) -> dict[str, Any]:
    if phase == 'pretrain':
      return {**self._float_start(), 'bits': {}}
    if phase == 'finetune' and 'search' in states:
      return {**states['search'].variables, 'bits': self._integer_bits()}
    earlier = states['pretrain'].variables if 'pretrain' in states else self._float_start()
    bits = self._integer_bits() if phase == 'finetune' else self._initial_bits()
    return self._quantized(earlier, bits)

  def _initial_bits(self) -> Any:
    clipped = lambda layer, which, shape, choices: np.clip(self.experiment.init_bits, choices[0], choices[-1])
    return _float32(cost.fill_bits(self.experiment.layers, clipped))

  def _integer_bits(self) -> Any:
    return _float32(self.policy.bits())

  def _fix_policy(self, states: dict[str, TrainState]) -> None:
    """The policy of the finetuning: given, or found in the folder, or discretized from what was searched."""
    experiment, path = self.experiment, self.workdir / 'policy.json'
    if path.exists():
      self.policy = policy.load(path, experiment.layers)
      return
    if self.policy is None:
      bits = states['search'].bits if 'search' in states else self._initial_bits()
      self.policy = policy.discretize(bits, experiment.layers, experiment.budget)
    self.policy.save(path)

  # One phase.

  def _optimizer(self, phase: str, params: Any) -> optax.GradientTransformation:
    settings, optimizer = self.config[phase], self.config.optimizer
    schedule = optim.cosine_part(
      settings.learning_rate,
      self.steps[phase],
      warmup_steps=round(settings.warmup_epochs * self.steps_per_epoch),
      part=tuple(settings.cosine),
    )
    return optim.sgd(
      schedule,
      momentum=optimizer.momentum,
      weight_decay=optimizer.weight_decay,
      mask=optim.decay_mask(params, self.experiment.layers),
      bits_rate=optimizer.bits_rate if phase == 'search' else None,
      clip_norm=optimizer.clip_norm,
    )

  def _train_step(self, phase: str, optimizer: optax.GradientTransformation):
    experiment, penalty, bits_range = self.experiment, None, None
    if phase == 'search':
      kappa = experiment.budget.target if self.config.budget.kappa is None else self.config.budget.kappa
      penalty = train.Penalty(budget=experiment.budget, layers=experiment.layers, kappa=kappa)
      bits_range = tuple(map(_float32, cost.bits_range(experiment.layers)))
    step = train.make_train_step(self._model(phase), optimizer, penalty, bits_range)
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0)

  def _phase(self, phase: str, states: dict[str, TrainState]) -> TrainState:
    """Runs a phase, or what is left of it; its last state, in host memory."""
    if phase == 'finetune':
      self._fix_policy(states)
    shapes = jax.eval_shape(functools.partial(self._init, self._model(phase)), jax.random.key(0))
    optimizer = self._optimizer(phase, shapes['params'])

    def new_state(variables: dict[str, Any]) -> TrainState:
      learned = {'params': variables['params'], 'bits': variables['bits']}
      return TrainState(
        step=jnp.int32(0), **learned, batch_stats=variables['batch_stats'], opt_state=optimizer.init(learned)
      )

    checkpoints = Checkpoints(self.workdir, phase)
    start = checkpoints.latest_step() or 0
    batches = data.train_batches(
      self.experiment.dataset,
      batch_size=self.config.data.batch_size,
      seed=self.config.seed + PHASES.index(phase),
    )
    if start:
      like = jax.eval_shape(new_state, {'bits': {}, **shapes})
      state, meta = checkpoints.restore(like)
      batches.set_state(meta['data'])
      self.seconds = meta['seconds']
      self.progress.say(f'{phase} continues at step {start} of {self.steps[phase]}')
    else:
      state = new_state(self._start(phase, states))
    if start < self.steps[phase]:
      self.progress.rewind(phase, start)
    monitor = Monitor(self, phase, start)
    state = train.run_phase(
      train.replicate(state),
      self._train_step(phase, optimizer),
      batches,
      start=start,
      steps=self.steps[phase],
      steps_per_epoch=self.steps_per_epoch,
      report=monitor.report,
      save=lambda step, state: checkpoints.save(
        step, train.unreplicate(state), {'data': batches.get_state(), 'seconds': monitor.seconds()}
      ),
      save_seconds=self.config.checkpoint_seconds,
    )
    checkpoints.close()
    self.seconds = monitor.seconds()
    return train.unreplicate(state)

  # The result.

  def _result(self, states: dict[str, TrainState], accuracy: dict[str, float]) -> dict[str, Any]:
    last, experiment = self.phases[-1], self.experiment
    bits = states[last].bits
    if last == 'finetune':
      bits = self.policy.bits()
    quantized = last != 'pretrain'
    result = {
      'phase': last,
      'test_accuracy': accuracy[last],
      'float_accuracy': accuracy.get('pretrain'),
      'searched_accuracy': accuracy.get('search'),
      'metric': experiment.budget.metric,
      'target': experiment.budget.target,
      'cost': float(experiment.budget.cost(bits, experiment.layers)) if quantized else None,
      'bitops_g': float(cost.bitops(bits, experiment.layers)) if quantized else None,
      'size_mb': float(cost.model_size(bits, experiment.layers)) if quantized else None,
      'epochs': sum(float(self.config[phase].epochs) for phase in self.phases),
      'steps': sum(self.steps.values()),
      'seconds': round(self.seconds, 1),
    }
    rows = read_rows(self.workdir)
    uniform = cost.equivalent_bits(experiment.budget, experiment.layers)
    report.write(self.workdir, result, rows, self.policy, uniform)
    (self.workdir / 'result.json').write_text(json.dumps(result, indent=2) + '\n')
    self.progress.say(report.summary(self.workdir, result))
    return result


class Monitor:
  """Turns the steps of one phase into rows: means of the metrics, validation, speed, time left."""

  def __init__(self, owner: Run, phase: str, start: int):
    self._run, self._phase, self._began = owner, phase, time.monotonic()
    self._at, self._step = self._began, start
    self._earlier = owner.seconds

  def seconds(self) -> float:
    """Seconds that the run has taken so far, over all its starts."""
    return self._earlier + time.monotonic() - self._began

  def report(self, step: int, state: TrainState, metrics: list[dict[str, jax.Array]]) -> None:
    """Makes the row of the steps since the last report; raises `FloatingPointError` where the loss is not finite."""
    owner, phase = self._run, self._phase
    config, steps = owner.config, owner.steps[phase]
    values = {
      name: [float(np.asarray(m[name].addressable_data(0)).reshape(-1)[0]) for m in metrics] for name in metrics[0]
    }
    for name, series in values.items():
      for i, value in enumerate(series):
        if not math.isfinite(value):
          raise FloatingPointError(f'the {name} is {value} at step {step - len(metrics) + 1 + i} of {phase}')
    now = time.monotonic()
    speed = (step - self._step) / (now - self._at)
    row = {
      'phase': phase,
      'step': step,
      'steps': steps,
      'epoch': round(step / owner.steps_per_epoch, 2),
      'epochs': config[phase].epochs,
      'loss': float(np.mean(values['loss'])),
      'accuracy': float(np.mean(values['accuracy'])),
      'images_per_second': speed * config.data.batch_size,
      'seconds_left': (steps - step) / speed,
    }
    evaluation_steps = max(1, round(config.eval_epochs * owner.steps_per_epoch))
    if step == steps or step // evaluation_steps > self._step // evaluation_steps:
      row['validation_accuracy'] = owner._evaluator(phase)(state.variables, 'validation')['accuracy']
    if phase != 'pretrain':
      bits = train.unreplicate(state.bits)
      flat = traverse_util.flatten_dict(bits, sep='/')
      row |= {
        'metric': owner.experiment.budget.metric,
        'target': owner.experiment.budget.target,
        'cost': float(owner.experiment.budget.cost(bits, owner.experiment.layers)),
        'bits': {name: round(float(np.mean(value)), 4) for name, value in flat.items()},
      }
    offset = sum(owner.steps[p] for p in owner.phases[: owner.phases.index(phase)])
    owner.progress.row(row, global_step=offset + step, last=step == steps)
    self._at, self._step = time.monotonic(), step


def _float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
