"""A layer's operands, its inputs and its kernel, as its configuration quantizes them; the same for linen and NNX."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fracbits_jax import quantize
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.quantize import bitwidths, groups, lsq

_replacements: list[Callable[..., jax.Array]] = []


def quantize_input(quant: QuantConfig, inputs: jax.Array, bits: Any, alpha: jax.Array, **how: Any) -> jax.Array:
  """Inputs of a layer as its configuration quantizes them; `how` as for `quantize.activation`."""
  function = lsq.activation if quant.scheme == 'lsq' else quantize.activation
  return function(inputs, bits, alpha, signed=quant.signed_input, **how)


def quantize_kernel(
  quant: QuantConfig, kernel: jax.Array, bits: Any, alpha: jax.Array | None = None, *, kept: Any = None, **how: Any
) -> jax.Array:
  """A kernel `[..., C_out]` as a layer's configuration quantizes it; `how` as for `quantize.kernel`.

  Args:
    quant: the configuration.
    kernel: the float kernel.
    bits: `()` or `[C_out]`.
    alpha: its range, `()`, `[C_out]` or, with groups, `[G, C_out]`, with the scheme `lsq`.
    kept: false for the entries of pruned channels, or `None`.
    **how: `choices`, `noise`, `learned`.
  """
  if quant.scheme == 'lsq':
    assert alpha is not None
    how['balanced'] = quant.kernel_levels == 'balanced'
    return lsq.kernel(kernel, bits, stored_ranges(quant, alpha), group_size=quant.group_size, **how)
  quantized = quantize.kernel(kernel, bits, scheme=quant.scheme, kept=kept, **how)
  return quantize.rescale(quantized, kept) if quant.sat else quantized


def stored_ranges(quant: QuantConfig, alpha: jax.Array) -> jax.Array:
  """The ranges of a kernel that a layer computes with: those of groups as they are stored."""
  return alpha if quant.group_size is None else groups.stored(jnp.asarray(alpha, jnp.float32), quant.range_bits)


def ranges_of_weights(quant: QuantConfig, alpha: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The ranges of a kernel `[..., C_out]` of this shape, broadcastable against it."""
  if quant.group_size is None:
    return alpha.reshape((1,) * (len(shape) - alpha.ndim) + alpha.shape)
  return groups.spread(stored_ranges(quant, alpha), shape, quant.group_size)


def apply_quantizer(layer: Any, which: str, x: jax.Array, bits: Any, alpha: jax.Array | None, **how: Any) -> jax.Array:
  """`quantize_input` or `quantize_kernel`, by `which`, for a layer with a `quant`; see `replace_quantizers`."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    x = x.astype(jnp.float32)  # integers, which the layer itself would bring to the dtype of its kernel
  if _replacements:
    return _replacements[-1](layer, which, x, bits, alpha, how.get('kept'))
  if layer.quant.mixture == 'elements' and len(how.get('choices', ())) > 1:
    # Of inputs `[N, ...]` the same for each example.
    shape = x.shape if which == 'kernel' or x.ndim < 2 else (1, *x.shape[1:])
    how['noise'] = bitwidths.thresholds(shape, by_channel=jnp.ndim(bits) > 0)
  quantizer: Callable[..., jax.Array] = quantize_input if which == 'input' else quantize_kernel
  return quantizer(layer.quant, x, bits, alpha, **how)


def is_replaced() -> bool:
  """Whether something else is done in place of the quantizers, see `replace_quantizers`."""
  return bool(_replacements)


@contextlib.contextmanager
def replace_quantizers(replacement: Callable[..., jax.Array]) -> Iterator[None]:
  """While this context is open, `replacement` does what the quantizers of all layers do.

  It is called as `replacement(layer, which, x, bits, alpha, kept)`, with `input` or `kernel` for which, and the
  arguments of `quantize_input` or `quantize_kernel`.
  """
  _replacements.append(replacement)
  try:
    yield
  finally:
    _replacements.pop()


def over_channels(
  function: Callable[[jax.Array], jax.Array],
  kernel: jax.Array,
  axes: tuple[int, ...],
  summed: tuple[int, ...] | None = None,
) -> jax.Array:
  """Applies a function of kernels `[..., C_out]` to one whose output channels are spread over `axes`.

  Args:
    function: the function.
    kernel: the kernel.
    axes: of the output channels.
    summed: the other axes, in the order in which the function is to see them; `None` for their own.
  """
  order = _with_channels_last(kernel.ndim, axes, summed)
  if len(axes) == 1 and order == tuple(range(kernel.ndim)):
    return function(kernel)
  found = function(with_last_channels(kernel, axes, summed))
  return jnp.transpose(
    found.reshape([kernel.shape[axis] for axis in order]), tuple(map(order.index, range(kernel.ndim)))
  )


def with_last_channels(kernel: Any, axes: tuple[int, ...], summed: tuple[int, ...] | None = None) -> Any:
  """A kernel whose output channels are spread over `axes`, none of them where there is one, as `[..., C_out]`."""
  order = _with_channels_last(kernel.ndim, axes, summed)
  if len(axes) == 1 and order == tuple(range(kernel.ndim)):
    return kernel
  moved = jnp.transpose(kernel, order)
  rest = kernel.ndim - len(axes)
  return moved.reshape(*moved.shape[:rest], math.prod(moved.shape[rest:]))


def _with_channels_last(rank: int, axes: tuple[int, ...], summed: tuple[int, ...] | None) -> tuple[int, ...]:
  rest = [axis for axis in range(rank) if axis not in axes]
  return (*(rest if summed is None else summed), *axes)


def einsum_output_axes(einsum_str: str, rank: int) -> tuple[int, ...]:
  """The axes of an einsum's second operand, of `rank` axes, that its result has as well."""
  operands, result = einsum_str.replace(' ', '').split('->')
  names = operands.split(',')[1].replace('...', '')
  return tuple(rank - len(names) + i for i, name in enumerate(names) if name in result)
