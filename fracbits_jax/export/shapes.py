"""What the operations of an exported graph give: shapes and dtypes by rules, computed without JAX and at once.

The rules are those of `jax.lax`. They take what anybody may have written into a file: each raises `ValueError`,
`TypeError`, `KeyError` or `IndexError` where an operation does not fit its inputs, and none takes longer or more memory
than the parameters it is given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

FLOATS = ('float32', 'float16', 'bfloat16')
INTEGERS = ('int32', 'int64', 'uint8', 'int8', 'int16', 'uint16', 'uint32')
DTYPES = (*FLOATS, *INTEGERS, 'bool')

MAX_RANK = 16
MAX_SIDE = 2**31 - 1
MODES = ('clip', 'fill_or_drop', 'promise_in_bounds', 'one_hot')

_NUMBERS = FLOATS + INTEGERS
_SIGNED = tuple(d for d in _NUMBERS if not d.startswith('uint'))
_BITS = (*INTEGERS, 'bool')


class Value(NamedTuple):
  """A value of a graph: its shape and the name of its dtype."""

  shape: tuple[int, ...]
  dtype: str


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


def integers(value: Any, count: int | None = None, least: int = -MAX_SIDE) -> tuple[int, ...]:
  """A tuple of integers from `least` to `MAX_SIDE`, `count` of them; `ValueError` for anything else."""
  if not isinstance(value, tuple) or not all(type(x) is int and least <= x <= MAX_SIDE for x in value):
    raise ValueError('a parameter is no list of integers, or one is out of range')
  if count is not None and len(value) != count:
    raise ValueError(f'a parameter has {len(value)} entries instead of {count}')
  return value


def _require(condition: bool, what: str) -> None:
  if not condition:
    raise ValueError(what)


def _among(dtype: Any, allowed: Sequence[str]) -> str:
  _require(isinstance(dtype, str) and dtype in allowed, 'a dtype does not fit')
  return dtype


def _axes(value: Any, rank: int) -> tuple[int, ...]:
  """Axes of an array, each at most once."""
  axes = integers(value, least=0)
  _require(all(axis < rank for axis in axes) and len(set(axes)) == len(axes), 'axes do not fit')
  return axes


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """The shape of several, each a scalar's or of one rank, in which sides of 1 are repeated."""
  shapes = [shape for shape in shapes if shape] or [()]
  found = shapes[0]
  for shape in shapes[1:]:
    if shape != found:
      _require(len(shape) == len(found), 'ranks differ')
      _require(all(a == b or a == 1 or b == 1 for a, b in zip(found, shape, strict=True)), 'shapes differ')
      found = tuple(b if a == 1 else a for a, b in zip(found, shape, strict=True))
  return found


def _elementwise(count: int, allowed: Sequence[str], gives: str | None = None) -> Callable[..., Value]:
  def rule(p: Mapping, *xs: Value) -> Value:
    del p
    _require(len(xs) == count, 'the number of inputs does not fit')
    dtype = _among(xs[0].dtype, allowed)
    _require(all(x.dtype == dtype for x in xs), 'dtypes differ')
    return Value(_broadcast([x.shape for x in xs]), gives or dtype)

  return rule


def _pow(p: Mapping, x: Value, y: Value) -> Value:
  del p
  _require(x.dtype in FLOATS and (y.dtype == x.dtype or y.dtype in INTEGERS), 'dtypes do not fit')
  return Value(_broadcast([x.shape, y.shape]), x.dtype)


def _clamp(p: Mapping, low: Value, x: Value, high: Value) -> Value:
  del p
  _require(low.dtype == x.dtype == high.dtype, 'dtypes differ')
  _require(low.shape in ((), x.shape) and high.shape in ((), x.shape), 'shapes differ')
  return x


def _select(p: Mapping, which: Value, *cases: Value) -> Value:
  del p
  _require(bool(cases) and all(case == cases[0] for case in cases), 'cases differ')
  _require(which.shape in ((), cases[0].shape), 'shapes differ')
  _require(which.dtype == 'int32' or (which.dtype == 'bool' and len(cases) <= 2), 'dtypes do not fit')
  return cases[0]


def _affine(p: Mapping, x: Value, scale: Value, offset: Value) -> Value:
  del p
  _require(x.dtype == scale.dtype == offset.dtype == 'float32', 'dtypes differ')
  return Value(_broadcast([x.shape, scale.shape, offset.shape]), x.dtype)


def _argmax(p: Mapping, x: Value) -> Value:
  (axis,) = _axes(p['axes'], len(x.shape))
  _require(x.shape[axis] > 0 and x.dtype in DTYPES, 'there is nothing to choose from')
  return Value(x.shape[:axis] + x.shape[axis + 1 :], _among(p['index_dtype'], INTEGERS))


def _broadcast_in_dim(p: Mapping, x: Value, *sizes: Value) -> Value:
  del sizes  # known, once the number of images is
  shape = integers(p['shape'], least=0)
  dimensions = _axes(p['broadcast_dimensions'], len(shape))
  _require(len(dimensions) == len(x.shape) and tuple(sorted(dimensions)) == dimensions, 'axes do not fit')
  _require(all(x.shape[i] in (1, shape[at]) for i, at in enumerate(dimensions)), 'shapes differ')
  return Value(shape, x.dtype)


def _concatenate(p: Mapping, *xs: Value) -> Value:
  _require(bool(xs), 'there is nothing to concatenate')
  (axis,) = _axes((p['dimension'],), len(xs[0].shape))
  rest = lambda x: (x.dtype, x.shape[:axis], x.shape[axis + 1 :])
  _require(all(len(x.shape) > axis and rest(x) == rest(xs[0]) for x in xs), 'shapes or dtypes differ')
  first = xs[0].shape
  return Value((*first[:axis], sum(x.shape[axis] for x in xs), *first[axis + 1 :]), xs[0].dtype)


def _convert(p: Mapping, x: Value) -> Value:
  return Value(x.shape, _among(p['new_dtype'], DTYPES))


def _windows(
  sizes: Sequence[int], window: Sequence[int], strides: Any, padding: Any, dilation: Any, window_dilation: Any
) -> tuple[int, ...]:
  """At how many places a window stands along each axis; no side gets longer on the way than an array may be."""
  rank = len(sizes)
  strides, dilation, window_dilation = (integers(x, rank, 1) for x in (strides, dilation, window_dilation))
  _require(isinstance(padding, tuple) and len(padding) == rank, 'the padding does not fit')
  dilated = lambda size, by: size and 1 + (size - 1) * by
  places = []
  for i, pads in enumerate(padding):
    padded = dilated(sizes[i], dilation[i]) + sum(integers(pads, 2))
    wide = dilated(window[i], window_dilation[i])
    _require(0 <= padded <= MAX_SIDE and wide <= MAX_SIDE, 'a padded side or a window is out of range')
    places.append(max(0, (padded - wide) // strides[i] + 1))
  return tuple(places)


def _accumulated(p: Mapping, *xs: Value) -> str:
  """The dtype of a convolution or a product."""
  dtype = _among(xs[0].dtype, _NUMBERS)
  _require(all(x.dtype == dtype for x in xs), 'dtypes differ')
  wide = 'float32' if dtype in FLOATS else 'int32'
  preferred = p.get('preferred_element_type')
  if preferred is None or preferred == dtype:
    return dtype
  _require(preferred == wide and dtype not in ('int64', 'uint8', 'uint16', 'uint32'), 'dtypes do not fit')
  return preferred


def _conv(p: Mapping, x: Value, kernel: Value) -> Value:
  rank = len(x.shape)
  _require(rank == len(kernel.shape) >= 2, 'ranks differ')
  numbers = p['dimension_numbers']
  of_x, of_kernel, of_out = (_axes(numbers[key], rank) for key in ('lhs_spec', 'rhs_spec', 'out_spec'))
  _require(len(of_x) == len(of_kernel) == len(of_out) == rank, 'axes do not fit')
  (batch, features, *sizes), (outputs, inputs, *window) = (
    [v.shape[axis] for axis in axes] for v, axes in ((x, of_x), (kernel, of_kernel))
  )
  groups, of_batch = integers((p['feature_group_count'], p['batch_group_count']), 2, 1)
  _require(features == inputs * groups and outputs % groups == 0, 'channels do not fit')
  _require(batch % of_batch == 0 and outputs % of_batch == 0 and 1 in (groups, of_batch), 'groups do not fit')
  places = _windows(sizes, window, *(p[key] for key in ('window_strides', 'padding', 'lhs_dilation', 'rhs_dilation')))
  made = batch // of_batch, outputs, *places
  shape = tuple(size for _, size in sorted(zip(of_out, made, strict=True)))
  return Value(shape, _accumulated(p, x, kernel))


def _dot_general(p: Mapping, a: Value, b: Value) -> Value:
  (of_a, of_b), (batch_a, batch_b) = p['dimension_numbers']
  taken_a, taken_b = _axes(batch_a + of_a, len(a.shape)), _axes(batch_b + of_b, len(b.shape))
  _require(len(of_a) == len(of_b) and len(batch_a) == len(batch_b), 'axes do not fit')
  _require([a.shape[i] for i in taken_a] == [b.shape[i] for i in taken_b], 'shapes differ')
  left = (size for v, taken in ((a, taken_a), (b, taken_b)) for i, size in enumerate(v.shape) if i not in taken)
  return Value((*(a.shape[i] for i in batch_a), *left), _accumulated(p, a, b))


def _expand_dims(p: Mapping, x: Value) -> Value:
  rank = len(x.shape) + len(p['dimensions'])
  new = _axes(p['dimensions'], min(rank, MAX_RANK))
  old = iter(x.shape)
  return Value(tuple(1 if axis in new else next(old) for axis in range(rank)), x.dtype)


def _gather(p: Mapping, x: Value, at: Value) -> Value:
  rank, numbers = len(x.shape), p['dimension_numbers']
  sizes = integers(p['slice_sizes'], rank, 0)
  _among(at.dtype, INTEGERS)
  _require(p.get('mode') in (None, *MODES), 'the mode is unknown')
  _require(type(p.get('fill_value')) in (int, float, bool, type(None)), 'the fill value is no number')
  _require(bool(at.shape), 'there are no indices')
  out_rank = len(numbers['offset_dims']) + len(at.shape) - 1
  offsets = _axes(numbers['offset_dims'], out_rank)
  collapsed, batching = _axes(numbers['collapsed_slice_dims'], rank), _axes(numbers['operand_batching_dims'], rank)
  batching_at = _axes(numbers['start_indices_batching_dims'], len(at.shape) - 1)
  starts = _axes(numbers['start_index_map'], rank)
  for axes in (offsets, collapsed, batching):
    _require(tuple(sorted(axes)) == axes, 'axes are not sorted')
  _require(not set(batching) & {*collapsed, *starts} and not set(collapsed) & set(batching), 'axes do not fit')
  _require(len(starts) == at.shape[-1] and len(batching) == len(batching_at), 'indices do not fit')
  _require([x.shape[i] for i in batching] == [at.shape[i] for i in batching_at], 'shapes differ')
  _require(all(size <= side for size, side in zip(sizes, x.shape, strict=True)), 'slices are too large')
  _require(all(sizes[i] <= 1 for i in (*collapsed, *batching)), 'slices that are dropped are larger than 1')
  window = [sizes[i] for i in range(rank) if i not in collapsed and i not in batching]
  _require(len(window) == len(offsets), 'axes do not fit')
  of_window, of_indices = iter(window), iter(at.shape[:-1])
  return Value(tuple(next(of_window) if i in offsets else next(of_indices) for i in range(out_rank)), x.dtype)


def _integer_pow(p: Mapping, x: Value) -> Value:
  (y,) = integers((p['y'],))
  _require(y >= 0 or x.dtype in FLOATS, 'the exponent is below 0')
  return Value(x.shape, _among(x.dtype, _NUMBERS))


def _iota(p: Mapping, *sizes: Value) -> Value:
  del sizes
  shape = integers(p['shape'], least=0)
  _axes((p['dimension'],), len(shape))
  return Value(shape, _among(p['dtype'], _NUMBERS))


def _kernel(p: Mapping) -> Value:
  return Value(p['kernel'].codes.shape, 'float32')


def _pad(p: Mapping, x: Value, value: Value) -> Value:
  _require(x.dtype == value.dtype and value.shape == (), 'what is padded with does not fit')
  config = p['padding_config']
  _require(isinstance(config, tuple) and len(config) == len(x.shape), 'the padding does not fit')
  shape = []
  for size, pads in zip(x.shape, config, strict=True):
    low, high, within = integers(pads, 3)
    _require(within >= 0, 'the padding does not fit')
    shape.append(low + high + size + max(0, size - 1) * within)
  _require(min(shape, default=0) >= 0, 'the padding takes more than there is')
  return Value(tuple(shape), x.dtype)


def _quantize(p: Mapping, x: Value) -> Value:
  del p
  return Value(x.shape, _among(x.dtype, FLOATS))


def _reduce(allowed: Sequence[str]) -> Callable[[Mapping, Value], Value]:
  def rule(p: Mapping, x: Value) -> Value:
    axes = _axes(p['axes'], len(x.shape))
    return Value(tuple(size for i, size in enumerate(x.shape) if i not in axes), _among(x.dtype, allowed))

  return rule


def _reduce_window(p: Mapping, x: Value) -> Value:
  window = integers(p['window_dimensions'], len(x.shape), 1)
  places = ('window_strides', 'padding', 'base_dilation', 'window_dilation')
  return Value(_windows(x.shape, window, *(p[key] for key in places)), _among(x.dtype, _NUMBERS))


def _reshape(p: Mapping, x: Value, *sizes: Value) -> Value:
  del sizes
  shape = integers(p['new_sizes'], least=0)
  _require(p.get('dimensions') is None and math.prod(shape) == math.prod(x.shape), 'sizes differ')
  return Value(shape, x.dtype)


def _rev(p: Mapping, x: Value) -> Value:
  _axes(p['dimensions'], len(x.shape))
  return x


def _slice(p: Mapping, x: Value) -> Value:
  rank = len(x.shape)
  starts, limits = integers(p['start_indices'], rank, 0), integers(p['limit_indices'], rank, 0)
  strides = (1,) * rank if p.get('strides') is None else integers(p['strides'], rank, 1)
  _require(all(a <= b <= c for a, b, c in zip(starts, limits, x.shape, strict=True)), 'it reaches beyond the end')
  return Value(tuple(-((a - b) // by) for a, b, by in zip(starts, limits, strides, strict=True)), x.dtype)


def _squeeze(p: Mapping, x: Value) -> Value:
  axes = _axes(p['dimensions'], len(x.shape))
  _require(all(x.shape[axis] == 1 for axis in axes), 'an axis is longer than 1')
  return Value(tuple(size for i, size in enumerate(x.shape) if i not in axes), x.dtype)


def _transpose(p: Mapping, x: Value) -> Value:
  axes = _axes(p['permutation'], len(x.shape))
  _require(len(axes) == len(x.shape), 'axes do not fit')
  return Value(tuple(x.shape[axis] for axis in axes), x.dtype)


_OF_FLOATS = 'ceil cos erf erf_inv exp exp2 expm1 floor log log1p logistic rsqrt sin sqrt tan tanh'

# Each takes the parameters of an operation and then its inputs, as those of `ops.OPS` do.
RULES: dict[str, Callable[..., Value]] = {
  **{op: _elementwise(1, FLOATS) for op in _OF_FLOATS.split()},
  **{op: _elementwise(1, _SIGNED) for op in ('abs', 'neg', 'sign', 'square')},
  **{op: _elementwise(2, _NUMBERS) for op in ('add', 'div', 'mul', 'rem', 'sub')},
  **{op: _elementwise(2, DTYPES) for op in ('max', 'min')},
  **{op: _elementwise(2, DTYPES, 'bool') for op in ('eq', 'ge', 'gt', 'le', 'lt', 'ne')},
  **{op: _elementwise(2, _BITS) for op in ('and', 'or', 'xor')},
  'is_finite': _elementwise(1, FLOATS, 'bool'),
  'affine': _affine,
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast_in_dim,
  'clamp': _clamp,
  'concatenate': _concatenate,
  'constant': lambda p, x: x,
  'conv_general_dilated': _conv,
  'convert_element_type': _convert,
  'dot_general': _dot_general,
  'expand_dims': _expand_dims,
  'gather': _gather,
  'integer_pow': _integer_pow,
  'iota': _iota,
  'kernel': _kernel,
  'not': _elementwise(1, _BITS),
  'pad': _pad,
  'pow': _pow,
  'quantize': _quantize,
  **{f'reduce_{name}': _reduce(_NUMBERS) for name in ('sum', 'prod')},
  **{f'reduce_{name}': _reduce(DTYPES) for name in ('max', 'min')},
  **{f'reduce_{name}': _reduce(_BITS) for name in ('and', 'or')},
  'reduce_window_max': _reduce_window,
  'reduce_window_sum': _reduce_window,
  'reshape': _reshape,
  'rev': _rev,
  'select_n': _select,
  'slice': _slice,
  'squeeze': _squeeze,
  'transpose': _transpose,
}
