"""A run: its folder, its phases one after the other, its result."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from fracbits_jax import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import (
  agreement,
  begin,
  contents,
  cost,
  data,
  hosts,
  nonfinite,
  platforms,
  policy,
  preemption,
  reference,
  report,
  terminal,
  train,
  weights,
)
from fracbits_jax.batches import TrainBatches
from fracbits_jax.best_states import BestStates
from fracbits_jax.checkpoint import PrimaryCheckpoints, newest_step
from fracbits_jax.experiment import PHASES, Experiment, check_policy, phase_steps, prepare
from fracbits_jax.files import check_name, write_whole
from fracbits_jax.lock import Lock
from fracbits_jax.monitor import Monitor
from fracbits_jax.nonfinite import NotFinite
from fracbits_jax.progress import Progress, Silence, duration
from fracbits_jax.step import TrainState
from fracbits_jax.workdir import claim, read_object


def run(
  config: ConfigDict, workdir: str | os.PathLike, *, accept_changes: bool = False, command: str | None = None
) -> dict[str, Any]:
  """Runs the phases of a configuration in a folder, or continues there; returns what `result.json` holds.

  Several hosts call it together, see `hosts`; only the primary needs the folder.

  Args:
    config: see `configs/base.py`.
    workdir: the run's folder.
    accept_changes: go on in a folder whose run has begun with another configuration or other data that its state is
      tied to, or start from weights that were trained on other data.
    command: the shell's command behind the call, for the report.

  Raises:
    ValueError: one sentence on what is wrong with the configuration or the folder, before anything is trained.
    FloatingPointError: values that are not finite; says where.
    OSError: a folder that can be written no more.
    Preempted: the run was asked to stop, see `preemption`.
  """
  workdir = pathlib.Path(workdir)
  agreement.check(agreement.settings(config))
  hosts.primary(lambda: check_name(workdir, 'choose another --workdir'))
  experiment = hosts.everywhere(lambda: prepare(config, workdir))
  agreement.check(agreement.settings(experiment.config) | agreement.data(experiment.dataset))
  finished = lambda: _finished(workdir, experiment, accept_changes)
  if hosts.primary(lambda: (workdir / 'result.json').exists()):  # it is only read
    return hosts.primary(finished)
  with contextlib.ExitStack() as stack:
    lock = hosts.everywhere(lambda: Lock(workdir, terminal.show) if hosts.is_primary() else None)
    if lock is not None:
      stack.enter_context(contextlib.closing(lock))
    result = hosts.primary(finished)
    return Run(experiment, workdir, command).run() if result is None else result


def _finished(workdir: pathlib.Path, experiment: Experiment, accept_changes: bool) -> dict[str, Any] | None:
  """Claims the folder for the configuration and the data; the result of a run that is finished there."""
  now, initial, accepted = experiment.dataset.contents, experiment.initial, {'accept_changes': accept_changes}
  is_finished = (workdir / 'result.json').exists()
  has_begun = is_finished or any(newest_step(workdir, phase) is not None for phase in experiment.config.phases)
  changed = ''
  if not has_begun and initial is not None:
    changed = contents.check_started(experiment.config.init_from, initial.trained_on, now, **accepted)
  claim(workdir, experiment.config, say=terminal.show, **accepted)
  if is_finished:
    terminal.show(f'{workdir} is finished; start a new one with another --workdir')
    result = read_object(workdir / 'result.json')
    terminal.show(report.summary(workdir, result))
    return result
  if has_begun:
    changed = contents.check_continued(workdir, now, **accepted)
  if changed:
    terminal.show(f'goes on with other data: {changed}')
  contents.keep(workdir, now)
  return None


class Run:
  """The state of a run between its phases."""

  def __init__(self, experiment: Experiment, workdir: pathlib.Path, command: str | None = None):
    self.experiment, self.workdir, self.config = experiment, workdir, experiment.config
    self.command = command
    self.phases = tuple(self.config.phases)
    self.steps_per_epoch = len(experiment.dataset.train) // self.config.data.batch_size
    self.steps = phase_steps(self.config, len(experiment.dataset.train))
    self.progress = hosts.everywhere(lambda: Progress(workdir, self.phases) if hosts.is_primary() else Silence())
    self.policy: policy.Policy | None = experiment.policy
    self.best: dict[str, float] | None = None  # of integer bit-widths, see `Monitor.best`
    self.seconds = 0.0

  def run(self) -> dict[str, Any]:
    """All phases, then the test split, the report and the result."""
    say, experiment = self.progress.say, self.experiment
    devices = f'{jax.device_count()} {jax.default_backend()} device(s)'
    if hosts.several():
      devices += f' of {jax.process_count()} hosts'
    say(f'{self.workdir}: {", ".join(self.phases)} on {experiment.dataset.name}, {devices}')
    for note in experiment.dataset.notes:
      say(note)
    budgets = ', '.join(f'{b.target:.4g} {b.unit}' for b in experiment.budget.all)
    say(f'budget {budgets}; {len(experiment.layers)} layers')
    for note in experiment.notes:
      say(f'note: {note}')
    if experiment.initial is not None:
      hosts.primary(lambda: weights.keep(self.workdir, experiment.initial))
      say(f'starts from {experiment.initial.origin}')
    with contextlib.closing(self.progress):
      states: dict[str, TrainState] = {}
      for phase in self.phases:
        states[phase] = self.phase(phase, states)
      tested = {phase: state.variables for phase, state in states.items()}
      if experiment.initial is not None and experiment.initial.is_float:
        tested.setdefault('pretrain', hosts.agree(begin.float_variables(experiment)))
      accuracy = {phase: self._test_accuracy(phase, variables) for phase, variables in tested.items()}
      return hosts.primary(lambda: self._result(states, accuracy))

  def start(self, phase: str, states: dict[str, TrainState]) -> begin.Variables:
    """The variables that a phase begins with, made of what the phases before it left."""
    if phase == 'pretrain':
      return begin.float_variables(self.experiment)
    bits = begin.as_float32(self.policy.bits()) if phase == 'finetune' else begin.initial_bits(self.experiment)
    if 'search' in states:
      return {**states['search'].variables, 'bits': bits}
    earlier = states['pretrain'].variables if 'pretrain' in states else begin.float_variables(self.experiment)
    return begin.quantized_variables(self.experiment, earlier, bits)

  def make_step(self, phase: str, states: dict[str, TrainState]) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer of a phase and its mapped step, a distilled one where the configuration says so."""
    rate = begin.schedule(self.experiment, phase, steps=self.steps[phase], steps_per_epoch=self.steps_per_epoch)
    optimizer = begin.optimizer(self.experiment, phase, rate)
    return optimizer, begin.train_step(self.experiment, phase, optimizer, rate, self._teacher(phase, states))

  def phase(self, phase: str, states: dict[str, TrainState]) -> TrainState:
    """Runs a phase, or what is left of it; its last state, in host memory."""
    if phase == 'finetune':
      self.policy = hosts.primary(lambda: self._fixed_policy(states))
    experiment, config, steps = self.experiment, self.config, self.steps[phase]
    optimizer, train_step = self.make_step(phase, states)
    start, state, meta = self._load(phase, states, optimizer)
    self.seconds = meta['seconds']
    reported = start - len(meta['pending'])
    later = self.phases[self.phases.index(phase) + 1 :]
    have_begun = hosts.primary(lambda: any(newest_step(self.workdir, p) is not None for p in later))
    if start:
      # Whatever its length is now, a phase that later ones were built on has ended.
      steps = start if (start >= meta['steps'] and have_begun) or start > steps else steps
      self.progress.say(f'{phase} is done' if start == steps else f'{phase} continues at step {start} of {steps}')
    earlier_steps = sum(self.steps[p] for p in self.phases[: self.phases.index(phase)])
    self.steps[phase] = steps
    if start < steps or not have_begun:
      self.progress.rewind(phase, reported, global_step=earlier_steps + reported)
    if phase == 'search' and start < steps and not have_begun:
      hosts.primary(self._drop_policy)
    monitor = Monitor(
      experiment,
      phase,
      steps=steps,
      steps_per_epoch=self.steps_per_epoch,
      start=start,
      reported=reported,
      best=meta['best'],
      earlier_steps=earlier_steps,
      earlier_seconds=self.seconds,
      progress=self.progress,
    )

    def report(step: int, state: TrainState, pending: list[train.Metrics]) -> None:
      monitor.report(step, state, pending)
      if best is not None and monitor.best is not None and monitor.best['step'] == step:
        best.save(step, train.unreplicate(state), monitor.best)

    def save(step: int, state: TrainState, pending: list[train.Metrics]) -> None:
      state = train.unreplicate(state)
      if best is not None:
        best.wait()
      fetched = monitor.check(step, state, pending)
      meta = {'seconds': monitor.seconds(), 'pending': fetched, 'best': monitor.best, 'steps': steps}
      checkpoints.save(step, state, {'data': batches.get_state(), **meta})
      if best is not None:
        best.tidy()

    def finish(state: TrainState) -> TrainState:
      jax.block_until_ready(state)
      began = time.monotonic()
      state = jax.block_until_ready(begin.with_statistics(experiment, phase, state))
      monitor.leave_out(time.monotonic() - began)
      return state

    report_steps = min(self.steps_per_epoch, config.report_steps)
    batches = self._batches(phase, meta)
    checkpoints = self._checkpoints(phase)
    best = None if phase != 'finetune' else BestStates(self.workdir, phase, start=start, say=self.progress.say)
    try:
      with contextlib.ExitStack() as stack:
        for used in filter(None, (batches, checkpoints, best)):
          stack.enter_context(contextlib.closing(used))
        state = train.run_phase(
          train.replicate(state),
          self._announced(phase, train_step, report_steps=report_steps),
          batches,
          start=start,
          steps=steps,
          pending=meta['pending'],
          report_steps=report_steps,
          report=report,
          save=save,
          save_steps=config.checkpoint_steps,
          save_seconds=config.checkpoint_seconds,
          finish=finish if config[phase].reestimate_batches else None,
        )
    except NotFinite as error:
      raise FloatingPointError(f'{error}; {self._explain(phase, states, optimizer, train_step, error.step)}') from None
    self.seconds, self.best = monitor.seconds(), monitor.best
    return train.unreplicate(state)

  def _announced(self, phase: str, train_step: Callable, report_steps: int) -> Callable:
    """The step, which says that it is compiled, the first time it is called, and how long that took."""
    compiled = False

    def announced(state: TrainState, batch: Any) -> tuple[TrainState, train.Metrics]:
      nonlocal compiled
      if compiled:
        return train_step(state, batch)
      self.progress.doing(f'{phase}: compiling')
      began, compiled = time.monotonic(), True
      done = train_step(state, batch)
      seconds = duration(time.monotonic() - began)
      self.progress.doing(f'{phase}: compiled in {seconds}, trains; a row comes every {report_steps} steps')
      return done

    return announced

  def _teacher(self, phase: str, states: dict[str, TrainState]) -> begin.Variables | None:
    """The variables of the float network, where the phase is distilled from it."""
    how = self.config.distill
    if not how.weight or phase not in how.phases:
      return None
    if 'pretrain' in states:
      return states['pretrain'].variables
    return hosts.agree(begin.float_variables(self.experiment))

  def _checkpoints(self, name: str) -> PrimaryCheckpoints:
    return PrimaryCheckpoints(self.workdir, name, say=self.progress.say)

  def _load(self, phase: str, states: dict[str, TrainState], optimizer: Any) -> tuple[int, TrainState, dict[str, Any]]:
    """Where a phase goes on: the steps done, the state after them, and what its checkpoint says beside it."""
    like = jax.eval_shape(lambda shapes: begin.state(shapes, optimizer), begin.shapes(self.experiment, phase))
    with contextlib.closing(self._checkpoints(phase)) as checkpoints:
      found = checkpoints.restore(like)
    if found is None:
      self.progress.doing(f'{phase}: compiling')
      state = hosts.primary(lambda: begin.state(self.start(phase, states), optimizer))
      return 0, state, {'data': None, 'seconds': self.seconds, 'pending': [], 'best': None, 'steps': 0}
    if phase == 'finetune':
      bits = begin.as_float32(self.policy.bits())
      if not all(jax.tree.leaves(jax.tree.map(np.array_equal, bits, found[1].bits))):
        raise ValueError(
          f'{self.workdir / "policy.json"} is not the policy that was finetuned in this folder: put the old one back, '
          'or choose another --workdir'
        )
    return found

  def _batches(self, phase: str, meta: dict[str, Any]) -> TrainBatches:
    """The training batches of a phase from where a checkpoint left them."""
    settings = self.config.data
    batches = data.train_batches(
      self.experiment.dataset,
      batch_size=settings.batch_size,
      seed=self.config.seed + PHASES.index(phase),
      workers=settings.workers,
      shard=train.host_shard(),
      wait=preemption.waiting,
    )
    if meta['data'] is not None:
      batches.set_state(meta['data'])
    return batches

  def _explain(
    self, phase: str, states: dict[str, TrainState], optimizer: Any, train_step: Callable, failed: int
  ) -> str:
    """Where values stopped being finite, found by making the steps up to the failed one again, and what is saved."""
    step, state, meta = self._load(phase, states, optimizer)
    with contextlib.closing(self._batches(phase, meta)) as batches:
      model = begin.model(self.experiment, phase)
      where = nonfinite.origin(model, train_step, state, batches, range(step + 1, failed + 1))
    saved = f'the last good checkpoint is that of step {step}' if step else f'{phase} has no checkpoint yet'
    return f'the first values that are not finite: {where}; {saved}; lower {phase}.learning_rate if the data are sound'

  def _fixed_policy(self, states: dict[str, TrainState]) -> policy.Policy:
    """The policy of the finetuning: found in the folder, or given, or discretized from what was searched."""
    experiment, path = self.experiment, self.workdir / 'policy.json'
    found = policy.load(path, experiment.layers) if path.exists() else None
    if found is not None:
      remedy = 'put the old one back, raise the budget, or choose another --workdir'
      check_policy(found, experiment.budget, experiment.layers, name=str(path), remedy=remedy)
    given = self.policy if found is None else found
    if given is not None:  # what it costs follows from its bits, whatever it says, and from the budget of this run
      fixed = policy.from_bits(given.bits(), experiment.layers, experiment.budget)
    else:
      bits = states['search'].bits if 'search' in states else begin.initial_bits(experiment)
      method = self.config.budget.discretization
      fixed = policy.discretize(bits, experiment.layers, experiment.budget, method=method)
    if fixed != found:
      fixed.save(path)
    return fixed

  def _drop_policy(self) -> None:
    """Drops the policy that an earlier attempt has made of a search which now goes on."""
    path = self.workdir / 'policy.json'
    if path.exists():
      path.unlink()
      self.progress.say(f'{path} was made before the end of the search: it is dropped, and made anew behind it')

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
      'best': self.best,
      'epochs': sum(float(self.config[phase].epochs) for phase in self.phases),
      'steps': sum(self.steps.values()),
      'seconds': round(self.seconds, 1),
      'reference': reference.costs(experiment.budget, experiment.layers),
      'made_with': {'command': self.command, **platforms.description()},
    }
    report.write(self.workdir, result)
    write_whole(self.workdir / 'result.json', json.dumps(result, indent=2) + '\n')
    self.progress.say(report.summary(self.workdir, result))
    return result
