"""Examples of what a network is called with: their shapes, how many they are, noise in place of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def example_of(inputs: Any) -> tuple[Any, ...]:
  """Shapes and dtypes of a network's arguments.

  Args:
    inputs: a shape, of float32 images `[N, H, W, C]` or one of `[H, W, C]`; an array or `jax.ShapeDtypeStruct`, or a
      tree of them such as a dictionary; or a tuple of these for a network that takes several.
  """
  if isinstance(inputs, tuple | list) and all(isinstance(size, int | np.integer) for size in inputs):
    shape = (1, *inputs) if len(inputs) == 3 else tuple(inputs)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)
  shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
  return jax.tree.map(shape_of, inputs if isinstance(inputs, tuple) else (inputs,))


def examples_in(example: tuple[Any, ...]) -> int:
  """How many examples a network's arguments hold: the leading axis of the first array."""
  return jax.tree.leaves(example)[0].shape[0]


def random_like(inputs: Any, key: jax.Array) -> tuple[Any, ...]:
  """Standard normal noise in place of real numbers, other values as they are; in trees such as dictionaries as well."""
  leaves, tree = jax.tree.flatten(inputs if isinstance(inputs, tuple) else (inputs,))
  arrays = [jnp.asarray(x) for x in leaves]  # 64 bits become 32 where JAX has no others
  noise = lambda i, x: jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
  is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.unflatten(tree, [noise(i, x) if is_real(x) else x for i, x in enumerate(arrays)])
