"""One phase of a run: what it begins with, its step, its batches, its checkpoints, and the loop over them."""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from fracbits_jax.data.batches import TrainBatches, train_batches
from fracbits_jax.policy import Policy
from fracbits_jax.run import begin
from fracbits_jax.run.best_states import BestStates
from fracbits_jax.run.checkpoint import PrimaryCheckpoints
from fracbits_jax.run.experiment import Experiment
from fracbits_jax.run.monitor import Monitor
from fracbits_jax.run.progress import Progress, Silence, duration
from fracbits_jax.run.settings import PHASES
from fracbits_jax.train import hosts, loop, nonfinite, placement, preemption
from fracbits_jax.train.nonfinite import NotFinite
from fracbits_jax.train.step import TrainState

Saved = tuple[int, TrainState, dict[str, Any]]


class Phase:
  """A phase, and what the phases before it left.

  Args:
    name: of the phase.
    experiment: of the run.
    workdir: its folder.
    states: the last states of the phases before.
    policy: the integer bit-widths of the finetuning; `None` before.
    progress: what is told how far it is.
  """

  def __init__(
    self,
    name: str,
    experiment: Experiment,
    workdir: pathlib.Path,
    *,
    states: dict[str, TrainState],
    policy: Policy | None = None,
    progress: Progress | Silence | None = None,
  ):
    self.name, self.experiment, self.config, self.workdir = name, experiment, experiment.config, workdir
    self.states, self.policy = states, policy
    self.progress = Silence() if progress is None else progress
    self.steps_per_epoch = len(experiment.dataset.train) // self.config.data.batch_size

  def start(self) -> begin.Variables:
    """The variables that the phase begins with, made of what the phases before it left."""
    if self.name == 'pretrain':
      return begin.float_variables(self.experiment)
    bits = begin.initial_bits(self.experiment) if self.policy is None else begin.bits_of(self.experiment, self.policy)
    if 'search' in self.states and (self.config.search.weights_rate or not self.config.quant.calibration_batches):
      return begin.at_integer_bits(self.experiment, self.states['search'].variables, bits)
    # Behind a search that kept the weights, clips and ranges are those of the integers.
    return begin.quantized_variables(self.experiment, self._float(), bits, calibrated='search' in self.states)

  def _float(self) -> begin.Variables:
    """The variables of the float network."""
    return self.states['pretrain'].variables if 'pretrain' in self.states else begin.float_variables(self.experiment)

  def make_step(self, steps: int) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer of the phase and its mapped step, a distilled one where the configuration says so."""
    rate = begin.schedule(self.experiment, self.name, steps=steps, steps_per_epoch=self.steps_per_epoch)
    optimizer = begin.optimizer(self.experiment, self.name, rate)
    return optimizer, begin.train_step(self.experiment, self.name, optimizer, rate, self._teacher(), steps)

  def _teacher(self) -> begin.Variables | None:
    """The variables of the float network, where the phase is distilled from it."""
    how = self.config.distill
    if not how.weight or self.name not in how.phases:
      return None
    if 'pretrain' in self.states:
      return self.states['pretrain'].variables
    return hosts.agree(begin.float_variables(self.experiment))

  def load(self, optimizer: optax.GradientTransformation) -> Saved | None:
    """The steps done, the state after them, and what its checkpoint says beside it; `None` where there is none."""
    like = jax.eval_shape(lambda shapes: begin.state(shapes, optimizer), begin.shapes(self.experiment, self.name))
    with contextlib.closing(PrimaryCheckpoints(self.workdir, self.name, say=self.progress.say)) as checkpoints:
      found = checkpoints.restore(like)
    if found is not None and self.policy is not None:
      bits = begin.bits_of(self.experiment, self.policy)
      if not all(jax.tree.leaves(jax.tree.map(np.array_equal, bits, found[1].bits))):
        raise ValueError(
          f'{self.workdir / "policy.json"} is not the policy that was finetuned in this folder: put the old one back, '
          'or choose another --workdir'
        )
    return found

  def begin(self, optimizer: optax.GradientTransformation, seconds: float) -> Saved:
    """Where the phase goes on, as `load`; at its start where it has no checkpoint."""
    found = self.load(optimizer)
    if found is None:
      self.progress.doing(f'{self.name}: compiling')
      state = hosts.primary(lambda: begin.state(self.start(), optimizer))
      if begin.keeps_norm(self.experiment, self.name) and self.config[self.name].reestimate_batches:
        state = placement.unreplicate(self._with_statistics(placement.replicate(state)))
      found = 0, state, {'data': None, 'seconds': seconds, 'pending': [], 'best': None, 'steps': 0}
    return found

  def _with_statistics(self, state: TrainState) -> TrainState:
    keeps = begin.keeps_norm(self.experiment, self.name)
    return begin.with_statistics(self.experiment, self.name, state, hosts.agree(self._float()) if keeps else None)

  def batches(self, position: Any = None) -> TrainBatches:
    """The training batches of the phase, from where a checkpoint left them."""
    settings = self.config.data
    batches = train_batches(
      self.experiment.dataset,
      batch_size=settings.batch_size,
      seed=self.config.seed + PHASES.index(self.name),
      workers=settings.workers,
      shard=placement.host_shard(),
      wait=preemption.waiting,
    )
    if position is not None:
      batches.set_state(position)
    return batches

  def run(
    self, begun: Saved, optimizer: optax.GradientTransformation, train_step: Callable, monitor: Monitor, steps: int
  ) -> TrainState:
    """Makes the steps up to `steps`; the last state, in host memory.

    Raises:
      FloatingPointError: values that are not finite; says where.
    """
    start, state, meta = begun
    config, name, say = self.config, self.name, self.progress.say
    batches = self.batches(meta['data'])
    checkpoints = PrimaryCheckpoints(self.workdir, name, say=say)
    best = BestStates(self.workdir, name, start=start, say=say) if name == 'finetune' else None

    def report(step: int, state: TrainState, pending: list[loop.Metrics]) -> None:
      monitor.report(step, state, pending)
      if best is not None and monitor.best is not None and monitor.best['step'] == step:
        best.save(step, placement.unreplicate(state), monitor.best)

    def save(step: int, state: TrainState, pending: list[loop.Metrics]) -> None:
      state = placement.unreplicate(state)
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
      state = jax.block_until_ready(self._with_statistics(state))
      monitor.leave_out(time.monotonic() - began)
      return state

    # Weights that followed under statistics of the float network, moved at the start, are theirs.
    follows = begin.keeps_norm(self.experiment, name) and config[name].weights_rate
    report_steps = min(self.steps_per_epoch, config.report_steps)
    try:
      with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(contextlib.closing(checkpoints))
        if best is not None:
          stack.enter_context(contextlib.closing(best))
        state = loop.run_phase(
          placement.replicate(state),
          self._announced(train_step, report_steps),
          batches,
          start=start,
          steps=steps,
          pending=meta['pending'],
          report_steps=report_steps,
          report=report,
          save=save,
          save_steps=config.checkpoint_steps,
          save_seconds=config.checkpoint_seconds,
          finish=finish if config[name].reestimate_batches and not follows else None,
        )
    except NotFinite as error:
      raise FloatingPointError(f'{error}; {self._explain(optimizer, train_step, error.step)}') from None
    return placement.unreplicate(state)

  def _announced(self, train_step: Callable, report_steps: int) -> Callable:
    """The step, which says that it is compiled, the first time it is called, and how long that took."""
    compiled = False

    def announced(state: TrainState, batch: Any) -> tuple[TrainState, loop.Metrics]:
      nonlocal compiled
      if compiled:
        return train_step(state, batch)
      self.progress.doing(f'{self.name}: compiling')
      began, compiled = time.monotonic(), True
      done = train_step(state, batch)
      seconds = duration(time.monotonic() - began)
      self.progress.doing(f'{self.name}: compiled in {seconds}, trains; a row comes every {report_steps} steps')
      return done

    return announced

  def _explain(self, optimizer: optax.GradientTransformation, train_step: Callable, failed: int) -> str:
    """Where values stopped being finite, found by making the steps up to the failed one again, and what is saved."""
    step, state, meta = self.begin(optimizer, 0.0)
    with contextlib.closing(self.batches(meta['data'])) as batches:
      model = begin.model(self.experiment, self.name)
      steps = range(step + 1, failed + 1)
      where = nonfinite.origin(model, train_step, state, batches, steps, self.experiment.task)
    saved = f'the last good checkpoint is that of step {step}' if step else f'{self.name} has no checkpoint yet'
    remedy = f'lower {self.name}.learning_rate or set optimizer.clip_norm if the data are sound'
    return f'the first values that are not finite: {where}; {saved}; {remedy}'
