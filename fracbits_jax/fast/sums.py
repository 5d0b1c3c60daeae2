"""Several sums over large arrays in one pass."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fracbits_jax.fast import varying

_GROUPS = 8  # more, and XLA's CPU compiler no longer unrolls the loop over them


def sums(terms: Sequence[jax.Array], *, by_channel: bool = False) -> tuple[jax.Array, ...]:
  """The sums of arrays of one shape, each of them given as it is computed, so that none of them has to be stored.

  XLA's CPU backend fuses what a sum is made of only with that sum, and only where it consists of certain operations;
  otherwise it stores each term whole. One reduction of all terms over a short leading axis does fuse with everything,
  and leaves an eighth to be summed. Other platforms get plain sums.

  Args:
    terms: float32 arrays of one shape.
    by_channel: sum over all axes but the last one.

  Returns:
    For each term its sum, `()` or, by channel, `[C]`.
  """
  return _sums(by_channel, *varying.alike(*terms))


def _plain(by_channel, *terms):
  axes = tuple(range(terms[0].ndim - by_channel))
  return tuple(jnp.sum(term, axes) for term in terms)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sums(by_channel, *terms):
  plain = functools.partial(_plain, by_channel)

  def grouped(*terms):
    groups = math.gcd(math.prod(terms[0].shape[:-1]), _GROUPS)
    if groups == 1 or not terms[0].size:
      return plain(*terms)
    # The channels stay an axis, or whatever is broadcast along them would be looked up element by element.
    rows = [term.reshape(groups, -1, term.shape[-1]) for term in terms]
    if len(rows) == 1:  # a reduction of one array is not fused
      half = groups // 2
      top, bottom = grouped_sums([rows[0][:half], rows[0][half:]])
      return (jnp.sum(top + bottom, 0 if by_channel else None),)
    return tuple(jnp.sum(part, 0 if by_channel else None) for part in grouped_sums(rows))

  def grouped_sums(rows):
    zeros = [jnp.zeros((), row.dtype) for row in rows]
    add = lambda left, right: tuple(map(jnp.add, left, right))
    return lax.reduce(rows, zeros, add, (0,))

  return tuple(lax.platform_dependent(*terms, cpu=grouped, default=plain))


@_sums.defjvp
def _sums_jvp(by_channel, terms, tangents):
  return _sums(by_channel, *terms), _plain(by_channel, *tangents)
