"""Kernels in the manner of DoReFa (Zhou et al. 2016, arXiv 1606.06160), at real bit-widths."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fracbits_jax.fast.derivatives import with_backward
from fracbits_jax.fast.inlined import inlined
from fracbits_jax.fast.sums import sums
from fracbits_jax.quantize.bitwidths import as_bits, check_kernel_bits
from fracbits_jax.quantize.unit import SMALLEST, allowed, check_scheme, on_unit, sum_to, with_rank

# A kernel is divided by its largest value, and so is its gradient. Where that value is next to nothing, the gradient is
# divided by a usual one: the first step is as long as that of a usual kernel. Where there are only zeros, what a step
# makes of them is its direction alone, however short it is. It is so short that next to nothing remains, also behind a
# batch norm, by which the gradients of zeros are hundreds of times as large. A kernel that is left at rate x gradient
# would next be divided by that, and go to where tanh has no gradient any more.
_NEXT_TO_NOTHING, _USUAL, _OF_ZEROS = 2.0**-10, 2.0**-4, 2.0**14


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
  bits, noise = with_rank(bits, w), None if noise is None else with_rank(noise, w)
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
  slope = on_unit((ratio + 1) / 2, bits, noise, scheme, 0.5, choices)[1]
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
  return (2 * on_unit((ratio + 1) / 2, bits, noise, scheme, 0.5, choices)[0] - 1).astype(w.dtype)
