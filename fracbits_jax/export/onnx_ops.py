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
  if node.dtype == 'float32' and len(constants) == 1 and not np.any(constants[0]) and np.size(constants[0]) == 1:
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
  count = _count(b)
  parts = [count.name if size == -1 else b.constant(np.asarray([size], np.int64)) for size in sizes]
  return b.add('Concat', parts, vector(len(parts)), axis=0).name


def _count(b: Builder) -> Tensor:
  """The number of examples, in an array of one entry."""
  of_examples = next(x for x in b.inputs if x.shape[:1] == (-1,))
  axis = of_examples.order.index(0)
  return b.add('Shape', [of_examples.name], Tensor('', (1,), 'int64', (0,)), start=axis, end=axis + 1)


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


def _arg(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    x = b.in_order(b.value(node.inputs[0]))
    found = dataclasses.replace(output_of(node), dtype='int64')
    found = b.add(op, [x.name], found, axis=node.params['axes'][0], keepdims=0)
    return b.add('Cast', [found.name], output_of(node), to=DTYPES[node.dtype])

  return convert


def _cast_to(b: Builder, x: Tensor, dtype: str) -> Tensor:
  return x if x.dtype == dtype else b.add('Cast', [x.name], dataclasses.replace(x, dtype=dtype), to=DTYPES[dtype])


def _reduce_logical(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    if node.dtype != 'bool':
      raise refused(node, 'combines the bits of integers')
    x = _cast_to(b, b.in_order(b.value(node.inputs[0])), 'int32')
    b.values[whole := f'{node.output} as integers'] = x
    found = _reduce(op)(b, dataclasses.replace(node, inputs=(whole,), dtype='int32'))
    return _cast_to(b, found, 'bool')

  return convert


def _is_finite(b: Builder, node: Node) -> Tensor:
  (x,), output = _same_order(b, node)
  wrong = b.add('Or', [b.add('IsInf', [x], output).name, b.add('IsNaN', [x], output).name], output)
  return b.add('Not', [wrong.name], output)


def _round(b: Builder, node: Node) -> Tensor:
  if node.params['rounding_method'] != 1:
    raise refused(node, 'rounds halves away from 0')
  return _elementwise('Round')(b, node)


def _cumsum(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  axis = b.constant(np.asarray(node.params['axis'], np.int64))
  return b.add('CumSum', [x.name, axis], output_of(node), reverse=int(node.params['reverse']))


def _examples(b: Builder, node: Node) -> Tensor:
  """How many examples there are, or a multiple of that."""
  size, scalar = node.params['shape'][0], Tensor('', (), 'int64', ())
  if b.size(size) >= 0:
    return _cast_to(b, dataclasses.replace(scalar, name=b.constant(np.int64(b.size(size)))), node.dtype)
  times = -size
  count = b.add('Squeeze', [_count(b).name], scalar)
  count = count if times == 1 else b.add('Mul', [count.name, b.constant(np.int64(times))], scalar)
  return _cast_to(b, count, node.dtype)


def _iota(b: Builder, node: Node) -> Tensor:
  """Numbers from 0 along one axis."""
  axis, rank = node.params['dimension'], len(node.shape)
  size = b.size(node.shape[axis])
  line = Tensor('', tuple(side if i == axis else 1 for i, side in enumerate(node.shape)), 'int64', tuple(range(rank)))
  if size >= 0:
    line = dataclasses.replace(line, name=b.constant(np.arange(size).reshape(line.shape)))
  else:
    count = _examples(b, dataclasses.replace(node, params={'shape': (node.shape[axis],)}, dtype='int64'))
    numbers = Tensor('', (node.shape[axis],), 'int64', (0,))
    numbers = b.add('Range', [b.constant(np.int64(0)), count.name, b.constant(np.int64(1))], numbers)
    line = b.add('Reshape', [numbers.name, b.constant(np.asarray([-1 if s < 0 else s for s in line.shape]))], line)
  whole = dataclasses.replace(output_of(node), dtype='int64')
  return _cast_to(b, b.add('Expand', [line.name, _shape(b, node)], whole), node.dtype)


def _sorted_by(b: Builder, node: Node, keys: Tensor, axis: int, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
  """Values in order along an axis, and where they were; of equal ones the first comes first."""
  numbers = _cast_to(b, keys, 'int32' if keys.dtype == 'bool' else keys.dtype)
  shape = (*keys.shape[:axis], count, *keys.shape[axis + 1 :])
  found = dataclasses.replace(numbers, shape=shape)
  names = [numbers.name, b.constant(np.asarray([count], np.int64))]
  values, places = b.add_several(
    'TopK', names, [found, dataclasses.replace(found, dtype='int64')], axis=axis, largest=int(largest), sorted=1
  )
  return _cast_to(b, values, keys.dtype), places


def _sort(b: Builder, node: Node) -> Tensor:
  p, xs = node.params, [b.in_order(b.value(x)) for x in node.inputs]
  axis, index = p['dimension'], p['index']
  if p['num_keys'] != 1:
    raise refused(node, 'sorts by several keys')
  if node.shape[axis] < 0:
    raise refused(node, 'sorts the examples')
  values, places = _sorted_by(b, node, xs[0], axis, node.shape[axis], largest=False)
  return values if index == 0 else b.add('GatherElements', [xs[index].name, places.name], output_of(node), axis=axis)


def _top_k(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  axis = node.params.get('axis', x.rank - 1)
  found = _sorted_by(b, node, x, axis, node.params['k'], largest=True)[node.params['index']]
  return _cast_to(b, found, node.dtype)


def _scatter(reduction: str) -> Callable[[Builder, Node], Tensor]:
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
    names = [b.in_order(x, (*places, *rest)).name, _cast_to(b, at, 'int64').name]
    names.append(b.in_order(updates, (*before, *window)).name)
    how = {} if reduction == 'none' else {'reduction': reduction}
    return b.add('ScatterND', names, output_of(node, (*places, *rest)), **how)

  return convert


def _gather(b: Builder, node: Node) -> Tensor:
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
  indices = _cast_to(b, indices, 'int64')
  indices = b.add('Min', [indices.name, b.constant(last.astype(np.int64))], indices)
  others = tuple(axis for axis in range(indices.rank - 1) if axis not in batch_at)
  names = [b.in_order(x, (*batch, *places, *rest)).name]
  names.append(b.in_order(indices, (*batch_at, *others, indices.rank - 1)).name)
  of_indices = [axis for axis in range(len(node.shape)) if axis not in numbers['offset_dims']]  # as indices has them
  order = (*(of_indices[axis] for axis in (*batch_at, *others)), *numbers['offset_dims'])
  return b.add('GatherND', names, output_of(node, order), batch_dims=len(batch))


CONVERSIONS: dict[str, Callable[[Builder, Node], Tensor]] = {
  **{name: _elementwise(name.capitalize()) for name in ('abs', 'add', 'ceil', 'cos', 'div', 'erf', 'exp', 'floor')},
  **{name: _elementwise(name.capitalize()) for name in ('log', 'min', 'mul', 'neg', 'pow', 'sign', 'sin', 'sqrt')},
  **{name: _elementwise(name.capitalize()) for name in ('sub', 'tan', 'tanh')},
  'affine': _affine,
  **{name: _elementwise(name.capitalize()) for name in ('acos', 'acosh', 'asin', 'asinh', 'atan', 'atanh')},
  **{name: _elementwise(name.capitalize()) for name in ('cosh', 'sinh')},
  'argmax': _arg('ArgMax'),
  'argmin': _arg('ArgMin'),
  'and': _logical('And'),
  'not': _logical('Not'),
  'or': _logical('Or'),
  'xor': _logical('Xor'),
  'broadcast_in_dim': _broadcast,
  'clamp': _clamp,
  'concatenate': _concatenate,
  'conv_general_dilated': conv,
  'convert_element_type': _cast,
  'cumsum': _cumsum,
  'dim_as_value': _examples,
  'dot_general': _dot,
  'eq': _elementwise('Equal'),
  'erfc': _chain('Erf', ('Sub', 1.0, True)),
  'exp2': _chain(('Pow', 2.0, True)),
  'expand_dims': _squeeze,
  'expm1': _chain('Exp', ('Sub', 1.0, False)),
  'gather': _gather,
  'ge': _elementwise('GreaterOrEqual'),
  'gt': _elementwise('Greater'),
  'integer_pow': _integer_pow,
  'iota': _iota,
  'is_finite': _is_finite,
  'le': _elementwise('LessOrEqual'),
  'log1p': _chain(('Add', 1.0, False), 'Log'),
  'logistic': _elementwise('Sigmoid'),
  'lt': _elementwise('Less'),
  'max': _max,
  'ne': _not_equal,
  'pad': _pad,
  'reduce_and': _reduce_logical('ReduceMin'),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_or': _reduce_logical('ReduceMax'),
  'reduce_prod': _reduce('ReduceProd'),
  'reduce_sum': _reduce('ReduceSum'),
  'reduce_window_max': pool('MaxPool'),
  'reduce_window_sum': pool('AveragePool'),
  'rem': _remainder,
  'reshape': _reshape,
  'rev': _rev,
  'round': _round,
  'rsqrt': _chain('Sqrt', 'Reciprocal'),
  'scatter': _scatter('none'),
  **{f'scatter_{name}': _scatter(name) for name in ('add', 'max', 'min', 'mul')},
  'select_n': _select,
  'slice': _slice,
  'square': _square,
  'sort': _sort,
  'squeeze': _squeeze,
  'top_k': _top_k,
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
      users = consumers.get(node.output, [])
      kernel = quantizers.kernel(b, node, _order_for(node, users, 'kernel'))
      # onnxruntime turns the integers of each user's kernel into those of another type, and cannot do that twice.
      b.values[node.output] = b.apart(kernel) if len(users) > 1 and b.integers(kernel.name) is not None else kernel
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
