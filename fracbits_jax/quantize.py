"""Quantizers whose bit-width is a real number: arrays in, arrays out.

The method is FracBits (Yang and Jin, AAAI 2021, arXiv 2007.02017). A bit-width between two integers interpolates
between the two quantizers, so that it has a gradient and can be learned beside the weights.

Notation: x in [0, 1]; b an integer number of bits; n = 2^b - 1; z the zero point, the value that 0 bits give.
For real bits, l and h are the neighbouring allowed bit-widths below and above, and f = (bits - l) / (h - l).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.bitwidths import as_bits, check_choices, consecutive, mixture, neighbours, power_of_two
from fracbits_jax.derivatives import with_backward, with_slopes
from fracbits_jax.inlined import inlined
from fracbits_jax.sums import sums

SCHEMES = ('original', 'modified')

SMALLEST = float(np.finfo(np.float32).tiny)  # below it processors that flush to zero divide by 0

# A kernel is divided by its largest value, and so is its gradient. Where that value is next to nothing, the gradient is
# divided by a usual one: the first step is as long as that of a usual kernel. Where there are only zeros, what a step
# makes of them is its direction alone, however short it is. It is so short that next to nothing remains, also behind a
# batch norm, by which the gradients of zeros are hundreds of times as large. A kernel that is left at rate x gradient
# would next be divided by that, and go to where tanh has no gradient any more.
_NEXT_TO_NOTHING, _USUAL, _OF_ZEROS = 2.0**-10, 2.0**-4, 2.0**14


def check_scheme(scheme: str) -> str:
  """Returns `scheme`; raises `ValueError` unless it is one of `SCHEMES`."""
  if scheme not in SCHEMES:
    raise ValueError(f'scheme={scheme!r} is unknown: choose one of {", ".join(map(repr, SCHEMES))}')
  return scheme


def _integer(x: jax.Array, bits: jax.Array, scheme: str, zero_point: float) -> jax.Array:
  """The plain quantizer, without its gradient; `bits` holds integers, of any dtype."""
  levels = power_of_two(jnp.asarray(bits))
  n = levels - 1
  if scheme == 'original':
    q = jnp.round(n * x) / jnp.maximum(n, 1)
  else:
    # Compiled, the least x of a kernel can be a rounding below 0.
    q = jnp.maximum(jnp.minimum(jnp.floor(levels * x), n), 0) / levels
  return jnp.where(bits <= 0, jnp.float32(zero_point), q)


def interpolate(
  quantizer: Callable[[jax.Array], Any], bits: jax.Array, choices: tuple[int, ...], noise: jax.Array | None
) -> tuple[Any, Any]:
  """What `quantizer` gives between integers, and the derivative of that with respect to the bits.

  Args:
    quantizer: a function of integer bit-widths, in the shape of `bits`, as float32; gives an array or a tree of arrays.
    bits: real bit-widths, of the rank of what the quantizer returns.
    choices: allowed bit-widths; empty where the bits are integers already, which leaves a plain quantizer.
    noise: `None`, or the logistic noise by which one of the two neighbours is drawn, in the shape of `bits`.
  """
  if not choices:
    quantized = quantizer(bits)
    return quantized, jax.tree.map(jnp.zeros_like, quantized)
  low, high, fraction = neighbours(bits, choices)
  q_low = quantizer(low)
  if len(choices) == 1:
    return q_low, jax.tree.map(jnp.zeros_like, q_low)
  q_high = quantizer(high)
  share, share_slope = mixture(fraction, noise)
  in_range = (bits >= choices[0]) & (bits <= choices[-1])
  share_by_bit = jnp.where(in_range, share_slope if consecutive(choices) else share_slope / (high - low), 0)
  between = jax.tree.map(lambda at_low, at_high: (1 - share) * at_low + share * at_high, q_low, q_high)
  return between, jax.tree.map(lambda at_low, at_high: (at_high - at_low) * share_by_bit, q_low, q_high)


def allowed(choices: Sequence[int] | None, learned: bool) -> tuple[int, ...]:
  """The allowed bit-widths as `interpolate` takes them."""
  choices = check_choices(choices)
  return choices if learned else ()


def with_rank(bits: jax.Array, x: jax.Array) -> jax.Array:
  """`bits` with leading axes of size 1, as many as its broadcast against `x` needs."""
  return bits.reshape((1,) * (x.ndim - bits.ndim) + bits.shape)


def sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Sums `x` over the axes along which an array of `shape`, of the same rank, was broadcast."""
  axes = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
  return jnp.sum(x, axis=axes, keepdims=True)


def uniform(x: jax.Array, bits: jax.Array | int, *, scheme: str = 'original', zero_point: float = 0.0) -> jax.Array:
  """Quantizes `x` in [0, 1] at integer bit-widths.

  | scheme     | b >= 1                             | b = 0 |
  | ---------- | ---------------------------------- | ----- |
  | `original` | round(n x) / n, half to even       | z     |
  | `modified` | min(floor(2^b x), n) / 2^b         | z     |

  `original` is DoReFa's (Zhou et al. 2016, arXiv 1606.06160). The gradient with respect to `x` is the identity
  (straight-through), at 0 bits too.

  Args:
    x: values in [0, 1], any shape.
    bits: integers from 0 to 16, a scalar or an array that broadcasts against `x`.
    scheme: `original` or `modified`.
    zero_point: z, what 0 bits give.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: unknown scheme, or bits that are not integers from 0 to 16. Within a program, where their values are not
      known, such bits give what is not a number.
  """
  check_scheme(scheme)
  x = jnp.asarray(x)
  try:
    bits = as_bits(bits, learned=False)
  except ValueError as error:
    raise ValueError(f'{error}; fractional bits need quantize.fractional') from None
  quantized = _integer(x.astype(jnp.float32), with_rank(bits, x), scheme, zero_point)
  return with_slopes(quantized.astype(x.dtype), (x, 1))


def _on_unit(x, bits, noise, scheme, zero_point, choices):
  quantizer = functools.partial(_integer, x.astype(jnp.float32), scheme=scheme, zero_point=zero_point)
  return interpolate(quantizer, bits, choices, noise)


@inlined(0, 1, 2)
def _fractional_backward(scheme, zero_point, choices, arguments, g):
  x, bits, noise = arguments
  _, slope = _on_unit(x, bits, noise, scheme, zero_point, choices)
  return g, sum_to(g.astype(jnp.float32) * slope, bits.shape).astype(bits.dtype), None


@with_backward(_fractional_backward, static=(3, 4, 5))
@inlined(3, 4, 5)
def _fractional(x, bits, noise, scheme, zero_point, choices):
  return _on_unit(x, bits, noise, scheme, zero_point, choices)[0].astype(x.dtype)


def fractional(
  x: jax.Array,
  bits: jax.Array | float,
  *,
  scheme: str = 'original',
  zero_point: float = 0.0,
  choices: Sequence[int] | None = None,
  noise: jax.Array | None = None,
  learned: bool = True,
) -> jax.Array:
  """Quantizes `x` in [0, 1] at real bit-widths, by interpolation between the neighbouring allowed ones.

      q_bits(x)   = (1 - f) q_l(x) + f q_h(x)
      dq / dx     = 1                               (straight-through)
      dq / dbits  = (q_h(x) - q_l(x)) / (h - l)     (0 where the bits were clipped)

  At allowed bit-widths this equals `uniform` bit for bit. The derivative with respect to the bits is the one from the
  right at interior allowed values and the one from the left at the largest. Only `x` and `bits` are kept for the
  backward pass. Source: FracBits, section 3.

  Args:
    x: values in [0, 1], any shape.
    bits: real bit-widths, a scalar or an array that broadcasts against `x` (for instance `[C]` against `[..., C]`).
    scheme: `original` or `modified`, as for `uniform`.
    zero_point: z, what 0 bits give.
    choices: allowed bit-widths, strictly increasing; `None` means 0, 1, ..., 16. Bits outside are clipped.
    noise: of `bitwidths.draw_noise`, in the shape of `bits`: draws one of the two neighbours, the upper one with
      probability f, instead of interpolating; `bitwidths.mixture` gives the derivative.
    learned: false says that the bits are integers, fixed after a search: a plain quantizer, at its price, with no
      gradient for them. They are taken as they are, whatever the choices; any that are no integers from 0 to 16 are
      refused, or within a program, where their values are not known, give what is not a number.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: unknown scheme, choices that are empty, unsorted or outside 0 to 16, or fixed bits that are no integers.
  """
  check_scheme(scheme)
  choices = allowed(choices, learned)
  x = jnp.asarray(x)
  bits, noise = (None if b is None else with_rank(b, x) for b in (as_bits(bits, learned), noise))
  return _fractional(x, bits, noise, scheme, float(zero_point), choices)


def check_kernel_bits(w: jax.Array, bits: jax.Array) -> None:
  """Raises `ValueError` unless there is one bit-width for the kernel, or one per output channel."""
  if bits.shape not in ((), w.shape[-1:]):
    raise ValueError(f'bits of shape {bits.shape} do not fit a kernel of shape {w.shape}: give () or {w.shape[-1:]}')


def check_scalars(**values: jax.Array) -> None:
  """Raises `ValueError` for a value that is not a scalar."""
  for name, value in values.items():
    if value.shape:
      raise ValueError(f'{name} of shape {value.shape} given: a layer has one, of shape ()')


def kernel(
  w: jax.Array,
  bits: jax.Array | float,
  *,
  scheme: str = 'original',
  choices: Sequence[int] | None = None,
  noise: jax.Array | None = None,
  learned: bool = True,
  kept: jax.Array | None = None,
) -> jax.Array:
  """Quantizes a kernel in the manner of DoReFa (Zhou et al. 2016), at real bit-widths.

      t = tanh(w) / max |tanh(w)|                   (the maximum over the whole kernel)
      kernel(w) = 2 q_bits((t + 1) / 2) - 1         (z = 1/2, so 0 bits give exactly 0)

  The gradient is straight-through at the rounding and flows through the normalisation, by which it is divided by
  max |tanh(w)|. Where that is below 2^-10 the gradient is divided by 2^-4 instead, and that of a kernel of zeros, with
  t = 0, by 2^14: the first step of such a kernel gives it a direction, the second a usual size.

  Args:
    w: kernel `[..., C_out]`.
    bits: real bit-widths, `()` for the whole kernel or `[C_out]` for one per output channel.
    scheme: `original` or `modified`.
    choices: allowed bit-widths, as for `fractional`.
    noise: draws bit-widths, as for `fractional`.
    learned: false for fixed integers, as for `fractional`.
    kept: booleans that broadcast against `w`, false where a channel has been pruned: such entries do not count for the
      maximum, so that taking them away changes nothing.

  Returns:
    The quantized kernel in [-1, 1], of the shape and dtype of `w`.

  Raises:
    ValueError: as `fractional`, or bits of another shape.
  """
  check_scheme(scheme)
  w, bits = jnp.asarray(w), as_bits(bits, learned)
  check_kernel_bits(w, bits)
  bits, noise = (None if b is None else with_rank(b, w) for b in (bits, noise))
  return _kernel(w, bits, noise, kept, scheme, allowed(choices, learned))


def _normalised(w, kept, largest):
  """t / max |t|, with the maximum if that is known."""
  # tanh is odd, and compilers do not know it: with tanh(-w) the backward pass computes its own, instead of keeping that
  # of the forward pass for so long.
  t = jnp.tanh(w.astype(jnp.float32)) if largest is None else -jnp.tanh(-w.astype(jnp.float32))
  t = t if kept is None else t * kept
  largest = jnp.max(jnp.abs(t), initial=0) if largest is None else largest
  return t / jnp.where(largest < SMALLEST, 1, largest), largest


def _divisor(largest):
  """What the gradient of a kernel is divided by: its largest |tanh(w)|, unless that is next to nothing."""
  return jnp.where(largest < SMALLEST, _OF_ZEROS, jnp.where(largest < _NEXT_TO_NOTHING, _USUAL, largest))


@inlined(0, 1)
def _kernel_backward(scheme, choices, arguments, g):
  w, bits, noise, kept = arguments
  # The maximum is that of the forward pass, which compilers see.
  _, largest = _normalised(w, kept, None)
  ratio, _ = _normalised(w, kept, largest)
  slope = _on_unit((ratio + 1) / 2, bits, noise, scheme, 0.5, choices)[1]
  g = g.astype(jnp.float32)
  # Within rounding: a compiler may multiply by 1 / max, and compute tanh in another order than in the forward pass.
  at_largest = (jnp.abs(ratio) > 1 - 1e-6).astype(jnp.float32)
  towards_largest, ties, g_bits = sums((g * ratio, at_largest, 2 * g * slope), by_channel=True)
  # What moves the maximum moves all other ratios the other way; equal maxima share this.
  share = jnp.sum(towards_largest) / jnp.maximum(jnp.sum(ties), 1)
  g_ratio = g - share * at_largest * jnp.sign(ratio)
  g_w = g_ratio / _divisor(largest) * (1 - jnp.square(ratio * largest))
  g_w = g_w if kept is None else g_w * kept
  g_bits = sum_to(with_rank(g_bits, w), bits.shape)
  return g_w.astype(w.dtype), g_bits.astype(bits.dtype), None, None


@with_backward(_kernel_backward, static=(4, 5))
@inlined(4, 5)
def _kernel(w, bits, noise, kept, scheme, choices):
  ratio, _ = _normalised(w, kept, None)
  return (2 * _on_unit((ratio + 1) / 2, bits, noise, scheme, 0.5, choices)[0] - 1).astype(w.dtype)


def side(alpha: jax.Array) -> jax.Array:
  """The derivative of |alpha|: 1 or -1, and 1 at 0, where that of `sign` would keep a clip for ever."""
  return jnp.where(alpha < 0, -1, 1)


def _clipped(x, bits, alpha, noise, signed, choices):
  """q, its derivative with respect to the bits, and x / |alpha|; q is in units of |alpha|."""
  ratio = x.astype(jnp.float32) / jnp.maximum(jnp.abs(alpha), SMALLEST)
  if not signed:
    return *_on_unit(jnp.clip(ratio, 0, 1), bits, noise, 'original', 0.0, choices), ratio
  q, slope = _on_unit((jnp.clip(ratio, -1, 1) + 1) / 2, bits, noise, 'original', 0.5, choices)
  return 2 * q - 1, 2 * slope, ratio


@inlined(0, 1)
def _activation_backward(signed, choices, arguments, g):
  x, bits, alpha, noise = arguments
  q, slope, ratio = _clipped(x, bits, alpha, noise, signed, choices)
  lowest = -1 if signed else 0
  inside = (ratio >= lowest) & (ratio <= 1)
  beyond = jnp.where(ratio > 1, 1, lowest)
  g_x = jnp.where(inside, g, 0)
  g = g.astype(jnp.float32)
  # Rounding is straight-through, so that q - x / |alpha| moves with the bits alone.
  gap = with_slopes(jnp.where(inside, q - ratio, beyond), (bits, jnp.where(inside, slope, 0)))
  towards_alpha = g * gap
  if len(choices) > 1:
    g_alpha, g_bits = sums((towards_alpha, g * slope))
  else:
    g_alpha, g_bits = *sums((towards_alpha,)), jnp.zeros_like(bits)
  g_alpha, g_bits = g_alpha * side(alpha), g_bits * jnp.abs(alpha)
  return g_x, g_bits.astype(bits.dtype), g_alpha.astype(alpha.dtype), None


@with_backward(_activation_backward, static=(4, 5))
@inlined(4, 5)
def _activation(x, bits, alpha, noise, signed, choices):
  q, _, _ = _clipped(x, bits, alpha, noise, signed, choices)
  return (jnp.abs(alpha) * q).astype(x.dtype)


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
  """Clips the inputs of a layer at a learned alpha and quantizes them at a real bit-width.

      unsigned:  |alpha| q_bits(clip(x, 0, |alpha|) / |alpha|)
      signed:    |alpha| (2 q_bits((clip(x, -|alpha|, |alpha|) / |alpha| + 1) / 2) - 1)

  PACT (Choi et al. 2018, arXiv 1805.06085) with the corrected gradient of alpha (SAT: Jin et al. 2019, arXiv
  1912.10207): q - x / alpha inside the range, 1 above it, and -1 below it for signed inputs. The gradient of `x` is
  1 inside the range, edges included, and 0 outside. Everything is recomputed from `x` in the backward pass.

  Args:
    x: inputs of a layer, any shape.
    bits: one real bit-width, shape `()`.
    alpha: the clip, shape `()`, used as |alpha|.
    signed: whether the range is [-|alpha|, |alpha|] rather than [0, |alpha|].
    choices: allowed bit-widths, as for `fractional`.
    noise: draws the bit-width, as for `fractional`; shape `()`.
    learned: false for a fixed integer, as for `fractional`.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: bits or alpha that are not scalars, or bad choices.
  """
  x, bits, alpha = jnp.asarray(x), as_bits(bits, learned), jnp.asarray(alpha, jnp.float32)
  check_scalars(bits=bits, alpha=alpha)
  return _activation(x, bits, alpha, noise, bool(signed), allowed(choices, learned))


def rescale(quantized: jax.Array, kept: jax.Array | None = None) -> jax.Array:
  """Scales a quantized kernel as SAT does for a layer without a batch norm behind it (Jin et al. 2019).

      kernel / (sqrt(fan) std(kernel)),    fan = C_out k_h k_w

  The standard deviation is the unbiased one over all entries; no gradient flows through the factor.

  Args:
    quantized: kernel `[C_in, C_out]` or `[k_h, k_w, C_in, C_out]`.
    kept: booleans that broadcast against it, false where a channel has been pruned: such entries do not count.

  Returns:
    The scaled kernel, same shape and dtype; unchanged where the kernel is constant.
  """
  return quantized * jax.lax.stop_gradient(rescale_factor(quantized, kept)).astype(quantized.dtype)


def rescale_factor(quantized: jax.Array, kept: jax.Array | None = None) -> jax.Array:
  """What `rescale` multiplies a kernel by, `()`; 1 where the kernel is constant. Arguments as there."""
  fan = math.prod(quantized.shape[:-2]) * quantized.shape[-1]
  if not quantized.size:
    return jnp.float32(1)
  q = quantized.astype(jnp.float32)
  where = None if kept is None else jnp.broadcast_to(kept, q.shape)
  # The deviation of equal values need not be 0, as their mean is rounded.
  std = jnp.std(q, ddof=1, where=where)
  varies = jnp.max(q, initial=-jnp.inf, where=where) > jnp.min(q, initial=jnp.inf, where=where)
  varies &= std > 0
  return jnp.where(varies, 1 / (jnp.sqrt(jnp.float32(fan)) * jnp.where(varies, std, 1)), 1)
