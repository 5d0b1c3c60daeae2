"""Sums and maxima along axes and of windows, of integers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fracbits_jax.export import arithmetic, rescale
from fracbits_jax.export.needed import Interval, terms
from fracbits_jax.export.values import Value, changed, positive, value
from fracbits_jax.graph.graph import Node


def pooled(node: Node, x: Value, shape: Sequence[int], ends: Interval) -> Value | None:
  """A sum or a maximum; `None` where it is one of images, or of windows without elements.

  Args:
    node: a `reduce_sum`, `reduce_max`, `reduce_window_sum` or `reduce_window_max`.
    x: what it takes.
    shape: of that, as `Node` has it.
    ends: where that may stop.
  """
  axes, count = terms(node, shape)
  if any(shape[axis] < 0 for axis in axes) or (node.op == 'reduce_window_max' and _has_empty_windows(node, shape)):
    return None
  add = lambda array: _pool(node, array)
  if node.op.endswith('max'):
    x = positive(rescale.aligned(x, axes, ends))
    x, offset = changed(x, integers=arithmetic.largest(node, add, x.integers)), x.offset
  else:
    padded = any(any(pad) for pad in node.params.get('padding', ()))
    x = rescale.summed(node, x, axes, count, ends, add, padded=padded)
    offset = _pooled_offset(node, x.offset, shape)
  fields = {name: getattr(x, name) for name in ('least', 'most', 'scale', 'low', 'high', 'error')} | {'offset': offset}
  if not node.op.startswith('reduce_window'):
    fields = {name: np.squeeze(array, axes) if array.ndim else array for name, array in fields.items()}
  return value(x.integers, **fields)


def _pool(node: Node, array: jax.Array) -> jax.Array:
  """A sum or a maximum of integers, or a sum of float64."""
  p = node.params
  if node.op == 'reduce_sum':
    return jnp.sum(array, tuple(p['axes']), dtype=array.dtype)
  if node.op == 'reduce_max':
    return jnp.max(array, tuple(p['axes']))
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  if node.op == 'reduce_window_sum':
    return lax.reduce_window(array, jnp.zeros((), array.dtype), lax.add, *window)
  return lax.reduce_window(array, jnp.int32(np.iinfo(np.int32).min), lax.max, *window)


def _pooled_offset(node: Node, offset: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """What offsets add up to; padding has none."""
  if not offset.any():
    return np.zeros(())
  offset = offset if offset.ndim else offset.reshape((1,) * len(shape))
  full = tuple(offset.shape[axis] if size < 0 else size for axis, size in enumerate(shape))
  with jax.ensure_compile_time_eval():
    pooled = np.asarray(_pool(node, jnp.asarray(np.broadcast_to(offset, full))))
  return np.expand_dims(pooled, node.params['axes']) if node.op == 'reduce_sum' else pooled


def _has_empty_windows(node: Node, shape: Sequence[int]) -> bool:
  """Whether a maximum is one of padding alone."""
  padded = [axis for axis, pad in enumerate(node.params['padding']) if any(pad)]
  if not padded:
    return False
  others = {'window_dimensions': 1, 'window_strides': 1, 'padding': (0, 0), 'base_dilation': 1, 'window_dilation': 1}
  along = lambda key, other: tuple(x if axis in padded else other for axis, x in enumerate(node.params[key]))
  window = [along(key, other) for key, other in others.items()]
  with jax.ensure_compile_time_eval():
    ones = jnp.ones([size if axis in padded else 1 for axis, size in enumerate(shape)], jnp.float32)
    return bool((lax.reduce_window(ones, 0.0, lax.add, *window) == 0).any())
