"""Quantizers on the unit interval, and their interpolation between neighbouring integer bit-widths.

The method is FracBits (Yang and Jin, AAAI 2021, arXiv 2007.02017), section 3. A bit-width between two integers
interpolates between the two quantizers, so that it has a gradient and can be learned beside the weights.

Notation: x in [0, 1]; b an integer number of bits; n = 2^b - 1; z the zero point, the value that 0 bits give.
For real bits, l and h are the neighbouring allowed bit-widths below and above, and f = (bits - l) / (h - l).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.fast.derivatives import with_backward, with_slopes
from fracbits_jax.fast.inlined import inlined
from fracbits_jax.quantize.bitwidths import as_bits, check_choices, consecutive, mixture, neighbours, power_of_two

SCHEMES = ('original', 'modified')

SMALLEST = float(np.finfo(np.float32).tiny)  # below it processors that flush to zero divide by 0


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
    noise: `None`, or what says which of the two neighbours is taken, as for `bitwidths.mixture`.
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


def on_unit(
  x: jax.Array, bits: jax.Array, noise: jax.Array | None, scheme: str, zero_point: float, choices: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """The interpolated quantizer of `x` in [0, 1] and its derivative with respect to the bits, float32."""
  quantizer = functools.partial(_integer, x.astype(jnp.float32), scheme=scheme, zero_point=zero_point)
  return interpolate(quantizer, bits, choices, noise)


@inlined(0, 1, 2)
def _fractional_backward(scheme, zero_point, choices, arguments, g):
  x, bits, noise = arguments
  _, slope = on_unit(x, bits, noise, scheme, zero_point, choices)
  return g, sum_to(g.astype(jnp.float32) * slope, bits.shape).astype(bits.dtype), None


@with_backward(_fractional_backward, static=(3, 4, 5))
@inlined(3, 4, 5)
def _fractional(x, bits, noise, scheme, zero_point, choices):
  return on_unit(x, bits, noise, scheme, zero_point, choices)[0].astype(x.dtype)


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
    noise: of `bitwidths.thresholds`, in the shape of `x`: each element takes one of the two neighbours; or of
      `bitwidths.draw_noise`, in the shape of `bits`: draws one of the two neighbours, the upper one with
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
  bits, noise = with_rank(as_bits(bits, learned), x), None if noise is None else with_rank(noise, x)
  return _fractional(x, bits, noise, scheme, float(zero_point), choices)
