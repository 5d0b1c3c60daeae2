"""Operations that look up, put or order values by their places, as nodes of ONNX."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fracbits_jax.export.onnx_build import END, Builder, Tensor, output_of, refused
from fracbits_jax.export.onnx_layout import cast_to
from fracbits_jax.graph.graph import Node


def _sorted_by(b: Builder, node: Node, keys: Tensor, axis: int, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
  """Values in order along an axis, and where they were; of equal ones the first comes first."""
  numbers = cast_to(b, keys, 'int32' if keys.dtype == 'bool' else keys.dtype)
  shape = (*keys.shape[:axis], count, *keys.shape[axis + 1 :])
  found = dataclasses.replace(numbers, shape=shape)
  names = [numbers.name, b.constant(np.asarray([count], np.int64))]
  values, places = b.add_several(
    'TopK', names, [found, dataclasses.replace(found, dtype='int64')], axis=axis, largest=int(largest), sorted=1
  )
  return cast_to(b, values, keys.dtype), places


def sort(b: Builder, node: Node) -> Tensor:
  p, xs = node.params, [b.in_order(b.value(x)) for x in node.inputs]
  axis, index = p['dimension'], p['index']
  if p['num_keys'] != 1:
    raise refused(node, 'sorts by several keys')
  if node.shape[axis] < 0:
    raise refused(node, 'sorts the examples')
  values, places = _sorted_by(b, node, xs[0], axis, node.shape[axis], largest=False)
  return values if index == 0 else b.add('GatherElements', [xs[index].name, places.name], output_of(node), axis=axis)


def top_k(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  axis = node.params.get('axis', x.rank - 1)
  found = _sorted_by(b, node, x, axis, node.params['k'], largest=True)[node.params['index']]
  return cast_to(b, found, node.dtype)


def scatter(reduction: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    """Whole windows, such as rows, put at places of the axes before them."""
    numbers = node.params['dimension_numbers']
    x, at, updates = (b.value(v) for v in node.inputs)
    x, at = b.in_order(x), b.in_order(at)
    places, window = tuple(numbers['scatter_dims_to_operand_dims']), tuple(numbers['update_window_dims'])
    rest = tuple(axis for axis in range(x.rank) if axis not in places)
    shape = updates.shape
    whole = [shape[axis] for axis in window] == [x.shape[axis] for axis in rest]
    if tuple(numbers['inserted_window_dims']) != tuple(sorted(places)) or numbers['operand_batching_dims'] or not whole:
      raise refused(node, 'puts other things than whole slices at places of the axes before them')
    if reduction != 'none' and b.opset < 18:
      raise refused(node, f'computes with what is there ({reduction})')
    before = tuple(axis for axis in range(len(shape)) if axis not in window)
    names = [b.in_order(x, (*places, *rest)).name, cast_to(b, at, 'int64').name]
    names.append(b.in_order(updates, (*before, *window)).name)
    how = {} if reduction == 'none' else {'reduction': reduction}
    return b.add('ScatterND', names, output_of(node, (*places, *rest)), **how)

  return convert


def gather(b: Builder, node: Node) -> Tensor:
  """Entries of one axis, such as the rows of an embedding."""
  p, x, indices = node.params, b.value(node.inputs[0]), b.in_order(b.value(node.inputs[1]))
  x = b.in_order(x) if isinstance(x, np.ndarray) else x
  numbers, places = p['dimension_numbers'], indices.shape[:-1]
  axis = next(iter(numbers['start_index_map']), 0)
  offsets = (*range(axis), *range(axis + len(places), len(node.shape)))
  along_one = tuple(numbers['start_index_map']) == tuple(numbers['collapsed_slice_dims']) == (axis,)
  whole = tuple(p['slice_sizes']) == (*x.shape[:axis], 1, *x.shape[axis + 1 :])
  if not along_one or not whole or tuple(numbers['offset_dims']) != offsets or indices.shape[-1] != 1:
    return _gather_slices(b, node, b.in_order(x), indices)
  limited = indices
  if x.shape[axis] >= 0:
    limited = b.add('Min', [indices.name, b.constant(np.asarray(x.shape[axis] - 1, indices.dtype))], indices)
  sizes = b.constant(np.asarray([b.size(size) for size in places], np.int64))
  flat = b.add('Reshape', [limited.name, sizes], Tensor('', places, indices.dtype, tuple(range(len(places)))))
  # A table that is transposed in the file stays so: what is gathered from it is transposed.
  there = lambda a: (a if a < axis else a + len(places) - 1,) if a != axis else tuple(range(axis, axis + len(places)))
  order = tuple(to for a in x.order for to in there(a))
  return b.add('Gather', [x.name, flat.name], output_of(node, order), axis=x.order.index(axis))


def _gather_slices(b: Builder, node: Node, x: Tensor, indices: Tensor) -> Tensor:
  """Whole slices, such as rows, from places of the axes before them; some of those may go along with the indices."""
  p, numbers = node.params, node.params['dimension_numbers']
  batch, batch_at = tuple(numbers['operand_batching_dims']), tuple(numbers['start_indices_batching_dims'])
  places, rank = tuple(numbers['start_index_map']), x.rank
  rest = tuple(axis for axis in range(rank) if axis not in (*batch, *places))
  whole = all(p['slice_sizes'][axis] == x.shape[axis] for axis in rest)
  if tuple(numbers['collapsed_slice_dims']) != tuple(sorted(places)) or not whole or not places:
    raise refused(node, 'gathers other things than whole slices at places of the axes before them')
  last = np.asarray([END if x.shape[axis] < 0 else x.shape[axis] - 1 for axis in places])
  indices = cast_to(b, indices, 'int64')
  indices = b.add('Min', [indices.name, b.constant(last.astype(np.int64))], indices)
  others = tuple(axis for axis in range(indices.rank - 1) if axis not in batch_at)
  names = [b.in_order(x, (*batch, *places, *rest)).name]
  names.append(b.in_order(indices, (*batch_at, *others, indices.rank - 1)).name)
  of_indices = [axis for axis in range(len(node.shape)) if axis not in numbers['offset_dims']]  # as indices has them
  order = (*(of_indices[axis] for axis in (*batch_at, *others)), *numbers['offset_dims'])
  return b.add('GatherND', names, output_of(node, order), batch_dims=len(batch))
