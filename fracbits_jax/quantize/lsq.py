"""Learned step sizes under fractional bit-widths (LSQ: Esser et al., ICLR 2020, arXiv 1902.08153).

The paper's parameter is the step s. A step that stayed while the bits moved would widen the range with every bit, so
here the parameter is the range alpha = s Q, and more bits make the steps finer. What s would be moved by, relative to
its size, alpha is moved by: with ds = g dL/ds and dL/ds = Q dL/dalpha that is dalpha = g Q^2 dL/dalpha, where g =
1 / sqrt(N Q_P) is LSQ's gradient scale for N weights, or N features of an input.

    kernels and signed inputs:  Q = 2^(b - 1), levels -Q, ..., Q - 1 = Q_P     (two's complement)
    unsigned inputs:            Q = 2^b - 1 = Q_P, levels 0, ..., Q            (the grid of `quantize.activation`)
    balanced kernels:           Q = 2^(b - 1), levels -Q + 1/2, ..., Q - 1/2 = Q_P

At 1 bit two's complement would be -Q and 0, where no positive weight has a gradient; kernels and signed inputs take
-alpha / 2 and alpha / 2 instead, which are the balanced levels.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.fast.derivatives import with_backward, with_slopes
from fracbits_jax.fast.inlined import inlined
from fracbits_jax.fast.sums import sums
from fracbits_jax.quantize import groups, pact
from fracbits_jax.quantize.bitwidths import as_bits, check_kernel_bits, check_scalars, power_of_two
from fracbits_jax.quantize.unit import SMALLEST, allowed, interpolate, sum_to, with_rank


def gradient_scale(
  bits: jax.Array, count: int | np.ndarray, *, signed: bool, each: bool = False, balanced: bool = False
) -> jax.Array:
  """g Q^2, by which the gradient of a range is multiplied; the mean over bit-widths where there are several, 1 of none.

  Args:
    bits: real bit-widths, any shape.
    count: N, the weights of a kernel or the features of an input; several for several ranges.
    signed: two's complement levels rather than levels from 0.
    each: one scale for each of the bit-widths, for ranges of their own.
    balanced: levels on both sides of 0, as many on either.
  """
  if not (np.all(count) and bits.size):
    return jnp.float32(1)
  bits = jax.lax.stop_gradient(bits)
  q = jnp.exp2(bits - 1) if signed else jnp.exp2(bits) - 1
  positive = jnp.maximum(q - (0.5 if balanced else 1) if signed else q, 0.5 if balanced else 1)
  scale = q**2 / jnp.sqrt(count * positive)
  return scale if each else jnp.mean(scale)


def _moved(middle: jax.Array | None, bits: jax.Array) -> jax.Array | float:
  """By how many steps levels lie higher than two's complement; 0 stays one of them."""
  if middle is None:
    return 0.0
  half = power_of_two(bits - 1)
  return jnp.where(bits > 1, jnp.clip(jnp.round(middle * half), 1 - half, half), 0)


def _level(ratio: jax.Array, middle: jax.Array | None, bits: jax.Array, balanced: bool) -> jax.Array:
  """Two's complement levels in units of the range, `[-1, 1 - 2^(1 - b)]`; -1/2 and 1/2 at 1 bit, 0 at 0 bits.

  With a `middle`, in units of the range as well, they lie around that. If `balanced`, they are half a step higher.
  """
  half, step = power_of_two(bits - 1), power_of_two(1 - bits)
  if balanced:
    between = (jnp.minimum(jnp.maximum(jnp.floor(ratio * half), -half), half - 1) + 0.5) * step
    return jnp.where(bits <= 0, 0, between)
  moved = _moved(middle, bits)
  many = jnp.minimum(jnp.maximum(jnp.round(ratio * half), moved - half), moved + half - 1) * step
  one = jnp.where(ratio < 0, -0.5, jnp.where(ratio >= 0, 0.5, ratio))
  return jnp.where(bits <= 0, 0, jnp.where(bits <= 1, one, many))


def _level_and_slopes(
  ratio: jax.Array, middle: jax.Array | None, bits: jax.Array, balanced: bool
) -> tuple[jax.Array, ...]:
  """The level, and the derivatives of the quantized value with respect to what is quantized, the range and the middle.

  The first of them is 1 where a value is rounded and 0 where it is clipped; at 0 bits 1 on [-1, 1], so that a weight
  can return. The second is q - x / alpha where it is rounded, and q where it is clipped. With a middle, which is
  rounded to steps straight-through, o / alpha is taken from that q, and the third is 1 where it is clipped, from 2 bits
  on; neither where the middle itself is beyond what leaves 0 a level.
  """
  level = _level(ratio, middle, bits, balanced)
  largest = jnp.where(bits > 1, 1 if balanced else 1 - power_of_two(1 - bits), 1)
  moved = _moved(middle, bits) * power_of_two(1 - bits)
  inside = (ratio >= moved - 1) & (ratio <= moved + largest)
  beyond: jax.Array | float = 0.0
  if middle is not None:
    free = (bits > 1) & (middle >= power_of_two(1 - bits) - 1) & (middle <= 1)
    beyond = jnp.where(free, middle, 0)
  # A ratio that is clipped may be infinite.
  range_slope = jnp.where(bits <= 0, 0, level - jnp.where(inside, ratio, beyond))
  slopes = inside.astype(jnp.float32), range_slope
  return (level, *slopes) if middle is None else (level, *slopes, jnp.where(inside | ~free, 0.0, 1.0))


def _ratio(x, alpha):
  return x.astype(jnp.float32) / jnp.maximum(jnp.abs(with_rank(alpha, x)), SMALLEST)


def _middle(offset, alpha):
  return None if offset is None else offset / jnp.maximum(jnp.abs(alpha), SMALLEST)


@inlined(0, 1)
def _two_sided_backward(choices, balanced, arguments, g):
  x, bits, alpha, offset, noise = arguments
  g32, ratio = g.astype(jnp.float32), _ratio(x, alpha)
  quantizer = functools.partial(_level_and_slopes, ratio, _middle(offset, alpha), balanced=balanced)
  (_, inside, range_slope, *middle_slope), by_bits = interpolate(quantizer, bits, choices, noise)
  # Rounding is straight-through: the first two move with the bits alone, the third with x / alpha alone.
  inside, range_slope = with_slopes(inside, (bits, by_bits[1])), with_slopes(range_slope, (bits, by_bits[2]))
  bits_slope = with_slopes(by_bits[0], (ratio, by_bits[1]))
  if len(choices) > 1:
    towards_alpha, towards_bits = sums((g32 * range_slope, g32 * bits_slope), by_channel=True)
    if alpha.shape:
      towards_bits = towards_bits * jnp.abs(alpha)
    g_bits = sum_to(with_rank(towards_bits, x), bits.shape) * (1 if alpha.shape else jnp.abs(alpha))
  else:
    (towards_alpha,), g_bits = sums((g32 * range_slope,), by_channel=True), jnp.zeros_like(bits)
  towards_alpha = towards_alpha if alpha.shape else jnp.sum(towards_alpha)
  towards_offset = None
  if offset is not None:
    (towards_offset,) = sums((g32 * with_slopes(middle_slope[0], (bits, by_bits[3])),))
  return (g32 * inside).astype(x.dtype), g_bits, towards_alpha * pact.side(alpha), towards_offset, None


@with_backward(_two_sided_backward, static=(5, 6))
@inlined(5, 6)
def _two_sided(x, bits, alpha, offset, noise, choices, balanced):
  quantizer = functools.partial(_level, _ratio(x, alpha), _middle(offset, alpha), balanced=balanced)
  q, _ = interpolate(quantizer, bits, choices, noise)
  return (jnp.abs(with_rank(alpha, x)) * q).astype(x.dtype)


def ends(
  alpha: jax.Array, bits: jax.Array | int, w: jax.Array, *, balanced: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Between which values a kernel is rounded and not clipped.

  Args:
    alpha: the range of each weight, in a shape that broadcasts against `w`.
    bits: `()` or `[C_out]`, integers.
    w: the kernel, `[..., C_out]`.
    balanced: the levels.
  """
  alpha, bits = jnp.abs(alpha), with_rank(jnp.asarray(bits, jnp.float32), w)
  return -alpha, alpha * (1 if balanced else jnp.where(bits > 1, 1 - power_of_two(1 - bits), 1))


def kernel(
  w: jax.Array,
  bits: jax.Array | float,
  alpha: jax.Array | float,
  *,
  balanced: bool = False,
  choices: Sequence[int] | None = None,
  noise: jax.Array | None = None,
  learned: bool = True,
  group_size: int | None = None,
) -> jax.Array:
  """Quantizes a kernel with a learned step size, at real bit-widths.

      q_b(w) = s clip(round(w / s), -2^(b-1), 2^(b-1) - 1),    s = |alpha| / 2^(b-1),    for b >= 2
      q_1(w) = |alpha| / 2 where w >= 0, else -|alpha| / 2;    q_0(w) = 0

  Balanced levels lie half a step higher, as many above 0 as below it, and 0 is none of them. Two's complement has one
  more below, which few bits pay dearly: of Gaussian weights 4 levels leave 0.119 instead of 0.150 of the variance, and
  8 leave 0.037 instead of 0.041.

      q_b(w) = s (clip(floor(w / s), -2^(b-1), 2^(b-1) - 1) + 1/2),    for b >= 1

  Between integers the two neighbours are interpolated, as in `quantize.fractional`. The gradient of `w` is
  straight-through inside the range and 0 outside; the one of alpha is LSQ's, with its scale (see the module).
  Arguments as `quantize.kernel`, and alpha, the range, `()`, or `[C_out]` for one per output channel. With a group size
  alpha is `[G, C_out]`, one range for each group of each channel, see `groups`; N is then the weights of the group.

  Raises:
    ValueError: bad choices, or bits or ranges of another shape.
  """
  w, bits, alpha = jnp.asarray(w), as_bits(bits, learned), jnp.asarray(alpha, jnp.float32)
  check_kernel_bits(w, bits)
  choices = allowed(choices, learned)
  if group_size is None:
    check_kernel_bits(w, alpha, 'ranges')
    return _kernel(w, bits, alpha, noise, choices, w.size // max(alpha.size, 1), balanced)
  contracted, channels = math.prod(w.shape[:-1]), w.shape[-1]
  number = groups.count(contracted, group_size)
  if alpha.shape != (number, channels):
    raise ValueError(
      f'ranges of shape {alpha.shape} do not fit a kernel of shape {w.shape} in groups of {group_size}: give '
      f'{(number, channels)}'
    )
  if noise is not None:  # of the elements, or of the bit-widths
    noise = groups.split(noise, group_size) if noise.shape == w.shape else groups.by_group(noise, number)
  counts = np.repeat(groups.lengths(contracted, group_size), channels).astype(np.float32)
  parts, bits = groups.split(w, group_size), groups.by_group(bits, number)
  return groups.joined(_kernel(parts, bits, alpha.reshape(-1), noise, choices, counts, balanced), w.shape)


def _kernel(
  w: jax.Array,
  bits: jax.Array,
  alpha: jax.Array,
  noise: Any,
  choices: tuple[int, ...],
  count: int | np.ndarray,
  balanced: bool,
) -> jax.Array:
  """`kernel` without groups, whose ranges stand for so many weights."""
  scale = gradient_scale(bits, count, signed=True, each=bool(alpha.shape), balanced=balanced)
  alpha = with_slopes(alpha, (alpha, scale))
  bits, noise = with_rank(bits, w), None if noise is None else with_rank(noise, w)
  return _two_sided(w, bits, alpha, None, noise, choices, balanced)


def activation(
  x: jax.Array,
  bits: jax.Array | float,
  alpha: jax.Array | float,
  *,
  signed: bool = False,
  choices: Sequence[int] | None = None,
  noise: jax.Array | None = None,
  learned: bool = True,
) -> jax.Array:
  """Quantizes the inputs of a layer with a learned step size, at a real bit-width; arguments as `quantize.activation`.

  Unsigned inputs take the same values as there, since q - x / alpha is LSQ's gradient as well; only its scale is
  added. Signed inputs are rounded to two's complement levels, as kernels are. `x` is `[N, ...]`: a feature is counted
  once, not for each of the N examples.

  With an offset alpha is `[2]`, the range and its middle o, as in LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576):

      q_b(x) = s clip(round(x / s), m - 2^(b-1), m + 2^(b-1) - 1),    m = clip(round(o / s), 1 - 2^(b-1), 2^(b-1))

  So 0 is a level, whatever o, as paddings and integers need it. Its gradient is that of the clipped values, with the
  scale of the range, since both move the ends. At 1 bit there is no offset.
  """
  x, bits, alpha = jnp.asarray(x), as_bits(bits, learned), jnp.asarray(alpha, jnp.float32)
  has_offset = signed and alpha.shape == (2,)
  check_scalars(bits=bits, **({} if has_offset else {'alpha': alpha}))
  alpha = with_slopes(alpha, (alpha, gradient_scale(bits, math.prod(x.shape[1:]), signed=signed)))
  if not signed:
    return pact.activation(x, bits, alpha, choices=choices, noise=noise, learned=learned)
  bits, noise = with_rank(bits, x), None if noise is None else with_rank(noise, x)
  alpha, offset = (alpha[0], alpha[1]) if has_offset else (alpha, None)
  return _two_sided(x, bits, alpha, offset, noise, allowed(choices, learned), False)


def initial_range(
  w: jax.Array, bits: jax.Array | float, *, each: bool = False, group_size: int | None = None
) -> jax.Array:
  """LSQ's start, s = 2 mean |w| / sqrt(Q_P), as a range for kernels.

  Args:
    w: `[..., C_out]`.
    bits: `()` or `[C_out]`.
    each: a range for each output channel.
    group_size: a range for each group of each output channel, see `groups`.

  Returns:
    `()`, of the mean bit-width; with `each` `[C_out]`; with a group size `[G, C_out]`. A channel, or a group, of zeros
    has the mean of the others; 1 where `w` is 0 throughout.
  """
  bits = jnp.asarray(bits, jnp.float32)
  if group_size is not None:
    contracted, channels = math.prod(w.shape[:-1]), w.shape[-1]
    number, counts = groups.count(contracted, group_size), groups.lengths(contracted, group_size)
    sizes = jnp.sum(jnp.abs(groups.split(w, group_size)), axis=0).reshape(number, channels) / counts[:, None]
  else:
    sizes = jnp.mean(jnp.abs(w), axis=tuple(range(w.ndim - 1)) if each else None)
  several = each or group_size is not None
  half = jnp.exp2((bits if several else jnp.mean(bits)) - 1)
  half = with_rank(half, sizes) if half.ndim else half
  alpha = 2 * sizes * half / jnp.sqrt(jnp.maximum(half - 1, 1))
  some = jnp.mean(alpha, where=alpha > 0)  # not a number where there are none
  return jnp.where(alpha > 0, alpha, jnp.where(some > 0, some, 1)).astype(jnp.float32)
