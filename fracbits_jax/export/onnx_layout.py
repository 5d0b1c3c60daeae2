"""How the arrays of a graph are laid out in ONNX: shapes, orders of axes, parts of an array, numbers along an axis."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fracbits_jax.export.onnx_build import DTYPES, END, Builder, Tensor, output_of, refused
from fracbits_jax.export.onnx_windows import mirrored
from fracbits_jax.graph.graph import Node


def same_order(b: Builder, node: Node) -> tuple[list[str], Tensor]:
  """The names of operands that are combined element by element, all in one order, and the output in it."""
  values = [b.value(x) for x in node.inputs]
  rank = len(node.shape)
  orders = [x.order for x in values if isinstance(x, Tensor) and x.rank == rank]
  order = orders[0] if orders else tuple(range(rank))
  names = [b.in_order(x, order if len(x.shape) == rank else None).name for x in values]
  return names, output_of(node, order)


def cast_to(b: Builder, x: Tensor, dtype: str) -> Tensor:
  return x if x.dtype == dtype else b.add('Cast', [x.name], dataclasses.replace(x, dtype=dtype), to=DTYPES[dtype])


def _reshaped(b: Builder, x: Tensor, node: Node, sizes: Sequence[int]) -> Tensor:
  """A tensor in the network's own order with other sides; `node` is whom it is for."""
  there = [b.size(size) for size in sizes]
  if there.count(-1) > 1:
    raise refused(node, 'has several sides that depend on the number of examples')
  output = dataclasses.replace(output_of(node), shape=tuple(sizes))
  return b.add('Reshape', [x.name, b.constant(np.asarray(there, np.int64))], output)


def reshape(b: Builder, node: Node) -> Tensor:
  return _reshaped(b, b.in_order(b.value(node.inputs[0])), node, node.params['new_sizes'])


def squeeze(b: Builder, node: Node) -> Tensor:
  return _reshaped(b, b.in_order(b.value(node.inputs[0])), node, node.shape)


def broadcast(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  places = dict(zip(node.params['broadcast_dimensions'], x.shape, strict=True))
  sides = tuple(places.get(axis, 1) for axis in range(len(node.shape)))
  aligned = _reshaped(b, x, node, sides)
  if sides == node.shape:
    return aligned
  repeated = any(size < 0 <= side for size, side in zip(node.shape, sides, strict=True))
  target = _shape(b, node) if repeated else b.constant(np.asarray([max(size, 1) for size in node.shape], np.int64))
  return b.add('Expand', [aligned.name, target], output_of(node))  # a side of 1 there leaves what is here


def _shape(b: Builder, node: Node) -> str:
  """The shape of what a node gives, the number of examples read off the input where it is not fixed."""
  sizes = [b.size(size) for size in node.shape]
  if -1 not in sizes:
    return b.constant(np.asarray(sizes, np.int64))
  if min(node.shape) < -1:
    raise refused(node, 'repeats values several times for each example')
  vector = lambda size: Tensor('', (size,), 'int64', (0,))
  count = _count(b)
  parts = [count.name if size == -1 else b.constant(np.asarray([size], np.int64)) for size in sizes]
  return b.add('Concat', parts, vector(len(parts)), axis=0).name


def _count(b: Builder) -> Tensor:
  """The number of examples, in an array of one entry."""
  of_examples = next(x for x in b.inputs if x.shape[:1] == (-1,))
  axis = of_examples.order.index(0)
  return b.add('Shape', [of_examples.name], Tensor('', (1,), 'int64', (0,)), start=axis, end=axis + 1)


def examples(b: Builder, node: Node) -> Tensor:
  """How many examples there are, or a multiple of that."""
  size, scalar = node.params['shape'][0], Tensor('', (), 'int64', ())
  if b.size(size) >= 0:
    return cast_to(b, dataclasses.replace(scalar, name=b.constant(np.int64(b.size(size)))), node.dtype)
  times = -size
  count = b.add('Squeeze', [_count(b).name], scalar)
  count = count if times == 1 else b.add('Mul', [count.name, b.constant(np.int64(times))], scalar)
  return cast_to(b, count, node.dtype)


def iota(b: Builder, node: Node) -> Tensor:
  """Numbers from 0 along one axis."""
  axis, rank = node.params['dimension'], len(node.shape)
  size = b.size(node.shape[axis])
  line = Tensor('', tuple(side if i == axis else 1 for i, side in enumerate(node.shape)), 'int64', tuple(range(rank)))
  if size >= 0:
    line = dataclasses.replace(line, name=b.constant(np.arange(size).reshape(line.shape)))
  else:
    count = examples(b, dataclasses.replace(node, params={'shape': (node.shape[axis],)}, dtype='int64'))
    numbers = Tensor('', (node.shape[axis],), 'int64', (0,))
    numbers = b.add('Range', [b.constant(np.int64(0)), count.name, b.constant(np.int64(1))], numbers)
    line = b.add('Reshape', [numbers.name, b.constant(np.asarray([-1 if s < 0 else s for s in line.shape]))], line)
  whole = dataclasses.replace(output_of(node), dtype='int64')
  return cast_to(b, b.add('Expand', [line.name, _shape(b, node)], whole), node.dtype)


def transpose(b: Builder, node: Node) -> Tensor:
  """Nothing moves: the same array, its axes counted otherwise."""
  x = b.value(node.inputs[0])
  x = b.in_order(x) if isinstance(x, np.ndarray) else x
  order = tuple(node.params['permutation'].index(axis) for axis in x.order)
  return dataclasses.replace(x, shape=node.shape, order=order)


def concatenate(b: Builder, node: Node) -> Tensor:
  names, output = same_order(b, node)
  return b.add('Concat', names, output, axis=output.order.index(node.params['dimension']))


def pad(b: Builder, node: Node) -> Tensor:
  value = b.value(node.inputs[1])
  x = b.in_order(v) if isinstance(v := b.value(node.inputs[0]), np.ndarray) else v
  config = [node.params['padding_config'][axis] for axis in x.order]
  if not isinstance(value, np.ndarray) or any(inner for _, _, inner in config):
    raise refused(node, 'pads between values, or by a computed value')
  pads = [low for low, _, _ in config] + [high for _, high, _ in config]
  return b.add('Pad', [x.name, b.constant(np.asarray(pads, np.int64)), b.constant(value)], output_of(node, x.order))


def slice_(b: Builder, node: Node) -> Tensor:
  p = node.params
  x = b.in_order(v) if isinstance(v := b.value(node.inputs[0]), np.ndarray) else v
  steps = p.get('strides') or (1,) * x.rank
  limit = lambda size: END if size < 0 else size
  columns = [(p['start_indices'][a], limit(p['limit_indices'][a]), i, steps[a]) for i, a in enumerate(x.order)]
  arrays = [b.constant(np.asarray(column, np.int64)) for column in zip(*columns, strict=True)]
  return b.add('Slice', [x.name, *arrays], output_of(node, x.order))


def rev(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  return mirrored(b, x, node.params['dimensions'])
