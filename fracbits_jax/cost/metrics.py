"""What a network costs, as a function of its bit-widths.

A cost is a pure function of `(bits, layer table)`, so that it is exact for integer policies and differentiable for
fractional ones. NumPy bits give NumPy results, JAX bits JAX results. No cost falls when a bit-width rises.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.cost import lookup
from fracbits_jax.cost.layer_table import Bits, Layer, bits_of, gates, learned, whole_stack
from fracbits_jax.layers import FLOAT_BITS

Price = Callable[[Layer, Any, Any], Any]  # of a layer, by the bit-widths of its kernel and its inputs


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


def _total(bits: Bits, layers: Sequence[Layer], price: Price) -> Any:
  """The sum of the layers' prices; plain numbers are added to the last digit, so that a budget knows equal costs."""
  values: list[Any] = []
  for _, group in itertools.groupby(layers, key=lambda layer: layer.path):
    rows = list(group)
    arrays = _of_stack(bits, rows)
    if arrays:  # in one operation for the whole stack, so that a program does not grow with it
      of_layer = lambda found, l=rows[0]: price(l, found.get('kernel', l.kernel_bits), found.get('input', l.input_bits))
      values.append(jnp.sum(jax.vmap(of_layer)(arrays)))
    else:
      values += [price(l, _at(bits, l, 'kernel'), _at(bits, l, 'input')) for l in rows]
  return sum(values) if any(isinstance(v, jax.Array) for v in values) else math.fsum(values)


def _of_stack(bits: Bits, rows: Sequence[Layer]) -> dict[str, jax.Array]:
  """The learned bit-widths of a stack, `[layers, ...]`, where the rows are the whole of one and its bits are JAX's."""
  first, count = rows[0], math.prod(rows[0].stack)
  if not first.stack or len(rows) != count:
    return {}
  found = {which: whole_stack(bits, first, which) for which in learned(first)}
  if not found or not all(isinstance(value, jax.Array) for value in found.values()):
    return {}
  return {which: value.reshape(count, *value.shape[len(first.stack) :]) for which, value in found.items()}


def bitops(bits: Bits, layers: Sequence[Layer]) -> Any:
  """BitOPs of one example, the sum of M w a over the layers, in 10^9 (GBitOPs).

  Pruned channels are gone from the layers that make them and from those that they feed.

  Args:
    bits: the collection `bits`; a kernel's `[C_out]` bit-widths enter as their mean w.
    layers: the layer table of `trace`.

  Raises:
    ValueError: if a layer's bits are missing.
  """
  return _total(bits, layers, lambda l, w, a: l.macs * 1e-9 * _mean(w, bits, l) * a)


def model_size(bits: Bits, layers: Sequence[Layer]) -> Any:
  """Size of the weights, the sum of K w / 8 and 4 bytes for each bias, in 10^6 bytes (MB). Arguments as `bitops`.

  The ranges of groups count at their bits; those of layers and of channels do not, nor do batch norms.
  """
  return _total(bits, layers, lambda l, w, a: _size(l, w, bits))


def _size(l: Layer, w: Any, bits: Bits) -> Any:
  kernel = l.weights * 0.125e-6 * _mean(w, bits, l) + l.biases * 4e-6
  return kernel + l.ranges * l.range_bits * 0.125e-6 if l.ranges else kernel


def bits_per_weight(bits: Bits, layers: Sequence[Layer]) -> Any:
  """The bits that a weight takes, a mean over all weights that are quantized, with the ranges of their groups.

  Embeddings and heads count as all others; biases and weights that stay float do not. 0 where nothing is quantized.
  Other arguments as `bitops`.
  """
  quantized = quantized_rows(layers)
  weights = sum(l.weights for l in quantized)
  total = _total(bits, quantized, lambda l, w, a: float(l.weights) * _mean(w, bits, l) + float(l.ranges * l.range_bits))
  return total / weights if weights else 0.0


def quantized_rows(layers: Sequence[Layer]) -> list[Layer]:
  """The rows with weights that are quantized."""
  return [l for l in layers if l.weights and l.kernel_bits != FLOAT_BITS]


def lookup_cost(bits: Bits, layers: Sequence[Layer], table: lookup.Table) -> Any:
  """The sum of M t(w, a) over the layers, t the table's cost of a multiply-accumulate, in 10^9 of its unit.

  Between two allowed bit-widths a cost is interpolated, as the quantizer is. A kernel with a bit-width for each channel
  costs the mean of what its channels cost. Other arguments as `bitops`.
  """

  def price(l: Layer, w: Any, a: Any) -> Any:
    kernel_bits = l.choices if l.kernel_bits is None else (l.kernel_bits,)
    allowed = table.over(kernel_bits, l.input_choices if l.input_bits is None else (l.input_bits,))
    return l.macs * 1e-9 * _mean(allowed.per_mac('dense' if l.kind == 'product' else l.kind, w, a), bits, l)

  return _total(bits, [l for l in layers if l.macs], price)


def format_table(bits: Bits, layers: Sequence[Layer]) -> str:
  """The table by layer as text: bits, multiply-accumulates, weights, costs; the last line is what is quantized."""
  name_width = max(len('layer'), *(len(l.name) for l in layers))
  lines = [
    f'{"layer":<{name_width}} {"kernel":>7} {"input":>7} {"MMACs":>10} {"weights":>11} {"GBitOPs":>10} {"MB":>9}'
  ]
  for l in layers:
    w, a = (f'{float(np.mean(_at(bits, l, which))):.2f}' for which in ('kernel', 'input'))
    w = w if l.has_kernel else ''
    costs = f'{float(bitops(bits, (l,))):>10.5f} {float(model_size(bits, (l,))):>9.5f}'
    lines.append(f'{l.name:<{name_width}} {w:>7} {a:>7} {l.macs / 1e6:>10.3f} {l.weights:>11,} {costs}')
  coverage = getattr(layers, 'coverage', None)
  return '\n'.join([*lines, *([str(coverage)] if coverage is not None else [])])
