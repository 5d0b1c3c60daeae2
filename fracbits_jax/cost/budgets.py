"""Budgets: a metric and the most that a network may cost in it."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.cost import lookup
from fracbits_jax.cost.layer_table import Bits, Layer, bits_range, least_bits, uniform_bits
from fracbits_jax.cost.memory import peak_memory, shares
from fracbits_jax.cost.metrics import bitops, bits_per_weight, lookup_cost, model_size, quantized_rows
from fracbits_jax.layers import FLOAT_BITS

METRICS = ('bitops', 'size', 'lookup', 'memory')
_ROUNDING = 1e-12  # of sums in float64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """A metric and the most that the network may cost in it; more budgets can be held at the same time.

  Attributes:
    metric: `bitops`, `size`, `lookup` or `memory`.
    target: the most that the network may cost, in `unit`.
    table: the lookup table of the metric `lookup`.
    also: further budgets that have to hold as well.
  """

  metric: str
  target: float
  table: lookup.Table | None = None
  also: tuple['Budget', ...] = ()

  def __post_init__(self):
    if self.metric not in METRICS:
      raise ValueError(f'budget metric {self.metric!r} is unknown: choose one of {", ".join(METRICS)}')
    if (self.metric == 'lookup') != (self.table is not None):
      has = 'needs a lookup table' if self.table is None else 'takes no lookup table'
      raise ValueError(f'budget metric {self.metric!r} {has}: tables go with the metric lookup')
    if not 0 < self.target < math.inf:
      raise ValueError(f'budget target {self.target!r} is not a cost: give a number above 0, in {self.unit}')

  @property
  def unit(self) -> str:
    """The unit of the target."""
    return (
      {'bitops': 'GBitOPs', 'size': 'MB', 'memory': 'kB of RAM'}[self.metric]
      if self.table is None
      else self.table.total
    )

  @property
  def all(self) -> tuple['Budget', ...]:
    """This budget and those that hold beside it."""
    return (self, *self.also)

  def cost(self, bits: Bits, layers: Sequence[Layer]) -> Any:
    """The cost of `bits` in this budget's metric."""
    if self.table is not None:
      return lookup_cost(bits, layers, self.table)
    return {'bitops': bitops, 'size': model_size, 'memory': peak_memory}[self.metric](bits, layers)

  @property
  def is_sum(self) -> bool:
    """Whether the cost is a sum over the layers."""
    return self.metric != 'memory'

  def shares(self, bits: Bits, layers: Sequence[Layer]) -> list[float]:
    """The share of each layer in the cost; of memory that of its inputs where most is stored at once."""
    if not self.is_sum:
      found = shares(bits, layers)
      return [found[layer.name] for layer in layers]
    total = float(self.cost(bits, layers))
    return [float(self.cost(bits, (l,))) / total if total else 0.0 for l in layers]

  def spent(self, bits: Bits, layers: Sequence[Layer]) -> tuple[dict[str, Any], ...]:
    """What `bits` cost under this budget and those beside it: metric, unit, target and cost of each."""
    return tuple(
      {'metric': b.metric, 'unit': b.unit, 'target': b.target, 'cost': float(b.cost(bits, layers))} for b in self.all
    )

  def ratio(self, bits: Bits, layers: Sequence[Layer], targets: Sequence[Any] | None = None) -> Any:
    """C(bits) / C_target, of the budget that is used most.

    Args:
      bits, layers: as for `cost`.
      targets: in place of those of `all`, such as arguments of a compiled function.
    """
    targets = [b.target for b in self.all] if targets is None else targets
    ratios = [b.cost(bits, layers) / target for b, target in zip(self.all, targets, strict=True)]
    larger = jnp.maximum if any(isinstance(r, jax.Array) for r in ratios) else np.maximum
    return functools.reduce(larger, ratios)

  def holds(self, bits: Bits, layers: Sequence[Layer]) -> bool:
    """Whether `bits` meet the target, and those of the budgets beside it."""
    return all(b.cost(bits, layers) <= b.target for b in self.all)

  def penalty(self, bits: Bits, layers: Sequence[Layer]) -> jax.Array:
    """|C(bits) / C_target - 1|, the differentiable term of the loss (FracBits, section 3.3)."""
    return jnp.abs(self.ratio(bits, layers) - 1)


def _cost(metric: str, bits: Bits, layers: Sequence[Layer], table: lookup.Table | None) -> float:
  return float(Budget(metric=metric, target=1.0, table=table).cost(bits, layers))


def cost_range(metric: str, layers: Sequence[Layer], table: lookup.Table | None = None) -> tuple[float, float]:
  """The least and the largest cost that the allowed bit-widths can reach."""
  return _cost(metric, least_bits(layers), layers, table), _cost(metric, bits_range(layers)[1], layers, table)


def equivalent_bits(budget: Budget, layers: Sequence[Layer]) -> float:
  """The largest bit-width whose uniform assignment meets the budget, from 0 to 32 (by bisection)."""
  low, high = 0.0, float(FLOAT_BITS)
  for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if budget.holds(uniform_bits(layers, middle), layers) else (low, middle)
  return high


def budget(
  metric: str,
  layers: Sequence[Layer],
  *,
  target: float | None = None,
  equivalent_bits: float | None = None,
  bits_per_weight: float | None = None,
  table: lookup.Table | None = None,
  also: Sequence[Budget] = (),
) -> Budget:
  """A budget for a network, checked against what its allowed bit-widths can reach.

  Args:
    metric: a name in `METRICS`.
    layers: the layer table.
    target: the budget in the metric's unit.
    equivalent_bits: instead of a target, the bit-width whose uniform assignment costs as much.
    bits_per_weight: instead of a target of the metric `size`, the bits that a quantized weight may take in the mean, as
      `metrics.bits_per_weight` counts them. What else has a size, biases and weights that stay float, comes on top.
    table: the lookup table of the metric `lookup`.
    also: budgets that have to hold as well.

  Raises:
    ValueError: unless exactly one of target, equivalent_bits and bits_per_weight is given; if no allowed assignment
      meets the target, or the largest one already does; if the lookup table does not cover the allowed bit-widths.
  """
  if sum(amount is not None for amount in (target, equivalent_bits, bits_per_weight)) != 1:
    raise ValueError(
      f'a budget needs one of target={target}, equivalent_bits={equivalent_bits} and bits_per_weight='
      f'{bits_per_weight}: give exactly one'
    )
  for found in (table, *(b.table for b in also)):
    if found is not None:
      found.check(layers)
  given = f'target={target}'
  if bits_per_weight is not None:
    given, target = f'bits_per_weight={bits_per_weight}', _size_at(metric, layers, bits_per_weight)
  elif target is None:
    assert equivalent_bits is not None
    if not 0 <= equivalent_bits <= FLOAT_BITS:
      raise ValueError(f'equivalent_bits={equivalent_bits} is no bit-width: give a number from 0 to {FLOAT_BITS}')
    given = f'equivalent_bits={equivalent_bits}'
    target = _cost(metric, uniform_bits(layers, equivalent_bits), layers, table)
  beside = []
  for other in also:
    least = cost_range(other.metric, layers, other.table)[0]
    if other.target < least * (1 - _ROUNDING):
      raise ValueError(
        f'the {other.metric} budget beside it, {other.target:.6g} {other.unit}, cannot be met by any allowed bits: '
        f'give at least {_rounded_up(least)} {other.unit}, or allow other bit-widths'
      )
    beside.append(dataclasses.replace(other, target=max(other.target, least)))
  target = _checked_target(given, metric, target, layers, table)
  return Budget(metric=metric, target=target, table=table, also=tuple(beside))


def _size_at(metric: str, layers: Sequence[Layer], per_weight: float) -> float:
  """The size of a network, in MB, whose quantized weights take so many bits in the mean.

  Raises:
    ValueError: another metric than `size`, or a number of bits that the allowed bit-widths cannot reach.
  """
  given = f'bits_per_weight={per_weight}'
  if metric != 'size':
    raise ValueError(
      f'budget {given} is about the size of the weights, and metric={metric} is not: give metric=size, or a target in '
      f'the unit of {metric}'
    )
  weights = sum(layer.weights for layer in quantized_rows(layers))
  if not weights:
    raise ValueError(f'budget {given} is given to a network without quantized weights: quantize some, or leave it out')
  low, high = (float(bits_per_weight(bits, layers)) for bits in (least_bits(layers), bits_range(layers)[1]))
  if low == high:
    raise ValueError(
      f'budget {given} leaves nothing to choose: the allowed bit-widths have one assignment, of {low:.6g} bits a '
      'weight; allow at least two bit-widths'
    )
  if not low * (1 - _ROUNDING) <= per_weight < high:
    problem = 'is already met by the largest' if per_weight >= high else 'cannot be met by any'
    raise ValueError(
      f'budget {given} {problem} allowed assignment of bits: give at least {_rounded_up(low)} and below {high:.6g}, '
      'what the allowed bit-widths take with the ranges of their groups, or allow other bit-widths'
    )
  largest = bits_range(layers)[1]
  # By what is saved of the largest assignment, so that biases and float weights count as there. What rounds in a sum of
  # many layers must not take the very assignment away that takes so many bits.
  saved = (high - per_weight) * weights * 0.125e-6
  return (float(model_size(largest, layers)) - saved) * (1 + _ROUNDING)


def _checked_target(
  given: str, metric: str, target: float, layers: Sequence[Layer], table: lookup.Table | None
) -> float:
  """A target, no smaller than the least cost where it is that but for rounding.

  Raises:
    ValueError: a target, `given` in these words, that is not within what the allowed bit-widths can reach.
  """
  (low, high), unit = cost_range(metric, layers, table), Budget(metric=metric, target=1.0, table=table).unit
  if low == high:
    raise ValueError(
      f'budget {given} leaves nothing to choose: the allowed bit-widths have one assignment, which costs {low:.6g} '
      f'{unit}; allow at least two bit-widths'
    )
  if not low * (1 - _ROUNDING) <= target < high:
    problem = 'is already met by the largest' if target >= high else 'cannot be met by any'
    bits = [equivalent_bits(Budget(metric=metric, target=x or 1e-30, table=table), layers) for x in (low, high)]
    raise ValueError(
      f'budget {given} ({target:.6g} {unit}) {problem} allowed assignment of bits: give a target of at least '
      f'{_rounded_up(low)} and below {high:.6g} {unit}, the cost of {bits[0]:.4g} to {bits[1]:.4g} bits everywhere, or '
      'allow other bit-widths'
    )
  return max(target, low)


def _rounded_up(value: float) -> str:
  """A number with six digits that is not below the true one, but for what rounding adds."""
  text = f'{value:.6g}'
  return text if float(text) >= value * (1 - _ROUNDING) else f'{value * (1 + 1e-5):.6g}'
