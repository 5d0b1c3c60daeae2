"""The arithmetic between the products of an integer network: each channel by a multiplier, an offset and a shift.

    result = clip((multiplier (integer - zero) + offset) / 2^shift, least, most),    rounded half to even

`zero` is where the real number is nearest 0, so that what is left of the offset is small however far the integers lie
from there: a channel whose batch norm multiplies differences of a thousandth by a million is rescaled as exactly as any
other. The integer and `zero` have 32 bits, the multiplier has 30 and a sign, and nothing exceeds 64.

The result is a layer's code, or a fixed-point number of 28 bits and a sign: each channel has its own number of binary
digits behind the point.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from fracbits_jax.export import arithmetic
from fracbits_jax.export.needed import Interval
from fracbits_jax.export.values import Value, changed, limited, shared, value
from fracbits_jax.graph.graph import Node
from fracbits_jax.graph.grid import Grid

# Of a step of a grid. A value further than this from the middle between two codes has its code for certain; at 8 bits,
# float32 itself knows values to 2^-16 of a step.
TOLERANCE = 2.0**-10

_FIXED = 2.0**28  # the largest fixed-point number
_MULTIPLIER_BITS = 30
_DOUBLE = 2.0**-50  # what is left of float64 behind a few operations


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rescaling:
  """Numbers of each channel, int64, broadcastable against the integers; `error` in units of the result, float64."""

  zero: np.ndarray
  multiplier: np.ndarray
  offset: np.ndarray
  shift: np.ndarray
  error: np.ndarray


def rescaling(bound: np.ndarray, scale: np.ndarray, offset: np.ndarray, reach: float) -> Rescaling:
  """How integers become scale integer + offset.

  Args:
    bound: the largest |integer|.
    scale: of the result.
    offset: of the result.
    reach: the largest |result| that matters: beyond it, nothing but the sign has to be right. Below 2^29.
  """
  bound, scale, offset = np.broadcast_arrays(bound, scale, offset)
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    zero = np.where(scale == 0, 0.0, np.clip(np.round(-offset / scale), -bound, bound))
  rest = offset + zero * scale
  rounding = _DOUBLE * (np.abs(offset) + np.abs(zero * scale))
  # A step of more than twice what matters leads out of it from any integer, as a step of just that does.
  far = reach + 2
  rounding = np.where((np.abs(scale) > 2 * far) & (np.abs(rest) > far + rounding), 0.0, rounding)
  scale, rest = np.clip(scale, -2 * far, 2 * far), np.clip(rest, -far - 1, far + 1)
  exponent = lambda array: np.frexp(array)[1]
  shift = np.clip(_MULTIPLIER_BITS - exponent(scale), 1, 60 - exponent(far + 1)).astype(np.int64)
  multiplier, addend = (np.round(np.ldexp(array, shift)).astype(np.int64) for array in (scale, rest))
  with np.errstate(divide='ignore'):
    steps = np.minimum(2 * bound, np.where(scale == 0, 0.0, 2 * far / np.abs(scale) + 1))
  inexact = np.ldexp(multiplier.astype(np.float64), -shift) != scale
  error = rounding + np.ldexp(steps * inexact + 1, -shift - 1)
  return Rescaling(zero=zero.astype(np.int64), multiplier=multiplier, offset=addend, shift=shift, error=error)


def codes(x: Value, grid: Grid, layer: str, tolerance: float = TOLERANCE) -> jax.Array:
  """The codes of a layer's inputs, int32.

  Args:
    x: the inputs.
    grid: where their codes lie.
    layer: its name.
    tolerance: the largest error, in steps of the grid.

  Raises:
    ValueError: the fixed-point numbers are too coarse for the grid.
  """
  if grid.bits == 0:
    return arithmetic.constant(x.integers, 0)
  if not grid.step:
    return arithmetic.constant(x.integers, round(grid.zero))
  most, by_sign = 2**grid.bits - 1, grid.scheme == 'lsq' and grid.signed and grid.bits == 1
  zero = 0.0 if by_sign else grid.zero
  step = grid.step
  code = lambda real: (real >= 0).astype(np.float64) if by_sign else np.clip(np.round(real / step + zero), 0, most)
  rescaled = rescaling(x.bound, x.scale / step, x.offset / step + zero, most + 1)
  error, (low, high) = x.error + rescaled.error * step, x.interval()
  error = np.where(code(low - error) == code(high + error), 0.0, error / step)
  if (error > tolerance).any():
    raise ValueError(
      f'the inputs of {layer} are known to {error.max():.2g} of a step of their {grid.bits} bits, and {tolerance:.2g} '
      f'is needed: numbers of 28 bits that are added before it can be too large beside its clip of {grid.alpha:.3g}; '
      'look for a batch norm with a variance near 0, or give the layer a larger clip'
    )
  least, most = code(x.low), code(x.high)
  return (arithmetic.signs if by_sign else arithmetic.rescaled)(x.integers, rescaled, least, most)


def digits(largest: np.ndarray, most: float = _FIXED) -> np.ndarray:
  """How many binary digits behind the point fit where numbers are up to `largest`, and integers up to `most`."""
  return np.floor(np.log2(min(most, _FIXED) / np.maximum(largest, 1e-30))).astype(np.int64)


def fixed(x: Value, digits: np.ndarray) -> Value:
  """As fixed-point numbers with `digits` binary digits behind the point, which have to fit."""
  scale, offset = np.ldexp(x.scale, digits), np.ldexp(x.offset, digits)
  least, most = (np.round(np.ldexp(limit, digits)) for limit in x.interval())
  rescaled = rescaling(x.bound, scale, offset, float(np.maximum(np.abs(least), np.abs(most)).max()))
  exact = (scale == np.round(scale)) & (offset == np.round(offset)) & ~np.isfinite(x.low) & ~np.isfinite(x.high)
  error = x.error + np.where(exact, 0.0, np.ldexp(rescaled.error + 0.5, -digits))
  return value(arithmetic.rescaled(x.integers, rescaled, least, most), least, most, np.ldexp(1.0, -digits), error=error)


def aligned(x: Value, axes: Sequence[int], ends: Interval) -> Value:
  """The same real numbers, so that along the axes equal integers stand for equal ones; they may stop at the ends."""
  if x.varies(axes):
    x = narrowed(x, *ends)
    x = fixed(x, digits(shared(x.largest(), axes)))
  least, most = shared(x.least, axes, np.min), shared(x.most, axes)
  return changed(x, least=least, most=most, error=shared(x.error, axes))


def narrowed(x: Value, low: np.ndarray, high: np.ndarray) -> Value:
  """A value that stops at numbers beyond which nothing depends on it; these may lie outside what it can be."""
  least, most = x.interval()
  return limited(x, low=np.clip(low, least, most), high=np.clip(high, least, most))


def added(first: Value, second: Value, ends: Sequence[Interval]) -> Value:
  """The sum, exact where the scales are equal, else of fixed-point numbers with digits of each channel.

  Args:
    first: a summand.
    second: the other.
    ends: of both, the numbers at which they may stop.
  """
  exact = not (first.limited or second.limited) and np.array_equal(first.scale, second.scale)
  if not exact or (first.bound + second.bound >= 2.0**31).any():
    first, second = (narrowed(x, *end) for x, end in zip((first, second), ends, strict=True))
    places = digits(first.largest() + second.largest())
    first, second = fixed(first, places), fixed(second, places)
  sums = {name: getattr(first, name) + getattr(second, name) for name in ('least', 'most', 'offset', 'error')}
  return value(arithmetic.added(first.integers, second.integers), scale=first.scale, **sums)


def summed(
  node: Node,
  x: Value,
  axes: Sequence[int],
  count: int,
  ends: Interval,
  add: Callable[[jax.Array], jax.Array],
  *,
  padded: bool,
) -> Value:
  """The sums of `count` numbers along the axes, but for their offsets, with the axes that `add` leaves.

  Integers are added in 64 bits, and the sum is rounded, half to even, to as many digits as fit into 32.

  Args:
    node: the sum.
    x: what is summed.
    axes: along which.
    count: how many numbers.
    ends: where each may stop.
    add: the sum of an array of integers.
    padded: whether it can be one of fewer numbers.
  """
  scales_differ = x.scale.size > 1 and any(x.scale.shape[axis] > 1 for axis in axes)
  if x.limited or scales_differ:
    x = narrowed(x, *ends)
    x = fixed(x, digits(shared(x.largest(), axes)))
  least, most = shared(x.least, axes, np.min) * count, shared(x.most, axes) * count
  error = shared(x.error, axes) * count
  if padded:
    least, most = np.minimum(least, 0), np.maximum(most, 0)
  shift = np.maximum(np.frexp(np.maximum(np.abs(least), np.abs(most)))[1] - 31, 0).max()
  integers = arithmetic.summed(node, add, x.integers, shift)
  error = error + np.abs(x.scale) * (2.0 ** (shift - 1) if shift else 0.0)
  least, most = np.floor(np.ldexp(least, -shift)), np.ceil(np.ldexp(most, -shift))
  return changed(x, integers=integers, least=least, most=most, scale=np.ldexp(x.scale, shift), error=error)
