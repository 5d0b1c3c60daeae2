"""What the operations of an exported graph give: shapes and dtypes by rules, computed without JAX and at once.

The rules are those of `jax.lax`. They take what anybody may have written into a file: each raises `ValueError`,
`TypeError`, `KeyError` or `IndexError` where an operation does not fit its inputs, and none takes longer or more memory
than the parameters it is given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fracbits_jax.export.shape_values import (
  BITS,
  DTYPES,
  FLOATS,
  INTEGERS,
  MAX_RANK,
  MAX_SIDE,
  NUMBERS,
  SIGNED,
  Value,
  among,
  axes_of,
  broadcast,
  integers,
  require,
)
from fracbits_jax.export.shape_windows import conv, dot_general, gather, reduce_window, scatter


def _elementwise(count: int, allowed: Sequence[str], gives: str | None = None) -> Callable[..., Value]:
  def rule(p: Mapping, *xs: Value) -> Value:
    del p
    require(len(xs) == count, 'the number of inputs does not fit')
    dtype = among(xs[0].dtype, allowed)
    require(all(x.dtype == dtype for x in xs), 'dtypes differ')
    return Value(broadcast([x.shape for x in xs]), gives or dtype)

  return rule


def _pow(p: Mapping, x: Value, y: Value) -> Value:
  del p
  require(x.dtype in FLOATS and (y.dtype == x.dtype or y.dtype in INTEGERS), 'dtypes do not fit')
  return Value(broadcast([x.shape, y.shape]), x.dtype)


def _clamp(p: Mapping, low: Value, x: Value, high: Value) -> Value:
  del p
  require(low.dtype == x.dtype == high.dtype, 'dtypes differ')
  require(low.shape in ((), x.shape) and high.shape in ((), x.shape), 'shapes differ')
  return x


def _select(p: Mapping, which: Value, *cases: Value) -> Value:
  del p
  require(bool(cases) and all(case == cases[0] for case in cases), 'cases differ')
  require(which.shape in ((), cases[0].shape), 'shapes differ')
  require(which.dtype == 'int32' or (which.dtype == 'bool' and len(cases) <= 2), 'dtypes do not fit')
  return cases[0]


def _affine(p: Mapping, x: Value, scale: Value, offset: Value) -> Value:
  del p
  require(x.dtype == scale.dtype == offset.dtype == 'float32', 'dtypes differ')
  return Value(broadcast([x.shape, scale.shape, offset.shape]), x.dtype)


def _argmax(p: Mapping, x: Value) -> Value:
  (axis,) = axes_of(p['axes'], len(x.shape))
  require(x.shape[axis] > 0 and x.dtype in DTYPES, 'there is nothing to choose from')
  return Value(x.shape[:axis] + x.shape[axis + 1 :], among(p['index_dtype'], INTEGERS))


def _broadcast_in_dim(p: Mapping, x: Value, *sizes: Value) -> Value:
  del sizes  # known, once the number of images is
  shape = integers(p['shape'], least=0)
  dimensions = axes_of(p['broadcast_dimensions'], len(shape))
  require(len(dimensions) == len(x.shape) and tuple(sorted(dimensions)) == dimensions, 'axes do not fit')
  require(all(x.shape[i] in (1, shape[at]) for i, at in enumerate(dimensions)), 'shapes differ')
  return Value(shape, x.dtype)


def _concatenate(p: Mapping, *xs: Value) -> Value:
  require(bool(xs), 'there is nothing to concatenate')
  (axis,) = axes_of((p['dimension'],), len(xs[0].shape))
  rest = lambda x: (x.dtype, x.shape[:axis], x.shape[axis + 1 :])
  require(all(len(x.shape) > axis and rest(x) == rest(xs[0]) for x in xs), 'shapes or dtypes differ')
  first = xs[0].shape
  return Value((*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), xs[0].dtype)


def _convert(p: Mapping, x: Value) -> Value:
  return Value(x.shape, among(p['new_dtype'], DTYPES))


def _dim_as_value(p: Mapping) -> Value:
  integers(p['shape'], 1, 0)
  return Value((), 'int32')


def _expand_dims(p: Mapping, x: Value) -> Value:
  rank = len(x.shape) + len(p['dimensions'])
  new = axes_of(p['dimensions'], min(rank, MAX_RANK))
  old = iter(x.shape)
  return Value(tuple(1 if axis in new else next(old) for axis in range(rank)), x.dtype)


def _integer_pow(p: Mapping, x: Value) -> Value:
  (y,) = integers((p['y'],))
  require(y >= 0 or x.dtype in FLOATS, 'the exponent is below 0')
  return Value(x.shape, among(x.dtype, NUMBERS))


def _iota(p: Mapping, *sizes: Value) -> Value:
  del sizes
  shape = integers(p['shape'], least=0)
  axes_of((p['dimension'],), len(shape))
  return Value(shape, among(p['dtype'], NUMBERS))


def _kernel(p: Mapping) -> Value:
  return Value(p['kernel'].codes.shape, 'float32')


def _pad(p: Mapping, x: Value, value: Value) -> Value:
  require(x.dtype == value.dtype and value.shape == (), 'what is padded with does not fit')
  config = p['padding_config']
  require(isinstance(config, tuple) and len(config) == len(x.shape), 'the padding does not fit')
  shape = []
  for size, pads in zip(x.shape, config, strict=True):
    low, high, within = integers(pads, 3)
    require(within >= 0, 'the padding does not fit')
    shape.append(low + high + size + max(0, size - 1) * within)
  require(min(shape, default=0) >= 0, 'the padding takes more than there is')
  return Value(tuple(shape), x.dtype)


def _quantize(p: Mapping, x: Value) -> Value:
  del p
  return Value(x.shape, among(x.dtype, FLOATS))


def _reduce(allowed: Sequence[str]) -> Callable[[Mapping, Value], Value]:
  def rule(p: Mapping, x: Value) -> Value:
    axes = axes_of(p['axes'], len(x.shape))
    return Value(tuple(size for i, size in enumerate(x.shape) if i not in axes), among(x.dtype, allowed))

  return rule


def _reshape(p: Mapping, x: Value, *sizes: Value) -> Value:
  del sizes
  shape = integers(p['new_sizes'], least=0)
  require(p.get('dimensions') is None and math.prod(shape) == math.prod(x.shape), 'sizes differ')
  return Value(shape, x.dtype)


def _rev(p: Mapping, x: Value) -> Value:
  axes_of(p['dimensions'], len(x.shape))
  return x


def _cumulative(p: Mapping, x: Value) -> Value:
  axes_of((p['axis'],), len(x.shape))
  require(type(p['reverse']) is bool, 'the direction is neither true nor false')
  return Value(x.shape, among(x.dtype, NUMBERS))


def _round(p: Mapping, x: Value) -> Value:
  require(integers((p['rounding_method'],), least=0) <= (1,), 'there is no such rounding')
  return Value(x.shape, among(x.dtype, FLOATS))


def _sort(p: Mapping, *xs: Value) -> Value:
  require(bool(xs) and all(x.shape == xs[0].shape for x in xs), 'shapes differ')
  axes_of((p['dimension'],), len(xs[0].shape))
  keys, index = integers((p['num_keys'], p['index']), least=0)
  require(1 <= keys <= len(xs) and index < len(xs), 'there are fewer arrays')
  return Value(xs[0].shape, among(xs[index].dtype, DTYPES))


def _top_k(p: Mapping, x: Value) -> Value:
  (axis,) = axes_of((p.get('axis', len(x.shape) - 1),), len(x.shape))
  k, index = integers((p['k'], p['index']), least=0)
  require(k <= x.shape[axis] and index < 2, 'there are fewer values')
  shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
  return Value(shape, 'int32' if index else among(x.dtype, NUMBERS))


def _slice(p: Mapping, x: Value) -> Value:
  rank = len(x.shape)
  starts, limits = integers(p['start_indices'], rank, 0), integers(p['limit_indices'], rank, 0)
  strides = (1,) * rank if p.get('strides') is None else integers(p['strides'], rank, 1)
  require(all(a <= b <= c for a, b, c in zip(starts, limits, x.shape, strict=True)), 'it reaches beyond the end')
  return Value(tuple(-((a - b) // by) for a, b, by in zip(starts, limits, strides, strict=True)), x.dtype)


def _squeeze(p: Mapping, x: Value) -> Value:
  axes = axes_of(p['dimensions'], len(x.shape))
  require(all(x.shape[axis] == 1 for axis in axes), 'an axis is longer than 1')
  return Value(tuple(size for i, size in enumerate(x.shape) if i not in axes), x.dtype)


def _transpose(p: Mapping, x: Value) -> Value:
  axes = axes_of(p['permutation'], len(x.shape))
  require(len(axes) == len(x.shape), 'axes do not fit')
  return Value(tuple(x.shape[axis] for axis in axes), x.dtype)


_OF_FLOATS = 'ceil cos erf erf_inv erfc exp exp2 expm1 floor log log1p logistic rsqrt sin sqrt tan tanh'
_OF_FLOATS += ' acos acosh asin asinh atan atanh cosh sinh'

# Each takes the parameters of an operation and then its inputs, as those of `ops.OPS` do.
RULES: dict[str, Callable[..., Value]] = {
  **{op: _elementwise(1, FLOATS) for op in _OF_FLOATS.split()},
  **{op: _elementwise(1, NUMBERS) for op in ('neg', 'sign', 'square')},
  'abs': _elementwise(1, SIGNED),
  **{op: _elementwise(2, NUMBERS) for op in ('add', 'div', 'mul', 'rem', 'sub')},
  **{op: _elementwise(2, DTYPES) for op in ('max', 'min')},
  **{op: _elementwise(2, DTYPES, 'bool') for op in ('eq', 'ge', 'gt', 'le', 'lt', 'ne')},
  **{op: _elementwise(2, BITS) for op in ('and', 'or', 'xor')},
  'is_finite': _elementwise(1, FLOATS, 'bool'),
  'affine': _affine,
  **{f'arg{name}': _argmax for name in ('max', 'min')},
  'broadcast_in_dim': _broadcast_in_dim,
  'clamp': _clamp,
  'concatenate': _concatenate,
  'constant': lambda p, x: x,
  'conv_general_dilated': conv,
  'convert_element_type': _convert,
  **{f'cum{name}': _cumulative for name in ('max', 'min', 'prod', 'sum')},
  'dim_as_value': _dim_as_value,
  'dot_general': dot_general,
  'expand_dims': _expand_dims,
  'gather': gather,
  'integer_pow': _integer_pow,
  'iota': _iota,
  'kernel': _kernel,
  'not': _elementwise(1, BITS),
  'pad': _pad,
  'pow': _pow,
  'quantize': _quantize,
  **{f'reduce_{name}': _reduce(NUMBERS) for name in ('sum', 'prod')},
  **{f'reduce_{name}': _reduce(DTYPES) for name in ('max', 'min')},
  **{f'reduce_{name}': _reduce(BITS) for name in ('and', 'or')},
  'reduce_window_max': reduce_window,
  'reduce_window_sum': reduce_window,
  'reshape': _reshape,
  'rev': _rev,
  'round': _round,
  'scatter': scatter(DTYPES),
  **{f'scatter_{name}': scatter(NUMBERS) for name in ('add', 'max', 'min', 'mul')},
  'select_n': _select,
  'slice': _slice,
  'sort': _sort,
  'squeeze': _squeeze,
  'top_k': _top_k,
  'transpose': _transpose,
}


def result(op: str, params: Mapping[str, Any], inputs: Sequence[Value]) -> Value:
  """What an operation gives.

  Args:
    op: its name, one of `ops.OPS`.
    params: its parameters; sizes are those for a number of images, none is below 0.
    inputs: what it takes.
  """
  shape, dtype = RULES[op](params, *inputs)
  if len(shape) > MAX_RANK or any(size > MAX_SIDE for size in shape):
    raise ValueError(f'it would give the shape {shape}'[:100])
  return Value(shape, dtype)
