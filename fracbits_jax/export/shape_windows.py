"""Shapes and dtypes of convolutions, products, windows and gathers, by the rules of `jax.lax`; see `shapes`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fracbits_jax.export.shape_values import (
  FLOATS,
  INTEGERS,
  MAX_SIDE,
  NUMBERS,
  Value,
  among,
  axes_of,
  integers,
  require,
)

MODES = ('clip', 'fill_or_drop', 'promise_in_bounds', 'one_hot')


def _windows(
  sizes: Sequence[int], window: Sequence[int], strides: Any, padding: Any, dilation: Any, window_dilation: Any
) -> tuple[int, ...]:
  """At how many places a window stands along each axis; no side gets longer on the way than an array may be."""
  rank = len(sizes)
  strides, dilation, window_dilation = (integers(x, rank, 1) for x in (strides, dilation, window_dilation))
  require(isinstance(padding, tuple) and len(padding) == rank, 'the padding does not fit')
  dilated = lambda size, by: size and 1 + (size - 1) * by
  places = []
  for i, pads in enumerate(padding):
    padded = dilated(sizes[i], dilation[i]) + sum(integers(pads, 2))
    wide = dilated(window[i], window_dilation[i])
    require(0 <= padded <= MAX_SIDE and wide <= MAX_SIDE, 'a padded side or a window is out of range')
    places.append(max(0, (padded - wide) // strides[i] + 1))
  return tuple(places)


def _accumulated(p: Mapping, *xs: Value) -> str:
  """The dtype of a convolution or a product."""
  dtype = among(xs[0].dtype, NUMBERS)
  require(all(x.dtype == dtype for x in xs), 'dtypes differ')
  wide = 'float32' if dtype in FLOATS else 'int32'
  preferred = p.get('preferred_element_type')
  if preferred is None or preferred == dtype:
    return dtype
  require(preferred == wide and dtype not in ('int64', 'uint8', 'uint16', 'uint32'), 'dtypes do not fit')
  return preferred


def conv(p: Mapping, x: Value, kernel: Value) -> Value:
  """A convolution, its axes in any order."""
  rank = len(x.shape)
  require(rank == len(kernel.shape) >= 2, 'ranks differ')
  numbers = p['dimension_numbers']
  of_x, of_kernel, of_out = (axes_of(numbers[key], rank) for key in ('lhs_spec', 'rhs_spec', 'out_spec'))
  require(len(of_x) == len(of_kernel) == len(of_out) == rank, 'axes do not fit')
  (batch, features, *sizes), (outputs, inputs, *window) = (
    [v.shape[axis] for axis in axes] for v, axes in ((x, of_x), (kernel, of_kernel))
  )
  groups, of_batch = integers((p['feature_group_count'], p['batch_group_count']), 2, 1)
  require(features == inputs * groups and outputs % groups == 0, 'channels do not fit')
  require(batch % of_batch == 0 and outputs % of_batch == 0 and 1 in (groups, of_batch), 'groups do not fit')
  places = _windows(sizes, window, *(p[key] for key in ('window_strides', 'padding', 'lhs_dilation', 'rhs_dilation')))
  made = batch // of_batch, outputs, *places
  shape = tuple(size for _, size in sorted(zip(of_out, made, strict=True)))
  return Value(shape, _accumulated(p, x, kernel))


def dot_general(p: Mapping, a: Value, b: Value) -> Value:
  """A product of two arrays over any axes."""
  (of_a, of_b), (batch_a, batch_b) = p['dimension_numbers']
  taken_a, taken_b = axes_of(batch_a + of_a, len(a.shape)), axes_of(batch_b + of_b, len(b.shape))
  require(len(of_a) == len(of_b) and len(batch_a) == len(batch_b), 'axes do not fit')
  require([a.shape[i] for i in taken_a] == [b.shape[i] for i in taken_b], 'shapes differ')
  left = (size for v, taken in ((a, taken_a), (b, taken_b)) for i, size in enumerate(v.shape) if i not in taken)
  return Value((*(a.shape[i] for i in batch_a), *left), _accumulated(p, a, b))


def gather(p: Mapping, x: Value, at: Value) -> Value:
  """Windows of an array, at the places that another one names."""
  rank, numbers = len(x.shape), p['dimension_numbers']
  sizes = integers(p['slice_sizes'], rank, 0)
  among(at.dtype, INTEGERS)
  require(p.get('mode') in (None, *MODES), 'the mode is unknown')
  require(type(p.get('fill_value')) in (int, float, bool, type(None)), 'the fill value is no number')
  require(bool(at.shape), 'there are no indices')
  out_rank = len(numbers['offset_dims']) + len(at.shape) - 1
  offsets = axes_of(numbers['offset_dims'], out_rank)
  collapsed, batching = axes_of(numbers['collapsed_slice_dims'], rank), axes_of(numbers['operand_batching_dims'], rank)
  batching_at = axes_of(numbers['start_indices_batching_dims'], len(at.shape) - 1)
  starts = axes_of(numbers['start_index_map'], rank)
  for axes in (offsets, collapsed, batching):
    require(tuple(sorted(axes)) == axes, 'axes are not sorted')
  require(not set(batching) & {*collapsed, *starts} and not set(collapsed) & set(batching), 'axes do not fit')
  require(len(starts) == at.shape[-1] and len(batching) == len(batching_at), 'indices do not fit')
  require([x.shape[i] for i in batching] == [at.shape[i] for i in batching_at], 'shapes differ')
  require(all(size <= side for size, side in zip(sizes, x.shape, strict=True)), 'slices are too large')
  require(all(sizes[i] == 1 for i in (*collapsed, *batching)), 'slices that are dropped are not of 1')
  window = [sizes[i] for i in range(rank) if i not in collapsed and i not in batching]
  require(len(window) == len(offsets), 'axes do not fit')
  of_window, of_indices = iter(window), iter(at.shape[:-1])
  return Value(tuple(next(of_window) if i in offsets else next(of_indices) for i in range(out_rank)), x.dtype)


def scatter(allowed: Sequence[str]) -> Callable[[Mapping, Value, Value, Value], Value]:
  """The rule for values that are put into an array at places that another one has."""

  def rule(p: Mapping, x: Value, at: Value, updates: Value) -> Value:
    rank, numbers = len(x.shape), p['dimension_numbers']
    require(x.dtype == updates.dtype, 'dtypes differ')
    require(at.dtype in INTEGERS and bool(at.shape), 'there are no indices')
    require(p.get('mode') in (None, *MODES[:3]), 'there is no such mode')
    window = axes_of(numbers['update_window_dims'], len(updates.shape))
    inserted, batching = axes_of(numbers['inserted_window_dims'], rank), axes_of(numbers['operand_batching_dims'], rank)
    batching_at = axes_of(numbers['scatter_indices_batching_dims'], len(at.shape) - 1)
    places = axes_of(numbers['scatter_dims_to_operand_dims'], rank)
    for axes in (window, inserted, batching):
      require(tuple(sorted(axes)) == axes, 'axes are not sorted')
    require(not set(batching) & {*inserted, *places}, 'axes do not fit')
    require(len(places) == at.shape[-1] and len(batching) == len(batching_at), 'indices do not fit')
    require([x.shape[i] for i in batching] == [at.shape[i] for i in batching_at], 'shapes differ')
    kept = [x.shape[i] for i in range(rank) if i not in inserted and i not in batching]
    require(len(window) == len(kept), 'axes do not fit')
    require(len(updates.shape) == len(at.shape) - 1 + len(window), 'ranks differ')
    require(all(updates.shape[i] <= side for i, side in zip(window, kept, strict=True)), 'a window is too large')
    rest = [side for i, side in enumerate(updates.shape) if i not in window]
    require(rest == list(at.shape[:-1]), 'shapes differ')
    return Value(x.shape, among(x.dtype, allowed))

  return rule


def reduce_window(p: Mapping, x: Value) -> Value:
  """A maximum or a sum in windows."""
  window = integers(p['window_dimensions'], len(x.shape), 1)
  places = ('window_strides', 'padding', 'base_dilation', 'window_dilation')
  return Value(_windows(x.shape, window, *(p[key] for key in places)), among(x.dtype, NUMBERS))
