"""Values that are computed once and stored, where a compiler would compute them again in each of their consumers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def stored(compute: Callable[[], jax.Array], witness: jax.Array) -> jax.Array:
  """What `compute` gives, kept apart from what is made of it.

  XLA's CPU backend fuses what is cheap with all of its consumers, whatever barriers say, and evaluates it for each of
  their elements. Compilers fuse nothing with a branch. The one not taken is that of a `witness` which is not a number.
  """
  result = jax.eval_shape(compute)
  first = witness.ravel()[0].astype(jnp.float32)  # of an integer a compiler knows that it equals itself
  number = first == first
  return lax.cond(number, compute, lambda: jnp.full(result.shape, jnp.nan, result.dtype))


def stored_on_cpu(function: Callable[[Any], jax.Array], tree: Any) -> jax.Array:
  """`function(tree)`, stored where a branch costs nothing; its derivative is made where it is needed.

  Args:
    function: of one argument, and of no other traced value.
    tree: an array or a tree of arrays.
  """

  @jax.custom_jvp
  def value(tree):
    on_cpu = lambda tree: stored(lambda: function(tree), jax.tree.leaves(tree)[0])
    return lax.platform_dependent(tree, cpu=on_cpu, default=function)

  @value.defjvp
  def _(primals, tangents):
    return value(*primals), jax.jvp(function, primals, tangents)[1]

  return value(tree)
