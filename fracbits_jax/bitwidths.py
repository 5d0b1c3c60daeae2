"""What a bit-width that is a real number stands for: its neighbours among the allowed ones, and how they mix."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_BITS = 16

_ALL_CHOICES = tuple(range(MAX_BITS + 1))
_EDGE = 0.01  # the drawn mixture's derivative is taken no nearer than this to an allowed bit-width


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


def consecutive(choices: tuple[int, ...]) -> bool:
  """Whether the allowed bit-widths are all integers of a range, each one above the one before."""
  return choices[-1] - choices[0] == len(choices) - 1


def power_of_two(exponent: jax.Array) -> jax.Array:
  """2^exponent, exactly, as float32, of integers of any dtype from -126 to 127.

  The exponent is written where a float32 has it: `exp2` is off by an ulp at some integers, and `ldexp` is thirty
  operations for every quantizer of a network.
  """
  return lax.bitcast_convert_type((exponent.astype(jnp.int32) + 127) << 23, jnp.float32)


def gate(bits: Any) -> Any:
  """min(bits, 1), what is left of a channel whose kernel has that many bits; NumPy gives NumPy, JAX gives JAX.

  The derivative is 1 below 1 bit and 0 from there on.
  """
  xp = jnp if isinstance(bits, jax.Array) else np
  return xp.where(bits < 1, bits, 1.0)


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Logistic noise, the difference of two Gumbel variables, with which `mixture` draws; one value a bit-width."""
  return jax.random.logistic(key, shape, jnp.float32)


def mixture(fraction: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """How much of the upper neighbour a bit-width takes, and the derivative of that with respect to its fraction.

  Without noise the two neighbours are interpolated: the share is the fraction f itself. With logistic noise n one of
  them is drawn, the upper one with probability f, and the derivative is that of the relaxed draw, s = sigmoid(log
  f/(1 - f) + n), at temperature 1 (straight-through Gumbel: Jang et al. 2017, arXiv 1611.01144):

      share = 1 where s > 1/2, else 0,    d share / df = s (1 - s) / (f (1 - f))

  The derivative is taken at f clipped to [0.01, 0.99], where it is bounded; at f = 0 nothing is left to chance.

  Args:
    fraction: f from 0 to 1, any shape.
    noise: logistic noise of the same shape, or `None`.
  """
  if noise is None:
    return fraction, jnp.ones_like(fraction)
  share = (fraction > jax.nn.sigmoid(-noise)).astype(jnp.float32)
  f = jnp.clip(fraction, _EDGE, 1 - _EDGE)
  soft = jax.nn.sigmoid(jnp.log(f) - jnp.log1p(-f) + noise)
  return share, soft * (1 - soft) / (f * (1 - f))
