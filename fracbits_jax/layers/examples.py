"""Examples of what a network is called with: their shapes, how many they are, noise in place of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def example_of(inputs: Any) -> tuple[Any, ...]:
  """Shapes and dtypes of a network's arguments.

  Args:
    inputs: a shape, of float32 images `[N, H, W, C]` or one of `[H, W, C]`; an array or `jax.ShapeDtypeStruct`, or a
      tree of them such as a dictionary; or a tuple of these for a network that takes several, an empty one where all
      of them are keyword arguments.
  """
  if type(inputs) in (tuple, list) and len(inputs) and all(isinstance(size, int | np.integer) for size in inputs):
    shape = (1, *inputs) if len(inputs) == 3 else tuple(inputs)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)
  shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) if is_array(x) else x
  return jax.tree.map(shape_of, arguments_of(inputs))


def is_array(x: Any) -> bool:
  """Whether an argument is an array, or stands for one; every other one, such as a flag, is taken as it is."""
  return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def arguments_of(inputs: Any) -> tuple[Any, ...]:
  """The arguments of a call: a tuple of several, or the one that is given; a named tuple is one."""
  return inputs if type(inputs) is tuple else (inputs,)


def examples_in(arguments: Sequence[Any], batch_axes: Any = 0) -> int:
  """How many examples the arguments of a call hold.

  Args:
    arguments: arrays, trees of them, or their shapes.
    batch_axes: the axis that counts examples, as `in_axes` of `jax.vmap`: an integer for all arguments, `None` where a
      call is one example, or a tuple with one of these for each argument.

  Raises:
    ValueError: an axis that an argument does not have.
  """
  axes = batch_axes if isinstance(batch_axes, tuple | list) else (batch_axes,) * len(arguments)
  if len(axes) != len(arguments):
    raise ValueError(f'batch_axes={batch_axes!r} for {len(arguments)} inputs: give an axis for each, or one for all')
  for argument, axis in zip(arguments, axes, strict=True):
    for leaf in jax.tree.leaves(argument):
      if axis is not None and is_array(leaf):
        if not -len(leaf.shape) <= axis < len(leaf.shape):
          raise ValueError(
            f'batch_axes={batch_axes!r}: an input of shape {tuple(leaf.shape)} has no axis {axis}; give that of the '
            'examples, or None where a call is one example'
          )
        return max(int(leaf.shape[axis]), 1)
  return 1
