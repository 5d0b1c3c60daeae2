"""A supernet: every kernel and every input is a mixture of its quantized copies, one for each allowed bit-width.

It is EdMIPS (Cai and Vasconcelos 2020, arXiv 2004.05795), with one set of weights for all branches of a layer: a
tensor is sum_k softmax(l)_k x_k, with x_k quantized at the k-th allowed bit-width and learned logits l, and the network
costs what its expected bit-widths cost. `mixtures` makes a quantized network one, by the hook for quantizers; `search`
trains it by the project's own step, loop, optimizer and penalty.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fracbits_jax import cost, layers
from fracbits_jax.cost import Layer
from fracbits_jax.data.batches import train_batches
from fracbits_jax.quantize.unit import with_rank
from fracbits_jax.run import begin
from fracbits_jax.run.checkpoint import Checkpoints, newest_step
from fracbits_jax.run.experiment import prepare
from fracbits_jax.run.monitor import Monitor
from fracbits_jax.run.runner import Run
from fracbits_jax.run.settings import PHASES
from fracbits_jax.run.workdir import claim
from fracbits_jax.train import loop, placement, step
from fracbits_jax.train.penalty import Penalty
from fracbits_jax.train.step import TrainState

_EDGE = 0.499  # how far from an allowed bit-width one can be and still be rounded to it


@contextlib.contextmanager
def mixtures(weights_of: Callable[[jax.Array, tuple[int, ...]], jax.Array], *, remat: bool = False) -> Iterator[None]:
  """While this context is open, layers with learned bits are mixtures of all allowed bit-widths.

  Args:
    weights_of: the weights `[..., K]` of the K allowed bit-widths, from a layer's entry in the collection `bits`.
    remat: whether compilers may compute the copies again for the gradients, instead of keeping them.
  """

  def replacement(layer, which, x, bits, alpha, kept):
    quant = layer.quant
    fixed, choices = {
      'kernel': (quant.kernel_bits, quant.choices),
      'input': (quant.input_bits, quant.allowed_input_bits),
    }[which]

    def copy(x, b, alpha):
      if which == 'input':
        return layers.quantize_input(quant, x, b, alpha, learned=False)
      return layers.quantize_kernel(quant, x, b, alpha, kept=kept, learned=False)

    def mixed(x, bits, alpha):
      weights = weights_of(bits, choices).astype(x.dtype)
      return sum(with_rank(weights[..., k], x) * copy(x, b, alpha) for k, b in enumerate(choices))

    if fixed is not None:
      return copy(x, fixed, alpha)
    return (jax.checkpoint(mixed) if remat else mixed)(x, bits, alpha)

  with layers.replace_quantizers(replacement):
    yield


def first_logits(table: Sequence[Layer]) -> dict:
  """The collection `bits` of a supernet: logits `[..., K]`, the same for all allowed bit-widths."""
  zeros = lambda layer, which, choices: np.zeros((*cost.learned(layer)[which][0], len(choices)), np.float32)
  return _by_slot(table, zeros)


def expected_bits(logits: Any, table: Sequence[Layer]) -> dict:
  """The expected bit-widths, a collection `bits` like that of other networks."""

  def expected(layer, which, choices):
    weights = jax.nn.softmax(cost.bits_of(logits, layer.name, which))
    return jnp.sum(weights * with_rank(jnp.asarray(choices, jnp.float32), weights), axis=-1)

  return _by_slot(table, expected)


def chosen_bits(logits: Any, table: Sequence[Layer]) -> dict:
  """For each bit-width the point that is nearest to the expected one and is rounded to the likeliest.

  Where the likeliest bit-widths together meet a budget, discretization leaves them as they are; where they do not, it
  knows which are nearest to the next one.
  """
  expected = expected_bits(logits, table)

  def chosen(layer, which, choices):
    likeliest = np.argmax(cost.bits_of(logits, layer.name, which), axis=-1)
    order = np.arange(len(choices))
    position = np.interp(cost.bits_of(expected, layer.name, which), choices, order)
    near = np.clip(position, likeliest - _EDGE, likeliest + _EDGE)
    return np.interp(near, order, choices).astype(np.float32)

  return _by_slot(table, chosen)


def _by_slot(table: Sequence[Layer], value: Callable[[Layer, str, tuple[int, ...]], Any]) -> dict:
  bits: dict = {}
  for layer in table:
    for which, (_, choices) in cost.learned(layer).items():
      node = bits
      for key in layer.name.split('/'):
        node = node.setdefault(key, {})
      node[which] = value(layer, which, choices)
  return bits


class ExpectedPenalty(Penalty):
  """The cost term of a supernet's loss, of its expected bit-widths."""

  def __call__(self, bits: Any, multiplier: jax.Array) -> tuple[jax.Array, jax.Array]:
    return super().__call__(expected_bits(bits, self.layers), multiplier)


def search(config: ConfigDict, workdir: str | os.PathLike) -> None:
  """Searches with a supernet in the folder of a run, whose `search` this then is: `run.run` goes on with what it left.

  Nothing is saved on the way: a search that is interrupted begins again. Its rows, and `searched_accuracy`, are of the
  network with fractional bits at the expected ones, since the supernet itself cannot be deployed.
  """
  workdir = pathlib.Path(workdir)
  experiment = prepare(config, workdir)
  claim(workdir, experiment.config, accept_changes=False, say=print)
  if newest_step(workdir, 'search') is None:
    run = Run(experiment, workdir)
    with contextlib.closing(run.progress):
      _search(run)


def start(run: Run) -> tuple[optax.GradientTransformation, TrainState, Callable]:
  """The optimizer of a run's search by a supernet, its first state and its step, both for all devices."""
  experiment = run.experiment
  rate = begin.schedule(experiment, 'search', steps=run.steps['search'], steps_per_epoch=run.steps_per_epoch)
  optimizer = begin.optimizer(experiment, 'search', rate)
  penalty = begin.budget_penalty(experiment, rate)
  penalty = ExpectedPenalty(**{name: getattr(penalty, name) for name in ('budget', 'layers', 'kappa', 'controller')})
  one_device = step.make_train_step(begin.model(experiment, 'search'), optimizer, penalty=penalty)

  def supernet_step(state, batch):
    with mixtures(lambda logits, choices: jax.nn.softmax(logits)):
      return one_device(state, batch)

  variables = {**run.phase('search', {}).start(), 'bits': first_logits(experiment.layers)}
  state = placement.replicate(begin.state(variables, optimizer))
  return optimizer, state, step.over_devices(supernet_step, donate_state=True)


def _search(run: Run) -> None:
  experiment, steps, table = run.experiment, run.steps['search'], run.experiment.layers
  optimizer, state, train_step = start(run)
  run.progress.rewind('search', 0, global_step=0)
  monitor = Monitor(
    experiment,
    'search',
    steps=steps,
    steps_per_epoch=run.steps_per_epoch,
    start=0,
    reported=0,
    best=None,
    earlier_steps=0,
    earlier_seconds=0.0,
    progress=run.progress,
  )
  expected = jax.jit(jax.vmap(lambda logits: expected_bits(logits, table)))
  batches = train_batches(
    experiment.dataset,
    batch_size=experiment.config.data.batch_size,
    seed=experiment.config.seed + PHASES.index('search'),
    workers=experiment.config.data.workers,
  )
  checkpoints = Checkpoints(run.workdir, 'search')

  def save(step: int, state: TrainState, pending: list[loop.Metrics]) -> None:
    if step == steps:
      state = placement.unreplicate(state)
      found = begin.state({**state.variables, 'bits': chosen_bits(state.bits, table)}, optimizer)
      meta = {
        'data': batches.get_state(),
        'seconds': monitor.seconds(),
        'pending': pending,
        'best': None,
        'steps': steps,
      }
      checkpoints.save(steps, jax.tree.map(np.asarray, found.replace(step=state.step)), meta)

  with contextlib.closing(batches), contextlib.closing(checkpoints):
    loop.run_phase(
      state,
      train_step,
      batches,
      start=0,
      steps=steps,
      report_steps=min(run.steps_per_epoch, experiment.config.report_steps),
      report=lambda step, state, pending: monitor.report(step, state.replace(bits=expected(state.bits)), pending),
      save=save,
      save_seconds=math.inf,
    )
