"""Inputs of a layer, clipped at a learned value: PACT (Choi et al. 2018, arXiv 1805.06085), at real bit-widths."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fracbits_jax.fast.derivatives import with_backward, with_slopes
from fracbits_jax.fast.inlined import inlined
from fracbits_jax.fast.sums import sums
from fracbits_jax.quantize.bitwidths import as_bits, check_scalars
from fracbits_jax.quantize.unit import SMALLEST, allowed, on_unit


def side(alpha: jax.Array) -> jax.Array:
  """The derivative of |alpha|: 1 or -1, and 1 at 0, where that of `sign` would keep a clip for ever."""
  return jnp.where(alpha < 0, -1, 1)


def _clipped(x, bits, alpha, noise, signed, choices):
  """q, its derivative with respect to the bits, and x / |alpha|; q is in units of |alpha|."""
  ratio = x.astype(jnp.float32) / jnp.maximum(jnp.abs(alpha), SMALLEST)
  if not signed:
    return *on_unit(jnp.clip(ratio, 0, 1), bits, noise, 'original', 0.0, choices), ratio
  q, slope = on_unit((jnp.clip(ratio, -1, 1) + 1) / 2, bits, noise, 'original', 0.5, choices)
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
