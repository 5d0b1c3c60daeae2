"""What a network costs, as a function of its bit-widths, and the budgets that hold it.

A cost is a pure function of `(bits, layer table)`, so that it is exact for integer policies and differentiable for
fractional ones. NumPy bits give NumPy results, JAX bits JAX results. No cost falls when a bit-width rises.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax import lookup
from fracbits_jax.layer_table import (
  Bits,
  Layer,
  bits_of,
  bits_range,
  fill_bits,
  gates,
  learned,
  least_bits,
  trace,
  uniform_bits,
)
from fracbits_jax.layers import FLOAT_BITS, QuantConfig

__all__ = [
  'METRICS', 'Bits', 'Budget', 'Layer', 'bitops', 'bits_of', 'bits_range', 'budget', 'cost_range', 'equivalent_bits',
  'fill_bits', 'format_table', 'gates', 'learned', 'least_bits', 'lookup_cost', 'model_size', 'trace', 'uniform_bits',
]  # fmt: skip


def _at(bits: Bits, layer: Layer, which: str) -> Any:
  """A bit-width of a layer, fixed or learned: `()`, or `[C_out]` for kernels with one a channel."""
  fixed = layer.kernel_bits if which == 'kernel' else layer.input_bits
  return bits_of(bits, layer.name, which) if fixed is None else fixed


def _mean(value: Any, bits: Bits, layer: Layer) -> Any:
  """What each output channel's share of a layer adds up to, without the input channels that are pruned."""
  kept = gates(bits, layer)
  if kept is not None and layer.kind == 'depthwise':
    return (value * kept).mean()  # the filter goes with the channel that it filters
  mean = value.mean() if np.ndim(value) else value
  return mean if kept is None else mean * kept.mean()


def _sum(values: Iterable[Any]) -> Any:
  """The sum, of plain numbers to the last digit: two assignments that cost the same are the same to a budget."""
  values = list(values)
  return sum(values) if any(isinstance(v, jax.Array) for v in values) else math.fsum(values)


def bitops(bits: Bits, layers: Sequence[Layer]) -> Any:
  """BitOPs of one example, the sum of M w a over the layers, in 10^9 (GBitOPs).

  Pruned channels are gone from the layers that make them and from those that they feed.

  Args:
    bits: the collection `bits`; a kernel's `[C_out]` bit-widths enter as their mean w.
    layers: the layer table of `trace`.

  Raises:
    ValueError: if a layer's bits are missing.
  """
  return _sum(l.macs * 1e-9 * _mean(_at(bits, l, 'kernel'), bits, l) * _at(bits, l, 'input') for l in layers)


def model_size(bits: Bits, layers: Sequence[Layer]) -> Any:
  """Size of the weights, the sum of K w / 8 and 4 bytes for each bias, in 10^6 bytes (MB). Arguments as `bitops`."""
  return _sum(l.weights * 0.125e-6 * _mean(_at(bits, l, 'kernel'), bits, l) + l.biases * 4e-6 for l in layers)


def lookup_cost(bits: Bits, layers: Sequence[Layer], table: lookup.Table) -> Any:
  """The sum of M t(w, a) over the layers, t the table's cost of a multiply-accumulate, in 10^9 of its unit.

  Between two allowed bit-widths a cost is interpolated, as the quantizer is. A kernel with a bit-width for each channel
  costs the mean of what its channels cost. Other arguments as `bitops`.
  """

  def layer_cost(l: Layer) -> Any:
    kernel_bits = l.choices if l.kernel_bits is None else (l.kernel_bits,)
    allowed = table.over(kernel_bits, l.input_choices if l.input_bits is None else (l.input_bits,))
    return l.macs * 1e-9 * _mean(allowed.per_mac(l.kind, _at(bits, l, 'kernel'), _at(bits, l, 'input')), bits, l)

  return _sum(map(layer_cost, layers))


METRICS = ('bitops', 'size', 'lookup')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """A metric and the most that the network may cost in it; more budgets can be held at the same time.

  Attributes:
    metric: `bitops`, `size` or `lookup`.
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
    return {'bitops': 'GBitOPs', 'size': 'MB'}[self.metric] if self.table is None else self.table.total

  @property
  def all(self) -> tuple['Budget', ...]:
    """This budget and those that hold beside it."""
    return (self, *self.also)

  def cost(self, bits: Bits, layers: Sequence[Layer]) -> Any:
    """The cost of `bits` in this budget's metric."""
    if self.table is not None:
      return lookup_cost(bits, layers, self.table)
    return {'bitops': bitops, 'size': model_size}[self.metric](bits, layers)

  def spent(self, bits: Bits, layers: Sequence[Layer]) -> tuple[dict[str, Any], ...]:
    """What `bits` cost under this budget and those beside it: metric, unit, target and cost of each."""
    return tuple(
      {'metric': b.metric, 'unit': b.unit, 'target': b.target, 'cost': float(b.cost(bits, layers))} for b in self.all
    )

  def ratio(self, bits: Bits, layers: Sequence[Layer]) -> Any:
    """C(bits) / C_target, of the budget that is used most."""
    ratios = [b.cost(bits, layers) / b.target for b in self.all]
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
  table: lookup.Table | None = None,
  also: Sequence[Budget] = (),
) -> Budget:
  """A budget for a network, checked against what its allowed bit-widths can reach.

  Args:
    metric: a name in `METRICS`.
    layers: the layer table.
    target: the budget in the metric's unit.
    equivalent_bits: instead of a target, the bit-width whose uniform assignment costs as much.
    table: the lookup table of the metric `lookup`.
    also: budgets that have to hold as well.

  Raises:
    ValueError: unless exactly one of target and equivalent_bits is given; if no allowed assignment meets the target,
      or the largest one already does; if the lookup table does not cover the allowed bit-widths.
  """
  if (target is None) == (equivalent_bits is None):
    raise ValueError(f'a budget needs one of target={target} and equivalent_bits={equivalent_bits}: give exactly one')
  for found in (table, *(b.table for b in also)):
    if found is not None:
      found.check(layers)
  given = f'target={target}'
  if target is None:
    if not 0 <= equivalent_bits <= FLOAT_BITS:
      raise ValueError(f'equivalent_bits={equivalent_bits} is no bit-width: give a number from 0 to {FLOAT_BITS}')
    given = f'equivalent_bits={equivalent_bits}'
    target = _cost(metric, uniform_bits(layers, equivalent_bits), layers, table)
  for other in also:
    least = cost_range(other.metric, layers, other.table)[0]
    if other.target < least:
      raise ValueError(
        f'the {other.metric} budget beside it, {other.target:.6g} {other.unit}, cannot be met by any allowed bits: '
        f'give at least {_rounded_up(least)} {other.unit}, or allow other bit-widths'
      )
  _check_target(given, metric, target, layers, table)
  return Budget(metric=metric, target=target, table=table, also=tuple(also))


def _check_target(given: str, metric: str, target: float, layers: Sequence[Layer], table: lookup.Table | None) -> None:
  """Raises `ValueError` unless a target, `given` in these words, is within what the allowed bit-widths can reach."""
  (low, high), unit = cost_range(metric, layers, table), Budget(metric=metric, target=1.0, table=table).unit
  if low == high:
    raise ValueError(
      f'budget {given} leaves nothing to choose: the allowed bit-widths have one assignment, which costs {low:.6g} '
      f'{unit}; allow at least two bit-widths'
    )
  if not low <= target < high:
    problem = 'is already met by the largest' if target >= high else 'cannot be met by any'
    bits = [equivalent_bits(Budget(metric=metric, target=x or 1e-30, table=table), layers) for x in (low, high)]
    raise ValueError(
      f'budget {given} ({target:.6g} {unit}) {problem} allowed assignment of bits: give a target of at least '
      f'{_rounded_up(low)} and below {high:.6g} {unit}, the cost of {bits[0]:.4g} to {bits[1]:.4g} bits everywhere, or '
      'allow other bit-widths'
    )


def _rounded_up(value: float) -> str:
  """A number with six digits that is not below the true one, but for what rounding adds."""
  text = f'{value:.6g}'
  return text if float(text) >= value * (1 - 1e-12) else f'{value * (1 + 1e-5):.6g}'


def format_table(bits: Bits, layers: Sequence[Layer]) -> str:
  """The table by layer as text: bits, multiply-accumulates, weights, costs."""
  name_width = max(len('layer'), *(len(l.name) for l in layers))
  lines = [
    f'{"layer":<{name_width}} {"kernel":>7} {"input":>7} {"MMACs":>10} {"weights":>11} {"GBitOPs":>10} {"MB":>9}'
  ]
  for l in layers:
    w, a = (float(np.mean(_at(bits, l, which))) for which in ('kernel', 'input'))
    costs = f'{float(bitops(bits, (l,))):>10.5f} {float(model_size(bits, (l,))):>9.5f}'
    lines.append(f'{l.name:<{name_width}} {w:>7.2f} {a:>7.2f} {l.macs / 1e6:>10.3f} {l.weights:>11,} {costs}')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the cost of a network by layer, its totals on the last line."""
  from fracbits_jax import models  # models are not needed by the functions above

  parser = argparse.ArgumentParser(prog='python -m fracbits_jax.cost', description=main.__doc__)
  parser.add_argument('--model', required=True, help=', '.join(models.names()))
  parser.add_argument('--bits', type=float, required=True, help='bit-width of all learnable kernels and inputs')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--channels', type=int, default=3, help='colour channels of an image')
  parser.add_argument('--num_classes', type=int, default=1000)
  parser.add_argument('--width', type=float, default=1.0, help='width multiplier')
  parser.add_argument('--table', help=f'a lookup table as well: {", ".join(lookup.names())}, or the path of a CSV file')
  args = parser.parse_args(argv)
  try:
    if not 0 <= args.bits <= FLOAT_BITS:
      raise ValueError(f'--bits {args.bits:g} is not a bit-width: give a number from 0 to {FLOAT_BITS}')
    if min(args.image_size, args.num_classes, args.channels) < 1 or not args.width > 0:
      raise ValueError('--image_size, --channels, --num_classes and --width must be above 0')
    model = models.create(args.model, num_classes=args.num_classes, quant=QuantConfig(), width=args.width)
    layers = trace(model, (1, args.image_size, args.image_size, args.channels))
    table = None if args.table is None else lookup.load(args.table)
    if table is not None:
      asked = tuple(sorted({math.floor(args.bits), math.ceil(args.bits)}))
      layers = tuple(dataclasses.replace(l, choices=asked, input_choices=asked) for l in layers)
      table.check(layers)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  bits = uniform_bits(layers, args.bits)
  print(format_table(bits, layers))
  if table is not None:
    print(f'{table.name}: {lookup_cost(bits, layers, table):.3f} {table.total}')
  print(f'bitops_g={float(bitops(bits, layers)):.3f} size_mb={float(model_size(bits, layers)):.3f}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
