"""The operations of a graph as nodes of ONNX; those with windows are in `onnx_windows`."""

import dataclasses
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.graph import Graph, Node
from fracbits_jax.export.onnx_build import DTYPES, END, Builder, Tensor, output_of, refused
from fracbits_jax.export.onnx_windows import conv, global_average_pool, kernel_order, mean_behind, mirrored, pool


def _same_order(b: Builder, node: Node) -> tuple[list[str], Tensor]:
  """The names of operands that are combined element by element, all in one order, and the output in it."""
  values = [b.value(x) for x in node.inputs]
  rank = len(node.shape)
  orders = [x.order for x in values if isinstance(x, Tensor) and x.rank == rank]
  order = orders[0] if orders else tuple(range(rank))
  names = [b.in_order(x, order if len(x.shape) == rank else None).name for x in values]
  return names, output_of(node, order)


def _elementwise(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    names, output = _same_order(b, node)
    return b.add(op, names, output)

  return convert


def _logical(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    if node.dtype != 'bool':
      raise refused(node, 'combines the bits of integers')
    return _elementwise(op)(b, node)

  return convert


def _chain(*steps: str | tuple[str, float, bool]) -> Callable[[Builder, Node], Tensor]:
  """Operators one behind the other; one of two operands is given with its constant, and whether that comes first."""

  def convert(b: Builder, node: Node) -> Tensor:
    (name, *_), x = _same_order(b, node)
    for step in steps:
      op, *rest = (step,) if isinstance(step, str) else step
      names = [name]
      if rest:
        constant = b.constant(np.asarray(rest[0], node.dtype))
        names = [constant, name] if rest[1] else [name, constant]
      x = b.add(op, names, x)
      name = x.name
    return x

  return convert


def _affine(b: Builder, node: Node) -> Tensor:
  (x, scale, offset), output = _same_order(b, node)
  product = b.add('Mul', [x, scale], output)
  return b.add('Add', [product.name, offset], output) if np.any(node.inputs[2]) else product


def _max(b: Builder, node: Node) -> Tensor:
  constants = [x for x in node.inputs if not isinstance(x, str)]
  names, output = _same_order(b, node)
  if len(constants) == 1 and not np.any(constants[0]) and np.size(constants[0]) == 1:
    return b.add('Relu', [names[isinstance(node.inputs[1], str)]], output)
  return b.add('Max', names, output)


def _clamp(b: Builder, node: Node) -> Tensor:
  (low, x, high), output = _same_order(b, node)
  return b.add('Min', [b.add('Max', [x, low], output).name, high], output)


def _integer_pow(b: Builder, node: Node) -> Tensor:
  return _chain(('Pow', node.params['y'], False))(b, node)


def _square(b: Builder, node: Node) -> Tensor:
  (x,), output = _same_order(b, node)
  return b.add('Mul', [x, x], output)


def _not_equal(b: Builder, node: Node) -> Tensor:
  names, output = _same_order(b, node)
  return b.add('Not', [b.add('Equal', names, output).name], output)


def _cast(b: Builder, node: Node) -> Tensor:
  (x,), output = _same_order(b, node)
  return b.add('Cast', [x], output, to=DTYPES[node.dtype])


def _remainder(b: Builder, node: Node) -> Tensor:
  names, output = _same_order(b, node)
  return b.add('Mod', names, output, fmod=1)  # the sign of the dividend, as in XLA


def _select(b: Builder, node: Node) -> Tensor:
  if len(node.inputs) != 3:
    raise refused(node, 'chooses among more than two')
  (which, otherwise, chosen), output = _same_order(b, node)
  return b.add('Where', [which, chosen, otherwise], output)


def _rev(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  return mirrored(b, x, node.params['dimensions'])


def _dot(b: Builder, node: Node) -> Tensor:
  first, second = (b.in_order(b.value(x)) for x in node.inputs)
  (contracted, batch) = node.params['dimension_numbers']
  plain = not batch[0] and contracted[0] == (first.rank - 1,) and contracted[1] == (0,) and second.rank == 2
  if plain:
    second = b.beside(first, second)
    return b.add('MatMul', [first.name, second.name], output_of(node))
  return b.add(
    'Einsum', [first.name, second.name], output_of(node), equation=_equation(contracted, batch, first, second)
  )


def _equation(contracted: Any, batch: Any, first: Tensor, second: Tensor) -> str:
  letters = iter(string.ascii_lowercase)
  left, right = {}, {}
  for pairs in (batch, contracted):
    for i, j in zip(*pairs, strict=True):
      left[i] = right[j] = next(letters)
  free = [[axis for axis in range(x.rank) if axis not in named] for x, named in ((first, left), (second, right))]
  for axes, named in zip(free, (left, right), strict=True):
    named |= {axis: next(letters) for axis in axes}
  text = lambda named, axes: ''.join(named[axis] for axis in axes)
  result = text(left, batch[0]) + text(left, free[0]) + text(right, free[1])
  return f'{text(left, range(first.rank))},{text(right, range(second.rank))}->{result}'


def _reduce(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    x = b.in_order(value) if isinstance(value := b.value(node.inputs[0]), np.ndarray) else value
    axes = sorted(x.order.index(axis) for axis in node.params['axes'])
    kept = [axis for axis in x.order if axis not in node.params['axes']]
    order = tuple(sorted(kept).index(axis) for axis in kept)
    names = [x.name]
    attributes: dict[str, Any] = {'axes': axes}
    if op == 'ReduceSum' or b.opset >= 18:
      names, attributes = [x.name, b.constant(np.asarray(axes, np.int64))], {}
    return b.add(op, names, output_of(node, order), keepdims=0, **attributes)

  return convert


def _reshaped(b: Builder, x: Tensor, node: Node, sizes: Sequence[int]) -> Tensor:
  """A tensor in the network's own order with other sides; `node` is whom it is for."""
  there = [b.size(size) for size in sizes]
  if there.count(-1) > 1:
    raise refused(node, 'has several sides that depend on the number of examples')
  output = dataclasses.replace(output_of(node), shape=tuple(sizes))
  return b.add('Reshape', [x.name, b.constant(np.asarray(there, np.int64))], output)


def _reshape(b: Builder, node: Node) -> Tensor:
  return _reshaped(b, b.in_order(b.value(node.inputs[0])), node, node.params['new_sizes'])


def _squeeze(b: Builder, node: Node) -> Tensor:
  return _reshaped(b, b.in_order(b.value(node.inputs[0])), node, node.shape)


def _broadcast(b: Builder, node: Node) -> Tensor:
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
  count = b.add('Shape', [b.input.name], vector(1), start=0, end=1)
  parts = [count.name if size == -1 else b.constant(np.asarray([size], np.int64)) for size in sizes]
  return b.add('Concat', parts, vector(len(parts)), axis=0).name


def _transpose(b: Builder, node: Node) -> Tensor:
  """Nothing moves: the same array, its axes counted otherwise."""
  x = b.value(node.inputs[0])
  x = b.in_order(x) if isinstance(x, np.ndarray) else x
  order = tuple(node.params['permutation'].index(axis) for axis in x.order)
  return dataclasses.replace(x, shape=node.shape, order=order)


def _concatenate(b: Builder, node: Node) -> Tensor:
  names, output = _same_order(b, node)
  return b.add('Concat', names, output, axis=output.order.index(node.params['dimension']))


def _pad(b: Builder, node: Node) -> Tensor:
  value = b.value(node.inputs[1])
  x = b.in_order(v) if isinstance(v := b.value(node.inputs[0]), np.ndarray) else v
  config = [node.params['padding_config'][axis] for axis in x.order]
  if not isinstance(value, np.ndarray) or any(inner for _, _, inner in config):
    raise refused(node, 'pads between values, or by a computed value')
  pads = [low for low, _, _ in config] + [high for _, high, _ in config]
  return b.add('Pad', [x.name, b.constant(np.asarray(pads, np.int64)), b.constant(value)], output_of(node, x.order))


def _slice(b: Builder, node: Node) -> Tensor:
  p = node.params
  x = b.in_order(v) if isinstance(v := b.value(node.inputs[0]), np.ndarray) else v
  steps = p.get('strides') or (1,) * x.rank
  limit = lambda size: END if size < 0 else size
  columns = [(p['start_indices'][a], limit(p['limit_indices'][a]), i, steps[a]) for i, a in enumerate(x.order)]
  arrays = [b.constant(np.asarray(column, np.int64)) for column in zip(*columns, strict=True)]
  return b.add('Slice', [x.name, *arrays], output_of(node, x.order))


def _argmax(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  found = dataclasses.replace(output_of(node), dtype='int64')
  found = b.add('ArgMax', [x.name], found, axis=node.params['axes'][0], keepdims=0)
  return b.add('Cast', [found.name], output_of(node), to=DTYPES[node.dtype])


def _gather(b: Builder, node: Node) -> Tensor:
  """Entries of one axis, such as the rows of an embedding."""
  p, (x, indices) = node.params, (b.in_order(b.value(v)) for v in node.inputs)
  numbers, places = p['dimension_numbers'], indices.shape[:-1]
  axis = next(iter(numbers['start_index_map']), 0)
  offsets = (*range(axis), *range(axis + len(places), len(node.shape)))
  along_one = tuple(numbers['start_index_map']) == tuple(numbers['collapsed_slice_dims']) == (axis,)
  whole = tuple(p['slice_sizes']) == (*x.shape[:axis], 1, *x.shape[axis + 1 :])
  if not along_one or not whole or tuple(numbers['offset_dims']) != offsets or indices.shape[-1] != 1:
    raise refused(node, 'gathers other things than entries of one axis')
  limited = b.add('Min', [indices.name, b.constant(np.asarray(x.shape[axis] - 1, indices.dtype))], indices)
  sizes = b.constant(np.asarray([b.size(size) for size in places], np.int64))
  flat = b.add('Reshape', [limited.name, sizes], Tensor('', places, indices.dtype, tuple(range(len(places)))))
  return b.add('Gather', [x.name, flat.name], output_of(node), axis=axis)


CONVERSIONS: dict[str, Callable[[Builder, Node], Tensor]] = {
  **{name: _elementwise(name.capitalize()) for name in ('abs', 'add', 'ceil', 'cos', 'div', 'erf', 'exp', 'floor')},
  **{name: _elementwise(name.capitalize()) for name in ('log', 'min', 'mul', 'neg', 'pow', 'sign', 'sin', 'sqrt')},
  **{name: _elementwise(name.capitalize()) for name in ('sub', 'tan', 'tanh')},
  'affine': _affine,
  'argmax': _argmax,
  'and': _logical('And'),
  'not': _logical('Not'),
  'or': _logical('Or'),
  'xor': _logical('Xor'),
  'broadcast_in_dim': _broadcast,
  'clamp': _clamp,
  'concatenate': _concatenate,
  'conv_general_dilated': conv,
  'convert_element_type': _cast,
  'dot_general': _dot,
  'eq': _elementwise('Equal'),
  'exp2': _chain(('Pow', 2.0, True)),
  'expand_dims': _squeeze,
  'expm1': _chain('Exp', ('Sub', 1.0, False)),
  'gather': _gather,
  'ge': _elementwise('GreaterOrEqual'),
  'gt': _elementwise('Greater'),
  'integer_pow': _integer_pow,
  'le': _elementwise('LessOrEqual'),
  'log1p': _chain(('Add', 1.0, False), 'Log'),
  'logistic': _elementwise('Sigmoid'),
  'lt': _elementwise('Less'),
  'max': _max,
  'ne': _not_equal,
  'pad': _pad,
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_prod': _reduce('ReduceProd'),
  'reduce_sum': _reduce('ReduceSum'),
  'reduce_window_max': pool('MaxPool'),
  'reduce_window_sum': pool('AveragePool'),
  'rem': _remainder,
  'reshape': _reshape,
  'rev': _rev,
  'rsqrt': _chain('Sqrt', 'Reciprocal'),
  'select_n': _select,
  'slice': _slice,
  'square': _square,
  'squeeze': _squeeze,
  'transpose': _transpose,
}


def convert(b: Builder, graph: Graph, quantizers: Any) -> None:
  """Adds every node of a graph.

  Args:
    b: the file.
    graph: what is exported.
    quantizers: has `inputs(b, node, x)` and `kernel(b, node, order)`, which add a `quantize` and a `kernel` node.

  Raises:
    ValueError: an operation that has no counterpart in ONNX.
  """
  consumers, done = graph.consumers(), set()
  for node in graph.nodes:
    if node.output in done:
      continue
    mean = mean_behind(graph, consumers, node) if node.op == 'reduce_sum' else None
    pooled = None if mean is None else global_average_pool(b, node, mean)
    if mean is not None and pooled is not None:
      b.values[mean.output] = pooled
      done.add(mean.output)
    elif node.op == 'constant':
      b.values[node.output] = np.asarray(node.inputs[0])
    elif node.op == 'quantize':
      x = b.value(node.inputs[0])
      order = _order_for(node, consumers.get(node.output, []), 'input')
      if order is not None or isinstance(x, np.ndarray):
        x = b.in_order(x, order)
      b.values[node.output] = quantizers.inputs(b, node, x)
    elif node.op == 'kernel':
      b.values[node.output] = quantizers.kernel(b, node, _order_for(node, consumers[node.output], 'kernel'))
    elif node.op in CONVERSIONS:
      b.values[node.output] = CONVERSIONS[node.op](b, node)
    else:
      raise refused(node, f'is the operation {node.op!r}')


def _order_for(node: Node, consumers: Sequence[Node], which: str) -> tuple[int, ...] | None:
  """The order of axes in which what reads an input or a kernel takes it; `None` where any will do.

  A transposition behind a quantizer would be one of integers of few bits in onnxruntime.
  """
  if len(consumers) == 1 and consumers[0].op == 'conv_general_dilated':
    (first,) = consumers
    return kernel_order(first) if which == 'kernel' else tuple(first.params['dimension_numbers']['lhs_spec'])
  if which == 'kernel' or all(user.op == 'dot_general' for user in consumers):
    return tuple(range(len(node.shape)))
  return None
