"""The optimizer of every phase: one for the weights, and another, at a rate of its own, for the bits."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from fracbits_jax import cost
from fracbits_jax.cost import Budget, Layer, range_names
from fracbits_jax.fast.stored import stored_on_cpu
from fracbits_jax.program.trace import leaves_by_path, path_of

MOST_SCALE = 1e4  # of the gradient of a bit-width, before the power


def cosine_part(
  base: float, steps: int, *, warmup_steps: int = 0, part: tuple[float, float] = (0.0, 1.0)
) -> optax.Schedule:
  """The stretch from `part[0]` to `part[1]` of one cosine decay, spread over `steps`.

      rate(t) = base (1 + cos(pi p)) / 2,    p from part[0] at t = 0 to part[1] at t = steps

  Several phases can share one schedule this way: (0, 0.8) for the search, (0.8, 1) for the finetuning.

  Args:
    base: the rate at p = 0.
    steps: length of the phase in steps.
    warmup_steps: steps over which the rate rises linearly from 0 to the schedule.
    part: where in the cosine the phase begins and ends, both from 0 to 1.
  """

  def schedule(step):
    p = part[0] + (part[1] - part[0]) * jnp.minimum(step / max(steps, 1), 1)
    return base * 0.5 * (1 + jnp.cos(math.pi * p)) * jnp.minimum((step + 1) / (warmup_steps + 1), 1)

  return schedule


def decay_mask(params: Any, layers: Sequence[Layer]) -> Any:
  """A tree like `params`, true for the kernels of dense layers and of convolutions that are not depthwise."""
  decayed = {f'{layer.path}/kernel' for layer in layers if layer.has_kernel and layer.kind != 'depthwise'}
  flat = traverse_util.flatten_dict(params, sep='/')
  missing = decayed - flat.keys()
  if missing:
    raise ValueError(f'no parameters {", ".join(sorted(missing))}: the layer table belongs to another network')
  return traverse_util.unflatten_dict({name: name in decayed for name in flat}, sep='/')


def _sgd(rate: optax.Schedule, momentum: float, weight_decay: float, mask: Any) -> optax.GradientTransformation:
  return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate, momentum, nesterov=True))


def _adamw(rate: optax.Schedule, momentum: float, weight_decay: float, mask: Any) -> optax.GradientTransformation:
  return optax.adamw(rate, momentum, weight_decay=weight_decay, mask=mask)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {'sgd': _sgd, 'adamw': _adamw}
BITS_OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
  'sgd': lambda rate, momentum: optax.sgd(rate, momentum, nesterov=True),
  'adam': lambda rate, momentum: optax.adam(rate, momentum, b2=0.99),
}


def optimizer(
  name: str,
  schedule: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  mask: Any,
  bits_rate: float | None,
  clip_norm: float | None = None,
  bits_name: str = 'sgd',
  bits_clip: float | None = None,
  bits_scale: Any = None,
  bits_rates: Any = None,
) -> optax.GradientTransformation:
  """The optimizer for the tree `{'params': ..., 'bits': ...}`.

  Args:
    name: what moves the parameters, of `OPTIMIZERS`: `sgd`, with Nesterov momentum, which the decay goes through, or
      `adamw`, whose decay is decoupled, of each step's learning rate.
    schedule: learning rate of the parameters by step.
    momentum: of parameters and bits alike; for Adam beta 1.
    weight_decay: of the parameters where `mask` is true.
    mask: tree of booleans like `params`.
    bits_rate: the bits' learning rate as a multiple of the schedule; `None` keeps the bits as they are.
    clip_norm: the largest norm of the gradient of all parameters together; a longer one is shortened to it, before all
      else (Pascanu et al. 2013, arXiv 1211.5063). `None` follows any.
    bits_name: what moves the bits, of `BITS_OPTIMIZERS`.
    bits_clip: the largest gradient of a bit-width, either way, that is followed; `None` follows any.
    bits_scale: a tree like the bits, by which their gradients are multiplied before all else, such as `bits_scale`'s.
    bits_rates: a tree like the bits, of multiples of `bits_rate`, such as `channel_rates`'s.
  """
  rate = _computed_once(schedule)
  weights = OPTIMIZERS[name](rate, momentum, weight_decay, {'params': mask, 'bits': False})
  weights = optax.chain(optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm), weights)
  return with_bits(weights, _of_bits(rate, momentum, bits_rate, bits_name, bits_clip, bits_scale, bits_rates))


def _computed_once(schedule: optax.Schedule) -> optax.Schedule:
  """A schedule that is not computed again in the update of each parameter."""
  return lambda step: stored_on_cpu(lambda step: jnp.asarray(schedule(step), jnp.float32), step)


def _of_bits(
  schedule: optax.Schedule,
  momentum: float,
  bits_rate: float | None,
  name: str,
  clip: float | None,
  scale: Any,
  rates: Any,
) -> optax.GradientTransformation | None:
  if bits_rate is None:
    return None
  # All of them, asked for or not: the state has one form, so that a run can go on with others.
  return optax.chain(
    _times(scale),
    optax.identity() if clip is None else optax.clip(clip),
    BITS_OPTIMIZERS[name](lambda step: bits_rate * schedule(step), momentum),
    _times(rates),
  )


def _times(factors: Any) -> optax.GradientTransformation:
  """Multiplies the updates of bits by a tree like them, or leaves them alone by `None`."""
  if factors is None:
    return optax.identity()
  return optax.stateless(lambda updates, _: {**updates, 'bits': jax.tree.map(jnp.multiply, updates['bits'], factors)})


def channel_rates(layers: Sequence[Layer], bits: Any, rate: float) -> Any:
  """Multiples of the bits' rate: `rate` for the bit-widths of channels, and 1 for those of whole layers.

  The bit-width of a channel sees its share of the gradient that the layer's one would see, and moves by as much less at
  the same rate. Where all have a rate that suits channels, the inputs' bits, one for a layer, jump from end to end.

  Args:
    layers: the layer table.
    bits: the collection, of which the structure counts.
    rate: of the channels.

  Returns:
    A tree like `bits` of floats.
  """
  by_channel = {f'{layer.path}/kernel' for layer in layers if layer.per_channel}
  flat = traverse_util.flatten_dict(bits, sep='/')
  return traverse_util.unflatten_dict({name: rate if name in by_channel else 1.0 for name in flat}, sep='/')


def bits_scale(budget: Budget, layers: Sequence[Layer], bits: Any, power: float) -> Any:
  """What gradients of bit-widths are multiplied by, so that those which cost little do not lag behind.

  Where the budget is met with the least loss, a bit-width's gradient of the loss is in proportion to that of the cost:
  a layer with a hundredth of the weights has a hundredth of the gradient, and plain descent moves its bits a hundred
  times slower. With s the share of a bit-width, the cost's derivative by it, and S that of the layer that has most,

      g <- g (S / s)^power

  and with a power of 1 what counts is the gradient for each unit of the budget. Where the search ends, if it is long
  enough, stays the same. A layer with bits for each channel is one of the shares in S, and each of its bit-widths has
  its own s.

  Args:
    budget: what has to hold; of several budgets the one in which a bit-width has its largest share counts for it.
    layers: the layer table.
    bits: the collection at which shares are taken, such as that of the first step.
    power: 0 leaves gradients as they are.

  Returns:
    A tree like `bits`, float32, at least 1 and at most `MOST_SCALE`; 1 where a bit-width costs nothing.
  """
  start, found = jax.tree.map(jnp.asarray, bits), []
  for each in budget.all:
    ratio = lambda bits, each=each: jnp.asarray(each.cost(bits, layers) / each.target, jnp.float32)
    found.append(jax.tree.map(np.asarray, jax.grad(ratio)(start)))
  shares = jax.tree.map(lambda *by_budget: np.maximum.reduce(by_budget), *found)
  flat = traverse_util.flatten_dict(shares, sep='/')
  largest = max(flat[f'{layer.path}/{which}'][layer.index].sum() for layer in layers for which in cost.learned(layer))
  scale = lambda s: np.where(s > 0, np.clip(largest / np.where(s > 0, s, 1), 1, MOST_SCALE), 1) ** power
  return jax.tree.map(lambda share: np.asarray(scale(share), np.float32), shares)


def with_weights_rate(
  optimizer: optax.GradientTransformation, rate: float, layers: Sequence[Layer]
) -> optax.GradientTransformation:
  """An optimizer for the tree `{'params': ..., 'bits': ...}` that moves weights at `rate` times its own rate.

  Weights are all parameters but the ranges of `layers`, the layer table; at a rate of 0 they stay as they are.
  """

  def scaled(updates: Any, params: Any) -> Any:
    del params
    ranges = range_names(layers, leaves_by_path(updates['params']))
    scale = lambda path, update: update if path_of(path) in ranges else rate * update
    return {**updates, 'params': jax.tree_util.tree_map_with_path(scale, updates['params'])}

  return optax.chain(optimizer, optax.identity() if rate == 1 else optax.stateless(scaled))


def with_bits(
  weights: optax.GradientTransformation, bits: optax.GradientTransformation | None
) -> optax.GradientTransformation:
  """One optimizer for the tree `{'params': ..., 'bits': ...}`, of one for each; `None` keeps the bits as they are."""
  return optax.named_chain(
    ('weights', optax.masked(weights, {'params': True, 'bits': False})),
    ('bits', optax.masked(optax.set_to_zero() if bits is None else bits, {'params': False, 'bits': True})),
  )


def project_bits(bits: Any, bits_range: tuple[Any, Any]) -> Any:
  """The collection `bits` with each bit-width in its range, `cost.bits_range`; beyond it none would have a gradient."""
  lowest, largest = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree) for tree in bits_range)
  return jax.tree.map(jnp.clip, bits, lowest, largest)


def apply_updates(learned: Any, updates: Any, bits_range: tuple[Any, Any] | None) -> Any:
  """`optax.apply_updates` for the tree `{'params': ..., 'bits': ...}`, with the bits projected into their range.

  Args:
    learned: parameters and bits.
    updates: of an optimizer.
    bits_range: the least and the largest value of every bit-width, of `cost.bits_range`; `None` leaves the bits free.
  """
  learned = optax.apply_updates(learned, updates)
  return learned if bits_range is None else {**learned, 'bits': project_bits(learned['bits'], bits_range)}
