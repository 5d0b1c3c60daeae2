"""Values that are computed once and stored, where a compiler would compute them again in each of their consumers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fracbits_jax.fast import varying

# A signalling NaN, as bits of a float32: every operation quiets those, so that no result is one.
_NEVER = 0x7FA5C3D1


def stored(compute: Callable[[], jax.Array], witness: jax.Array) -> jax.Array:
  """What `compute` gives, kept apart from what is made of it.

  XLA's CPU backend fuses what is cheap with all of its consumers, whatever barriers say, and evaluates it for each of
  their elements. Compilers fuse nothing with a branch. The one not taken is that of a `witness` whose first entry is
  one NaN among millions, which no arithmetic gives. What is not a number in any other way passes as it is.
  """
  result = jax.eval_shape(compute)
  first = lax.bitcast_convert_type(witness.ravel()[0].astype(jnp.float32), jnp.int32)
  return lax.cond(first != _NEVER, compute, lambda: _nothing(result))


def _nothing(like: jax.ShapeDtypeStruct) -> jax.Array:
  return varying.full(like, jnp.nan if jnp.issubdtype(like.dtype, jnp.inexact) else 0)


def stored_on_cpu(function: Callable[[Any], jax.Array], tree: Any) -> jax.Array:
  """`function(tree)`, stored where a branch costs nothing; its derivative is made where it is needed.

  Args:
    function: of one argument.
    tree: an array or a tree of arrays.
  """
  if not any(isinstance(x, jax.core.Tracer) and x.size for x in jax.tree.leaves(tree)):
    return function(tree)  # no program is being made
  function, closed_over = jax.closure_convert(function, tree)

  @jax.custom_jvp
  def stored_value(tree, *closed_over):
    def on_cpu(tree, *closed_over):
      witness = next(x for x in jax.tree.leaves(tree) if jnp.size(x))
      return stored(lambda: function(tree, *closed_over), jnp.asarray(witness))

    return lax.platform_dependent(tree, *closed_over, cpu=on_cpu, default=function)

  @stored_value.defjvp
  def _(primals, tangents):
    return stored_value(*primals), jax.jvp(function, primals, tangents)[1]

  return stored_value(tree, *closed_over)
