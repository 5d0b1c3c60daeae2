"""What a network costs, as a function of its bit-widths.

The layer table is traced by shape once; a cost is then a pure function of `(bits, table)`, linear in each single
bit-width, so that it is exact for integer policies and differentiable for fractional ones. NumPy bits give NumPy
results, JAX bits JAX results.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax.layers import FLOAT_BITS, QuantConfig, QuantConv, QuantDense, watch_layers

Bits = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One row of the layer table.

  Attributes:
    name: the path of the layer in the network, such as `block1/conv`; its bits are found under the same path.
    macs: multiply-accumulates for one example, M.
    weights: entries of the kernel, K.
    biases: entries of the bias, at 4 bytes each.
    channels: output channels, C_out.
    kind: `dense`, `pointwise`, `depthwise` or `standard` (any other convolution).
    kernel_bits: the kernel's bit-width where it is fixed; `None` where it is learned.
    input_bits: the same for the inputs.
    per_channel: whether a learned kernel has one bit-width per output channel.
    choices: allowed bit-widths of the kernel.
    input_choices: allowed bit-widths of the inputs.
  """

  name: str
  macs: int
  weights: int
  channels: int
  kind: str = 'standard'
  biases: int = 0
  kernel_bits: int | None = None
  input_bits: int | None = None
  per_channel: bool = False
  choices: tuple[int, ...] = tuple(range(1, 9))
  input_choices: tuple[int, ...] = tuple(range(1, 9))


def learned(layer: Layer) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
  """The learned bit-widths of a layer: name -> (shape, allowed values)."""
  found = {}
  if layer.kernel_bits is None:
    found['kernel'] = ((layer.channels,) if layer.per_channel else (), layer.choices)
  if layer.input_bits is None:
    found['input'] = ((), layer.input_choices)
  return found


def _kind(module: QuantConv | QuantDense, kernel_shape: tuple[int, ...]) -> str:
  if isinstance(module, QuantDense):
    return 'dense'
  if module.feature_group_count > 1 and kernel_shape[-2] == 1:
    return 'depthwise'
  return 'pointwise' if math.prod(kernel_shape[:-2]) == 1 else 'standard'


def _row(module: QuantConv | QuantDense, out_shape: tuple[int, ...], examples: int) -> Layer:
  quant: QuantConfig | None = module.quant
  kernel = module.variables['params']['kernel']
  positions = math.prod(out_shape[:-1]) // examples
  row = dict(
    name='/'.join(module.path),
    macs=positions * kernel.size,
    weights=kernel.size,
    channels=kernel.shape[-1],
    kind=_kind(module, kernel.shape),
    biases=out_shape[-1] if module.use_bias else 0,
  )
  if quant is None:
    return Layer(**row, kernel_bits=FLOAT_BITS, input_bits=FLOAT_BITS)
  return Layer(
    **row,
    kernel_bits=quant.kernel_bits,
    input_bits=quant.counted_input_bits,
    per_channel=quant.granularity == 'kernel',
    choices=quant.choices,
    input_choices=quant.allowed_input_bits,
  )


def trace(model: nn.Module, input_shape: Sequence[int]) -> tuple[Layer, ...]:
  """The layer table of a network, in the order in which the layers run.

  Shapes alone are traced (`jax.eval_shape`); nothing is computed. Layers without quantization count 32 bits.

  Args:
    model: a linen module whose call takes one array.
    input_shape: `[N, H, W, C]`, or `[H, W, C]` for one image.

  Raises:
    ValueError: if the network has no `QuantConv` or `QuantDense`.
  """
  shape = (1, *input_shape) if len(input_shape) == 3 else tuple(input_shape)
  rows: dict[str, Layer] = {}

  def record(module: QuantConv | QuantDense, x: jax.Array, y: jax.Array) -> None:
    del x
    row = _row(module, y.shape, examples=shape[0])
    if row.name in rows:  # a layer that is used twice has one kernel
      row = dataclasses.replace(row, macs=row.macs + rows[row.name].macs)
    rows[row.name] = row

  with watch_layers(record):
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
  if not rows:
    raise ValueError(f'{type(model).__name__} has no QuantConv or QuantDense layer, so there is nothing to count')
  return tuple(rows.values())


def lookup(bits: Bits, layer: Layer, which: str) -> Any:
  """The learned bit-width `which` (`kernel` or `input`) of a layer; raises `ValueError` where it is missing."""
  node: Any = bits
  for key in (*layer.name.split('/'), which):
    if not isinstance(node, Mapping) or key not in node:
      raise ValueError(f'no bits for {layer.name}/{which}: the bits belong to another network, or the table does')
    node = node[key]
  return node


def _at(bits: Bits, layer: Layer, which: str) -> Any:
  """A bit-width of a layer: the fixed one, or the mean of the learned ones."""
  fixed = layer.kernel_bits if which == 'kernel' else layer.input_bits
  if fixed is not None:
    return fixed
  value = lookup(bits, layer, which)
  return value.mean() if np.ndim(value) else value


def bitops(bits: Bits, layers: Sequence[Layer]) -> Any:
  """BitOPs of one example, the sum of M w a over the layers, in 10^9 (GBitOPs).

  Args:
    bits: the collection `bits`; a kernel's `[C_out]` bit-widths enter as their mean w.
    layers: the layer table of `trace`.

  Raises:
    ValueError: if a layer's bits are missing.
  """
  return sum(l.macs * 1e-9 * _at(bits, l, 'kernel') * _at(bits, l, 'input') for l in layers)


def model_size(bits: Bits, layers: Sequence[Layer]) -> Any:
  """Size of the weights, the sum of K w / 8 and 4 bytes for each bias, in 10^6 bytes (MB). Arguments as `bitops`."""
  return sum(l.weights * 0.125e-6 * _at(bits, l, 'kernel') + l.biases * 4e-6 for l in layers)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A cost that can be budgeted: its function of (bits, layers) and its unit."""

  function: Callable[[Bits, Sequence[Layer]], Any]
  unit: str


METRICS = {'bitops': Metric(bitops, 'GBitOPs'), 'size': Metric(model_size, 'MB')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """A metric and the most that the network may cost in it, in the metric's unit."""

  metric: str
  target: float

  def __post_init__(self):
    if self.metric not in METRICS:
      raise ValueError(f'budget metric {self.metric!r} is unknown: choose one of {", ".join(sorted(METRICS))}')
    if not 0 < self.target < math.inf:
      raise ValueError(f'budget target {self.target!r} is not a cost: give a number above 0, in {self.unit}')

  @property
  def unit(self) -> str:
    """The unit of the target."""
    return METRICS[self.metric].unit

  def cost(self, bits: Bits, layers: Sequence[Layer]) -> Any:
    """The cost of `bits` in this budget's metric."""
    return METRICS[self.metric].function(bits, layers)

  def penalty(self, bits: Bits, layers: Sequence[Layer]) -> jax.Array:
    """|C(bits) / C_target - 1|, the differentiable term of the loss (FracBits, section 3.3)."""
    return jnp.abs(self.cost(bits, layers) / self.target - 1)


def fill_bits(layers: Sequence[Layer], value: Callable[[Layer, str, tuple[int, ...], tuple[int, ...]], Any]) -> dict:
  """A `bits` collection with `value(layer, which, shape, choices)` for every learned bit-width.

  NumPy float64, so that costs of integer bits are exact; JAX makes float32 of it where it enters a network.
  """
  bits: dict = {}
  for layer in layers:
    for which, (shape, choices) in learned(layer).items():
      node = bits
      for key in layer.name.split('/'):
        node = node.setdefault(key, {})
      node[which] = np.broadcast_to(np.asarray(value(layer, which, shape, choices), np.float64), shape).copy()
  return bits


def uniform_bits(layers: Sequence[Layer], value: float) -> dict:
  """The collection `bits` with every learned bit-width at `value`."""
  return fill_bits(layers, lambda *_: value)


def bits_range(layers: Sequence[Layer]) -> tuple[dict, dict]:
  """The collections `bits` with every learned bit-width at its least and at its largest allowed value."""
  return tuple(fill_bits(layers, lambda layer, which, shape, choices, i=i: choices[i]) for i in (0, -1))


def cost_range(metric: str, layers: Sequence[Layer]) -> tuple[float, float]:
  """The least and the largest cost that the allowed bit-widths can reach."""
  return tuple(float(METRICS[metric].function(bits, layers)) for bits in bits_range(layers))


def equivalent_bits(budget: Budget, layers: Sequence[Layer]) -> float:
  """The bit-width whose uniform assignment costs as much as the target, from 0 to 32; monotone, so bisected."""
  low, high = 0.0, float(FLOAT_BITS)
  for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if budget.cost(uniform_bits(layers, middle), layers) <= budget.target else (low, middle)
  return high


def budget(
  metric: str, layers: Sequence[Layer], *, target: float | None = None, equivalent_bits: float | None = None
) -> Budget:
  """A budget for a network, checked against what its allowed bit-widths can reach.

  Args:
    metric: a name in `METRICS`.
    layers: the layer table.
    target: the budget in the metric's unit.
    equivalent_bits: instead of a target, the bit-width whose uniform assignment costs as much.

  Raises:
    ValueError: unless exactly one of target and equivalent_bits is given; if no allowed assignment meets the target,
      or the largest one already does.
  """
  if (target is None) == (equivalent_bits is None):
    raise ValueError(f'a budget needs one of target={target} and equivalent_bits={equivalent_bits}: give exactly one')
  if metric not in METRICS:
    raise ValueError(f'budget metric {metric!r} is unknown: choose one of {", ".join(sorted(METRICS))}')
  given = f'target={target}'
  if target is None:
    given = f'equivalent_bits={equivalent_bits}'
    target = float(METRICS[metric].function(uniform_bits(layers, equivalent_bits), layers))
  result = Budget(metric=metric, target=target)
  low, high = cost_range(metric, layers)
  if not low <= target < high:
    problem = 'cannot be met by any' if target < low else 'is already met by the largest'
    raise ValueError(
      f'budget {given} ({target:.6g} {result.unit}) {problem} allowed assignment of bits: give a target of at least '
      f'{low:.6g} and below {high:.6g} {result.unit}, or allow other bit-widths'
    )
  return result


def format_table(bits: Bits, layers: Sequence[Layer]) -> str:
  """The table by layer as text: bits, multiply-accumulates, weights, costs."""
  name_width = max(len('layer'), *(len(l.name) for l in layers))
  lines = [
    f'{"layer":<{name_width}} {"kernel":>7} {"input":>7} {"MMACs":>10} {"weights":>11} {"GBitOPs":>10} {"MB":>9}'
  ]
  for l in layers:
    w, a = (float(_at(bits, l, which)) for which in ('kernel', 'input'))
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
  args = parser.parse_args(argv)
  try:
    if not 0 <= args.bits <= FLOAT_BITS:
      raise ValueError(f'--bits {args.bits:g} is not a bit-width: give a number from 0 to {FLOAT_BITS}')
    if min(args.image_size, args.num_classes, args.channels) < 1 or not args.width > 0:
      raise ValueError('--image_size, --channels, --num_classes and --width must be above 0')
    model = models.create(args.model, num_classes=args.num_classes, quant=QuantConfig(), width=args.width)
    layers = trace(model, (1, args.image_size, args.image_size, args.channels))
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  bits = uniform_bits(layers, args.bits)
  print(format_table(bits, layers))
  print(f'bitops_g={float(bitops(bits, layers)):.3f} size_mb={float(model_size(bits, layers)):.3f}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
