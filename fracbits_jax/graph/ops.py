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
    preferred_element_type=_preferred(p),
  )


def _dot(p: Mapping, a: jax.Array, b: jax.Array) -> jax.Array:
  return lax.dot_general(a, b, p['dimension_numbers'], preferred_element_type=_preferred(p))


def _preferred(p: Mapping) -> Any:
  preferred = p.get('preferred_element_type')
  return None if preferred is None else jnp.dtype(preferred)


def _max_window(p: Mapping, x: jax.Array) -> jax.Array:
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  least = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
  return lax.reduce_window(x, x.dtype.type(least), lax.max, *window)


def _sum_window(p: Mapping, x: jax.Array) -> jax.Array:
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  return lax.reduce_window(x, x.dtype.type(0), lax.add, *window)


def _gather(p: Mapping, x: jax.Array, indices: jax.Array) -> jax.Array:
  numbers = lax.GatherDimensionNumbers(**p['dimension_numbers'])
  mode = None if p.get('mode') is None else lax.GatherScatterMode[p['mode'].upper()]
  return lax.gather(x, indices, numbers, p['slice_sizes'], mode=mode, fill_value=p.get('fill_value'))


def _round(p: Mapping, x: jax.Array) -> jax.Array:
  return lax.round(x, lax.RoundingMethod(p['rounding_method']))


def _sort(p: Mapping, *xs: jax.Array) -> jax.Array:
  return lax.sort(xs, dimension=p['dimension'], is_stable=True, num_keys=p['num_keys'])[p['index']]


def _top_k(p: Mapping, x: jax.Array) -> jax.Array:
  axis = p.get('axis', x.ndim - 1)
  return jnp.moveaxis(lax.top_k(jnp.moveaxis(x, axis, -1), p['k'])[p['index']], -1, axis)


def _scatter(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  def apply(p: Mapping, x: jax.Array, indices: jax.Array, updates: jax.Array) -> jax.Array:
    numbers = lax.ScatterDimensionNumbers(**p['dimension_numbers'])
    mode = None if p.get('mode') is None else lax.GatherScatterMode[p['mode'].upper()]
    return function(x, indices, updates, numbers, mode=mode)

  return apply


_ELEMENTWISE = {
  **{name: getattr(lax, name) for name in ('abs', 'add', 'ceil', 'clamp', 'cos', 'div', 'eq', 'erf', 'erf_inv', 'exp')},
  **{name: getattr(lax, name) for name in ('exp2', 'expm1', 'floor', 'ge', 'gt', 'is_finite', 'le', 'log', 'log1p')},
  **{name: getattr(lax, name) for name in ('logistic', 'lt', 'max', 'min', 'mul', 'ne', 'neg', 'pow', 'rem', 'rsqrt')},
  **{name: getattr(lax, name) for name in ('sign', 'sin', 'sqrt', 'square', 'sub', 'tan', 'tanh')},
  **{name: getattr(lax, name) for name in ('acos', 'acosh', 'asin', 'asinh', 'atan', 'atanh', 'cosh', 'erfc', 'sinh')},
  **{name: getattr(lax, f'bitwise_{name}') for name in ('and', 'not', 'or', 'xor')},
}
_REDUCTIONS = {f'reduce_{name}': getattr(lax, f'reduce_{name}') for name in ('and', 'max', 'min', 'or', 'prod', 'sum')}

_CUMULATIVE = {f'cum{name}': getattr(lax, f'cum{name}') for name in ('max', 'min', 'prod', 'sum')}
_SCATTERS = {
  'scatter': lax.scatter,
  **{f'scatter_{name}': getattr(lax, f'scatter_{name}') for name in ('add', 'max', 'min', 'mul')},
}

# Those of `jax.lax` that give several arrays, of which a node has one: the one at its parameter `index`.
SEVERAL = ('sort', 'top_k')

# Each takes the parameters of the node and then its inputs.
OPS: dict[str, Callable[..., jax.Array]] = {
  **{name: (lambda p, *xs, f=f: f(*xs)) for name, f in _ELEMENTWISE.items()},
  **{name: (lambda p, x, f=f: f(x, p['axes'])) for name, f in _REDUCTIONS.items()},
  **{name: (lambda p, x, f=f: f(x, p['axis'], p['reverse'])) for name, f in _CUMULATIVE.items()},
  **{name: _scatter(f) for name, f in _SCATTERS.items()},
  'affine': lambda p, x, scale, offset: x * scale + offset,
  'argmax': lambda p, x: lax.argmax(x, p['axes'][0], jnp.dtype(p['index_dtype'])),
  'argmin': lambda p, x: lax.argmin(x, p['axes'][0], jnp.dtype(p['index_dtype'])),
  'broadcast_in_dim': lambda p, x, *_: lax.broadcast_in_dim(x, p['shape'], p['broadcast_dimensions']),
  'concatenate': lambda p, *xs: lax.concatenate(xs, p['dimension']),
  'constant': lambda p, x: x,
  'conv_general_dilated': _conv,
  'convert_element_type': lambda p, x: lax.convert_element_type(x, jnp.dtype(p['new_dtype'])),
  'dim_as_value': lambda p: jnp.asarray(p['shape'][0], jnp.int32),
  'dot_general': _dot,
  'expand_dims': lambda p, x: lax.expand_dims(x, p['dimensions']),
  'gather': _gather,
  'integer_pow': lambda p, x: lax.integer_pow(x, p['y']),
  'iota': lambda p, *_: lax.broadcasted_iota(jnp.dtype(p['dtype']), p['shape'], p['dimension']),
  'kernel': lambda p: jnp.asarray(p['kernel'].value),
  'pad': lambda p, x, value: lax.pad(x, value, p['padding_config']),
  'quantize': lambda p, x: p['grid'].quantize(x),
  'reduce_window_max': _max_window,
  'reduce_window_sum': _sum_window,
  'reshape': lambda p, x, *_: lax.reshape(x, p['new_sizes']),
  'rev': lambda p, x: lax.rev(x, p['dimensions']),
  'round': _round,
  'select_n': lambda p, which, *cases: lax.select_n(which, *cases),
  'slice': lambda p, x: lax.slice(x, p['start_indices'], p['limit_indices'], p.get('strides')),
  'sort': _sort,
  'squeeze': lambda p, x: lax.squeeze(x, p['dimensions']),
  'top_k': _top_k,
  'transpose': lambda p, x: lax.transpose(x, p['permutation']),
}

# Parameters that hold sizes of arrays, in which -k stands for k times the number of images.
_SIZES = ('shape', 'new_sizes', 'limit_indices', 'slice_sizes')


def sized(params: Mapping[str, Any], images: int) -> dict[str, Any]:
  """The parameters for a number of images."""
  return {
    key: tuple(-size * images if size < 0 else size for size in value) if key in _SIZES else value
    for key, value in params.items()
  }


def apply(op: str, params: Mapping[str, Any], inputs: Sequence[Any], images: int) -> jax.Array:
  """What an operation gives for a number of images."""
  return OPS[op](sized(params, images), *inputs)
