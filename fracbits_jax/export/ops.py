"""The operations of an exported graph, computed in floating point.

Their names and parameters are those of `jax.lax`, as far as they matter; sizes below 0 count images, see `graph.Node`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _conv(p: Mapping, x: jax.Array, kernel: jax.Array) -> jax.Array:
  numbers = lax.ConvDimensionNumbers(**{key: tuple(value) for key, value in p['dimension_numbers'].items()})
  return lax.conv_general_dilated(
    x,
    kernel,
    p['window_strides'],
    p['padding'],
    lhs_dilation=p['lhs_dilation'],
    rhs_dilation=p['rhs_dilation'],
    dimension_numbers=numbers,
    feature_group_count=p['feature_group_count'],
    batch_group_count=p['batch_group_count'],
  )


def _max_window(p: Mapping, x: jax.Array) -> jax.Array:
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  return lax.reduce_window(x, -jnp.inf, lax.max, *window)


def _sum_window(p: Mapping, x: jax.Array) -> jax.Array:
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  return lax.reduce_window(x, 0.0, lax.add, *window)


def _gather(p: Mapping, x: jax.Array, indices: jax.Array) -> jax.Array:
  numbers = lax.GatherDimensionNumbers(**p['dimension_numbers'])
  mode = lax.GatherScatterMode(p['mode']) if p.get('mode') is not None else None
  return lax.gather(x, indices, numbers, p['slice_sizes'], mode=mode, fill_value=p.get('fill_value'))


_ELEMENTWISE = {
  **{name: getattr(lax, name) for name in ('abs', 'add', 'ceil', 'clamp', 'cos', 'div', 'eq', 'erf', 'erf_inv', 'exp')},
  **{name: getattr(lax, name) for name in ('exp2', 'expm1', 'floor', 'ge', 'gt', 'is_finite', 'le', 'log', 'log1p')},
  **{name: getattr(lax, name) for name in ('logistic', 'lt', 'max', 'min', 'mul', 'ne', 'neg', 'pow', 'rem', 'rsqrt')},
  **{name: getattr(lax, name) for name in ('sign', 'sin', 'sqrt', 'square', 'sub', 'tan', 'tanh')},
  **{name: getattr(lax, f'bitwise_{name}') for name in ('and', 'not', 'or', 'xor')},
}

# Each takes the parameters of the node and then its inputs.
OPS: dict[str, Callable[..., jax.Array]] = {
  **{name: (lambda p, *xs, f=f: f(*xs)) for name, f in _ELEMENTWISE.items()},
  'affine': lambda p, x, scale, offset: x * scale + offset,
  'argmax': lambda p, x: lax.argmax(x, p['axes'][0], jnp.dtype(p['index_dtype'])),
  'broadcast_in_dim': lambda p, x, *_: lax.broadcast_in_dim(x, p['shape'], p['broadcast_dimensions']),
  'concatenate': lambda p, *xs: lax.concatenate(xs, p['dimension']),
  'constant': lambda p, x: x,
  'conv_general_dilated': _conv,
  'convert_element_type': lambda p, x: lax.convert_element_type(x, jnp.dtype(p['new_dtype'])),
  'dot_general': lambda p, a, b: lax.dot_general(a, b, p['dimension_numbers']),
  'expand_dims': lambda p, x: lax.expand_dims(x, p['dimensions']),
  'gather': _gather,
  'integer_pow': lambda p, x: lax.integer_pow(x, p['y']),
  'iota': lambda p, *_: lax.broadcasted_iota(jnp.dtype(p['dtype']), p['shape'], p['dimension']),
  'kernel': lambda p: jnp.asarray(p['kernel'].value),
  'pad': lambda p, x, value: lax.pad(x, value, p['padding_config']),
  'quantize': lambda p, x: p['grid'].quantize(x),
  'reduce_and': lambda p, x: jnp.all(x, p['axes']),
  'reduce_max': lambda p, x: jnp.max(x, p['axes']),
  'reduce_min': lambda p, x: jnp.min(x, p['axes']),
  'reduce_or': lambda p, x: jnp.any(x, p['axes']),
  'reduce_prod': lambda p, x: jnp.prod(x, p['axes']),
  'reduce_sum': lambda p, x: jnp.sum(x, p['axes']),
  'reduce_window_max': _max_window,
  'reduce_window_sum': _sum_window,
  'reshape': lambda p, x, *_: lax.reshape(x, p['new_sizes']),
  'rev': lambda p, x: lax.rev(x, p['dimensions']),
  'select_n': lambda p, which, *cases: lax.select_n(which, *cases),
  'slice': lambda p, x: lax.slice(x, p['start_indices'], p['limit_indices'], p['strides']),
  'squeeze': lambda p, x: lax.squeeze(x, p['dimensions']),
  'transpose': lambda p, x: lax.transpose(x, p['permutation']),
}

# Parameters that hold sizes of arrays, in which -k stands for k times the number of images.
_SIZES = ('shape', 'new_sizes', 'limit_indices', 'slice_sizes')


def apply(op: str, params: Mapping[str, Any], inputs: Sequence[jax.Array], images: int) -> jax.Array:
  """What an operation gives for a number of images."""
  sized = {
    key: tuple(-size * images if size < 0 else size for size in value) if key in _SIZES else value
    for key, value in params.items()
  }
  return OPS[op](sized, *inputs)
