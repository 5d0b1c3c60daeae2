"""What a network costs, as a function of its bit-widths.

A cost is a pure function of `(bits, layer table)`, so that it is exact for integer policies and differentiable for
fractional ones. NumPy bits give NumPy results, JAX bits JAX results. No cost falls when a bit-width rises.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from fracbits_jax.cost import lookup
from fracbits_jax.cost.layer_table import Bits, Layer, bits_of, gates


def _at(bits: Bits, layer: Layer, which: str) -> Any:
  """A bit-width of a layer, fixed or learned: `()`, or `[C_out]` for kernels with one a channel."""
  fixed = layer.kernel_bits if which == 'kernel' else layer.input_bits
  return bits_of(bits, layer, which) if fixed is None else fixed


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
    kind = 'dense' if l.kind == 'product' else l.kind
    return l.macs * 1e-9 * _mean(allowed.per_mac(kind, _at(bits, l, 'kernel'), _at(bits, l, 'input')), bits, l)

  return _sum(layer_cost(l) for l in layers if l.macs)


def format_table(bits: Bits, layers: Sequence[Layer]) -> str:
  """The table by layer as text: bits, multiply-accumulates, weights, costs; the last line is what is quantized."""
  name_width = max(len('layer'), *(len(l.name) for l in layers))
  lines = [
    f'{"layer":<{name_width}} {"kernel":>7} {"input":>7} {"MMACs":>10} {"weights":>11} {"GBitOPs":>10} {"MB":>9}'
  ]
  for l in layers:
    w, a = (float(np.mean(_at(bits, l, which))) for which in ('kernel', 'input'))
    costs = f'{float(bitops(bits, (l,))):>10.5f} {float(model_size(bits, (l,))):>9.5f}'
    lines.append(f'{l.name:<{name_width}} {w:>7.2f} {a:>7.2f} {l.macs / 1e6:>10.3f} {l.weights:>11,} {costs}')
  coverage = getattr(layers, 'coverage', None)
  return '\n'.join([*lines, *([str(coverage)] if coverage is not None else [])])
