"""A run: its folder, its phases one after the other, its result."""

import contextlib
import json
import os
import pathlib
from typing import Any, Protocol

import jax

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import policy
from fracbits_jax.data import contents
from fracbits_jax.run import agreement, begin, checks, outcome, settings, weights
from fracbits_jax.run.checkpoint import newest_step
from fracbits_jax.run.experiment import Experiment, prepare
from fracbits_jax.run.lock import Lock
from fracbits_jax.run.monitor import Monitor
from fracbits_jax.run.phase import Phase
from fracbits_jax.run.progress import Progress, Silence
from fracbits_jax.run.workdir import claim, read_object
from fracbits_jax.system import terminal
from fracbits_jax.system.files import check_name, write_whole
from fracbits_jax.train import hosts, placement
from fracbits_jax.train.step import TrainState


class Report(Protocol):
  """What shows the result of a run, as the module `report.summary` does."""

  def write(self, workdir: pathlib.Path, result: dict[str, Any]) -> Any:
    """Writes pages into a run's folder, before its `result.json`."""

  def summary(self, workdir: pathlib.Path, result: dict[str, Any]) -> str:
    """What a person sees in the terminal."""


def run(
  config: ConfigDict,
  workdir: str | os.PathLike,
  *,
  accept_changes: bool = False,
  command: str | None = None,
  report: Report | None = None,
) -> dict[str, Any]:
  """Runs the phases of a configuration in a folder, or continues there; returns what `result.json` holds.

  Several hosts call it together, see `hosts`; only the primary needs the folder.

  Args:
    config: see `configs/base.py`.
    workdir: the run's folder.
    accept_changes: go on in a folder whose run has begun with another configuration or other data that its state is
      tied to, or start from weights that were trained on other data.
    command: the shell's command behind the call, for the report.
    report: what shows the result, such as the module `report.summary`; `None` leaves it to `result.json`.

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
  finished = lambda: _finished(workdir, experiment, accept_changes, report)
  if hosts.primary(lambda: (workdir / 'result.json').exists()):  # it is only read
    return hosts.primary(finished)
  with contextlib.ExitStack() as stack:
    lock = hosts.everywhere(lambda: Lock(workdir, terminal.show) if hosts.is_primary() else None)
    if lock is not None:
      stack.enter_context(contextlib.closing(lock))
    result = hosts.primary(finished)
    return Run(experiment, workdir, command, report).run() if result is None else result


def _finished(
  workdir: pathlib.Path, experiment: Experiment, accept_changes: bool, report: Report | None = None
) -> dict[str, Any] | None:
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
    if report is not None:
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

  def __init__(
    self,
    experiment: Experiment,
    workdir: pathlib.Path,
    command: str | None = None,
    report: Report | None = None,
  ):
    self.experiment, self.workdir, self.config = experiment, workdir, experiment.config
    self.command, self.report = command, report
    self.phases = tuple(self.config.phases)
    self.steps_per_epoch = len(experiment.dataset.train) // self.config.data.batch_size
    self.steps = settings.phase_steps(self.config, len(experiment.dataset.train))
    of_primary = lambda: Progress(workdir, self.phases, experiment.task)
    self.progress = hosts.everywhere(lambda: of_primary() if hosts.is_primary() else Silence())
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
    say(f'budget {budgets}; {sum(l.has_kernel for l in experiment.layers)} layers')
    for note in experiment.notes:
      say(f'note: {note}')
    initial = experiment.initial
    if initial is not None:
      hosts.primary(lambda: weights.keep(self.workdir, initial))
      say(f'starts from {initial.origin}')
    with contextlib.closing(self.progress):
      states: dict[str, TrainState] = {}
      for phase in self.phases:
        states[phase] = self._make(phase, states)
      tested = {phase: state.variables for phase, state in states.items()}
      if experiment.initial is not None and experiment.initial.is_float:
        tested.setdefault('pretrain', hosts.agree(begin.float_variables(experiment)))
      measured = {phase: self._measured(phase, variables) for phase, variables in tested.items()}
      return hosts.primary(lambda: self._result(states, measured))

  def phase(self, name: str, states: dict[str, TrainState]) -> Phase:
    """A phase behind those that left `states`."""
    of_finetune = self.policy if name == 'finetune' else None
    return Phase(name, self.experiment, self.workdir, states=states, policy=of_finetune, progress=self.progress)

  def _make(self, name: str, states: dict[str, TrainState]) -> TrainState:
    """Runs a phase, or what is left of it; its last state, in host memory."""
    if name == 'finetune':
      self.policy = hosts.primary(lambda: self._fixed_policy(states))
    phase, steps = self.phase(name, states), self.steps[name]
    optimizer, train_step = phase.make_step(steps)
    start, _, meta = begun = phase.begin(optimizer, self.seconds)
    self.seconds = meta['seconds']
    reported = start - len(meta['pending'])
    later = self.phases[self.phases.index(name) + 1 :]
    have_begun = hosts.primary(lambda: any(newest_step(self.workdir, p) is not None for p in later))
    if start:
      # Whatever its length is now, a phase that later ones were built on has ended.
      steps = start if (start >= meta['steps'] and have_begun) or start > steps else steps
      self.progress.say(f'{name} is done' if start == steps else f'{name} continues at step {start} of {steps}')
    earlier_steps = sum(self.steps[p] for p in self.phases[: self.phases.index(name)])
    self.steps[name] = steps
    if start < steps or not have_begun:
      self.progress.rewind(name, reported, global_step=earlier_steps + reported)
    if name == 'search' and start < steps and not have_begun:
      hosts.primary(self._drop_policy)
    monitor = Monitor(
      self.experiment,
      name,
      steps=steps,
      steps_per_epoch=self.steps_per_epoch,
      start=start,
      reported=reported,
      best=meta['best'],
      earlier_steps=earlier_steps,
      earlier_seconds=self.seconds,
      progress=self.progress,
    )
    state = phase.run(begun, optimizer, train_step, monitor, steps)
    self.seconds, self.best = monitor.seconds(), monitor.best
    return state

  def _fixed_policy(self, states: dict[str, TrainState]) -> policy.Policy:
    """The policy of the finetuning: found in the folder, or given, or discretized from what was searched."""
    experiment, path = self.experiment, self.workdir / 'policy.json'
    found = policy.load(path, experiment.layers) if path.exists() else None
    if found is not None:
      remedy = 'put the old one back, raise the budget, or choose another --workdir'
      checks.check_policy(found, experiment.budget, experiment.layers, name=str(path), remedy=remedy)
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

  def _measured(self, phase: str, variables: begin.Variables) -> dict[str, float]:
    """The metrics of a phase's network on the test split."""
    experiment, data = self.experiment, self.config.data
    model = begin.model(experiment, phase)
    evaluate = begin.evaluator(model, experiment.dataset, data.batch_size, data.workers, experiment.task)
    return evaluate(placement.replicate(variables), 'test')

  def _result(self, states: dict[str, TrainState], measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    last = self.phases[-1]
    bits = None
    if last == 'search':
      bits = states[last].bits
    elif last == 'finetune':
      assert self.policy is not None
      bits = self.policy.bits()
    result = outcome.result(
      self.experiment,
      bits,
      measured,
      best=self.best,
      steps=sum(self.steps.values()),
      seconds=self.seconds,
      command=self.command,
    )
    if self.report is not None:
      self.report.write(self.workdir, result)
    write_whole(self.workdir / 'result.json', json.dumps(result, indent=2) + '\n')
    if self.report is not None:
      self.progress.say(self.report.summary(self.workdir, result))
    return result
