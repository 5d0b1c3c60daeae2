"""What a bit-width that is a real number stands for: its neighbours among the allowed ones, and how they mix."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_BITS = 16

_GOLDEN, _SILVER = 2654435769, 1779033704  # 2^32 times the golden ratio less 1, and the silver one less 2
_LEAST_SHARE = 1 / 16

_ALL_CHOICES = tuple(range(MAX_BITS + 1))


def check_choices(choices: Sequence[int] | None) -> tuple[int, ...]:
  """Returns the allowed bit-widths as a tuple; `None` stands for every integer from 0 to 16.

  Raises:
    ValueError: if `choices` is empty, not strictly increasing, or holds anything but integers from 0 to 16.
  """
  if choices is None:
    return _ALL_CHOICES
  try:
    values = tuple(choices)
    valid = bool(values) and all(int(b) == b and 0 <= b <= MAX_BITS for b in values)
    valid = valid and all(a < b for a, b in itertools.pairwise(values))
  except (TypeError, ValueError, OverflowError):
    valid = False
  if not valid:
    raise ValueError(
      f'choices={choices!r} are not bit-widths: give one or more integers from 0 to {MAX_BITS}, '
      'strictly increasing, such as (2, 4, 8)'
    )
  return tuple(int(b) for b in values)


def neighbours(bits: jax.Array, choices: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The allowed bit-widths around `bits`, and how far it is from the lower to the upper one.

  Args:
    bits: real bit-widths, any shape.
    choices: allowed bit-widths, strictly increasing.

  Returns:
    `(low, high, fraction)`, each float32 in the shape of `bits`. An interior allowed value is its own `low`, the
    largest allowed value is its own `high`, so the derivative with respect to the bits exists on the closed range.
    Bits outside the range are clipped to it. With a single choice, low = high and the fraction is 0.
  """
  bits = jnp.clip(jnp.asarray(bits, jnp.float32), choices[0], choices[-1])
  if len(choices) == 1:
    return bits, bits, jnp.zeros_like(bits)
  if consecutive(choices):
    low = jnp.minimum(jnp.floor(bits), choices[-2])
    return low, low + 1, bits - low
  # Comparisons, since a look-up would be a constant array for each layer in the program.
  low, high = jnp.full_like(bits, choices[0]), jnp.full_like(bits, choices[1])
  for choice, following in itertools.pairwise(choices[1:]):
    above = bits >= choice
    low, high = jnp.where(above, choice, low), jnp.where(above, following, high)
  return low, high, (bits - low) / (high - low)


def as_bits(bits: Any, learned: bool = True) -> jax.Array:
  """Bit-widths as an array of float32, in which those that are not learned are integers.

  Args:
    bits: any shape.
    learned: false for integers that are fixed. One that is none is not a number within a program, where its value is
      not known, and nor is anything that is quantized with it: nothing is rounded without a word.

  Raises:
    ValueError: bits that are not learned, and that are known and no integers from 0 to 16.
  """
  bits = jnp.asarray(bits, jnp.float32)
  if learned:
    return bits
  if isinstance(bits, jax.core.Tracer):
    return jnp.where((jnp.round(bits) == bits) & (bits >= 0) & (bits <= MAX_BITS), bits, jnp.nan)
  known = np.asarray(bits)  # also within a program that is traced
  fits = (np.round(known) == known) & (known >= 0) & (known <= MAX_BITS)
  if not fits.all():
    raise ValueError(
      f'bits={float(known[~fits][0]):g} is not an integer from 0 to {MAX_BITS}, as fixed bits have to be: discretize '
      'them first, or let them be learned'
    )
  return bits


def consecutive(choices: tuple[int, ...]) -> bool:
  """Whether the allowed bit-widths are all integers of a range, each one above the one before."""
  return choices[-1] - choices[0] == len(choices) - 1


def power_of_two(exponent: jax.Array) -> jax.Array:
  """2^exponent, exactly, as float32, of integers of any dtype from -126 to 127.

  The exponent is written where a float32 has it: `exp2` is off by an ulp at some integers, and `ldexp` is thirty
  operations for every quantizer of a network.
  """
  power = lax.bitcast_convert_type((exponent.astype(jnp.int32) + 127) << 23, jnp.float32)
  return jnp.where(exponent == exponent, power, jnp.nan)  # by which what is not a number stays that


def gate(bits: Any) -> Any:
  """min(bits, 1), what is left of a channel whose kernel has that many bits; NumPy gives NumPy, JAX gives JAX.

  The derivative is 1 below 1 bit and 0 from there on.
  """
  xp = jnp if isinstance(bits, jax.Array) else np
  return xp.where(bits >= 1, 1.0, bits)


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Logistic noise, the difference of two Gumbel variables, with which `mixture` draws; one value a bit-width."""
  return jax.random.logistic(key, shape, jnp.float32)


def thresholds(shape: tuple[int, ...], *, by_channel: bool = False) -> jax.Array:
  """Thresholds by which `mixture` gives each element of an array one of the two neighbours: uint32, in 2^-32.

  They are multiples of the golden ratio (Weyl 1916): any stretch of elements has nearly the share that the fraction
  says, and the same elements have it at every step, without noise.

  Args:
    shape: of the array.
    by_channel: whether each channel, an index of the last axis, has its own bit-width, and so the share for itself:
      the golden ratio then counts within a channel, and the silver one from channel to channel.
  """
  whole, last = math.prod(shape), shape[-1] if shape else 1
  index = lax.iota(jnp.uint32, whole).reshape(shape)
  if not by_channel:
    return index * jnp.uint32(_GOLDEN)
  return index // last * jnp.uint32(_GOLDEN) + index % last * jnp.uint32(_SILVER)


def mixture(fraction: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """How much of the upper neighbour a bit-width takes, and the derivative of that with respect to its fraction f.

  Without noise the two neighbours are interpolated: the share is f itself. The error between integers is then smaller
  than at either of them, since the errors of the two cancel in part, and its slope at an integer is not what the next
  bit gives.

  With `thresholds` t each element takes one of the two, so that the *errors* of the neighbours are mixed:

      share = 1 where f > t, else 0;    d share / df = 1 / (2 f) where that is 1, 1 / (2 (1 - f)) where it is 0

  Of a quadratic loss whose elements do not interact this slope, summed against its gradient, is L(q_h) - L(q_l) at
  every f from 1/16 to 15/16: half of the gradient at the one and half of that at the other, each weighed by how seldom
  it is seen. Nearer to an integer one of them is hardly seen and counts less; at the integer itself the slope is half
  of the gradient there, too steep from the lower one and slightly against the upper one.

  With logistic noise n one of the two is drawn for the bit-width as a whole, the upper one with probability f:

      share = 1 where f > sigmoid(-n), else 0,    E[share] = f,    d share / df = 1

  The derivative of a draw is that of its mean, which is 1 at every f (straight-through: Bengio et al. 2013, arXiv
  1308.3432). So the derivative of a quantized value with respect to the bits has no variance of its own, and is that of
  the value's mean over the draws. The derivative of a relaxed draw is another one: with sigmoid(log f/(1 - f) + n) its
  mean is 2/3 at f = 1/2, and grows without limit towards f = 0 and f = 1. At f = 0 nothing is left to chance.

  Args:
    fraction: f from 0 to 1, any shape.
    noise: `None`; or of `thresholds`, an array that broadcasts with f; or of `draw_noise`, in the shape of f.
  """
  if noise is None:
    return fraction, jnp.ones_like(fraction)
  if noise.dtype == jnp.uint32:
    upper, f = fraction > (noise >> 8).astype(jnp.float32) * 2**-24, jnp.clip(fraction, _LEAST_SHARE, 1 - _LEAST_SHARE)
    share, slope = upper.astype(jnp.float32), 0.5 / jnp.where(upper, f, 1 - f)
    return jnp.where(fraction == fraction, share, fraction), slope
  threshold = jax.nn.sigmoid(-noise)
  # What is neither above nor below is not a number, and stays that.
  share = jnp.where(fraction > threshold, 1, jnp.where(fraction <= threshold, 0, fraction))
  return share, jnp.ones_like(fraction)


def check_kernel_bits(w: jax.Array, bits: jax.Array, what: str = 'bits') -> None:
  """Raises `ValueError` unless there is one bit-width (or another such number) for the kernel, or one per channel."""
  if bits.shape not in ((), w.shape[-1:]):
    raise ValueError(f'{what} of shape {bits.shape} do not fit a kernel of shape {w.shape}: give () or {w.shape[-1:]}')


def check_scalars(**values: jax.Array) -> None:
  """Raises `ValueError` for a value that is not a scalar."""
  for name, value in values.items():
    if value.shape:
      raise ValueError(f'{name} of shape {value.shape} given: a layer has one, of shape ()')
