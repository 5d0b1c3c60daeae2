"""Groups: neighbouring weights of an output channel that share a range, as in weight-only quantization.

A kernel `[..., C_out]` is a matrix `[n, C_out]` here, its contracted axes as one. Group i of a channel are its rows i g
to (i + 1) g - 1, with g the group size; the last group is shorter where g does not divide n. With the groups side by
side a kernel is one of G C_out channels, G = ceil(n / g), so that what holds for the ranges of channels holds for those
of groups.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fracbits_jax.fast.derivatives import with_slopes

RANGE_BITS = (16, 32)
_LEAST, _LEAST_NORMAL, _MOST = 2.0**-24, 2.0**-14, 65504.0  # of float16


def count(contracted: int, size: int) -> int:
  """G, the groups of a channel with so many weights."""
  return -(-contracted // size)


def lengths(contracted: int, size: int) -> np.ndarray:
  """The weights of each group of a channel, `[G]`."""
  return np.minimum(size, contracted - size * np.arange(count(contracted, size)))


def split(w: jax.Array, size: int) -> jax.Array:
  """A kernel `[..., C_out]` with each group as a channel, `[min(g, n), G C_out]`; 0 behind a shorter last group."""
  contracted, channels = _matrix(w.shape)
  number, rows = count(contracted, size), max(min(size, contracted), 1)
  w = jnp.pad(w.reshape(contracted, channels), ((0, number * rows - contracted), (0, 0)))
  return jnp.swapaxes(w.reshape(number, rows, channels), 0, 1).reshape(rows, number * channels)


def joined(w: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The kernel of this shape that `split` was given."""
  contracted, channels = _matrix(shape)
  groups = jnp.swapaxes(w.reshape(len(w), w.shape[1] // max(channels, 1), channels), 0, 1)
  return groups.reshape(-1, channels)[:contracted].reshape(shape)


def spread(ranges: Any, shape: tuple[int, ...], size: int) -> Any:
  """The range of each weight of a kernel of this shape, from the ranges of its groups `[G, C_out]`."""
  xp, contracted = jnp if isinstance(ranges, jax.Array) else np, _matrix(shape)[0]
  return xp.repeat(ranges, min(size, contracted), axis=0)[:contracted].reshape(shape)


def by_group(bits: jax.Array, number: int) -> jax.Array:
  """Bit-widths, or noise that draws them, `()` or `[C_out]`, as `split` has the channels: `()` or `[G C_out]`."""
  return jnp.tile(bits, number) if bits.ndim else bits


def stored(ranges: jax.Array, bits: int) -> jax.Array:
  """Ranges as they are stored in so many bits: with 16 the nearest float16 above 0, of the same sign.

  The gradient is straight-through. What is beyond the largest float16, 65504, becomes that, and what is below the least
  one, 2^-24, becomes that one, so that no range is 0.
  """
  if bits == 32:
    return ranges
  sizes = jnp.clip(jnp.abs(ranges), _LEAST, _MOST)
  # A compiler may leave a cast to float16 and back out, and `reduce_precision` makes 0 of what is below the normal.
  rounded = lax.reduce_precision(sizes, exponent_bits=5, mantissa_bits=10)
  small = jnp.round(sizes * 2.0**24) * 2.0**-24
  found = jnp.where(sizes < _LEAST_NORMAL, small, rounded)
  return with_slopes(jnp.where(ranges < 0, -found, found), (ranges, 1))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
  """n and C_out."""
  return int(np.prod(shape[:-1])), shape[-1]
