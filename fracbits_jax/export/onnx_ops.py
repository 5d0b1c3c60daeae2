"""The operations of a graph as nodes of ONNX."""

import dataclasses
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.graph import Graph, Node
from fracbits_jax.export.onnx_build import DTYPES, Builder, Tensor

_END = np.iinfo(np.int64).max


def _output(node: Node, order: Sequence[int] | None = None) -> Tensor:
  """What a node gives, in an order of axes, the network's own by default."""
  return Tensor('', node.shape, node.dtype, tuple(range(len(node.shape)) if order is None else order))


def _same_order(b: Builder, node: Node) -> tuple[list[str], Tensor]:
  """The names of operands that are combined element by element, all in one order, and the output in it."""
  values = [b.value(x) for x in node.inputs]
  rank = len(node.shape)
  orders = [x.order for x in values if isinstance(x, Tensor) and x.rank == rank]
  order = orders[0] if orders else tuple(range(rank))
  names = [b.in_order(x, order if len(x.shape) == rank else None).name for x in values]
  return names, _output(node, order)


def _elementwise(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    names, output = _same_order(b, node)
    return b.add(op, names, output)

  return convert


def _logical(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    if node.dtype != 'bool':
      raise _refused(node, 'combines the bits of integers')
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
    raise _refused(node, 'chooses among more than two')
  (which, otherwise, chosen), output = _same_order(b, node)
  return b.add('Where', [which, chosen, otherwise], output)


def _conv(b: Builder, node: Node) -> Tensor:
  p, numbers = node.params, node.params['dimension_numbers']
  x, kernel = (
    b.in_order(b.value(v), numbers[spec]) for v, spec in zip(node.inputs, ('lhs_spec', 'rhs_spec'), strict=True)
  )
  if p['batch_group_count'] != 1:
    raise _refused(node, 'is grouped by batches')
  output = _output(node, numbers['out_spec'])
  if any(d != 1 for d in p['lhs_dilation']):
    return _conv_transpose(b, node, x, kernel, output)
  pads = [pad for side in zip(*p['padding'], strict=True) for pad in side]
  if min(pads) < 0:
    raise _refused(node, 'has a negative padding')
  return b.add(
    'Conv',
    [x.name, kernel.name],
    output,
    kernel_shape=kernel.shape_there[2:],
    strides=p['window_strides'],
    pads=pads,
    dilations=p['rhs_dilation'],
    group=p['feature_group_count'],
  )


def _conv_transpose(b: Builder, node: Node, x: Tensor, kernel: Tensor, output: Tensor) -> Tensor:
  """A convolution over an input with gaps, as the transposed convolution that it is; ONNX mirrors the kernel."""
  p = node.params
  if any(s != 1 for s in p['window_strides']) or p['feature_group_count'] != 1:
    raise _refused(node, 'is transposed, with strides of its own or in groups')
  sizes = kernel.shape_there[2:]
  reach = [d * (size - 1) for d, size in zip(p['rhs_dilation'], sizes, strict=True)]
  begin = [r - low for r, (low, _) in zip(reach, p['padding'], strict=True)]
  end = [r - high for r, (_, high) in zip(reach, p['padding'], strict=True)]
  if min(begin) < 0 or any(-e >= max(d, 1) for e, d in zip(end, p['lhs_dilation'], strict=True)):
    raise _refused(node, 'is transposed, with more padding than its kernel reaches')
  kernel = _mirrored(b, kernel, range(2, kernel.rank))
  out_channels, in_channels, *space = kernel.order
  kernel = b.in_order(kernel, (in_channels, out_channels, *space))
  return b.add(
    'ConvTranspose',
    [x.name, kernel.name],
    output,
    kernel_shape=sizes,
    strides=p['lhs_dilation'],
    pads=[*begin, *(max(e, 0) for e in end)],
    output_padding=[max(-e, 0) for e in end],
    dilations=p['rhs_dilation'],
  )


def _mirrored(b: Builder, x: Tensor, axes: Sequence[int]) -> Tensor:
  """A tensor with axes of the file reversed."""
  ints = lambda value: b.constant(np.full(len(axes), value, np.int64))
  names = [x.name, ints(-1), ints(-_END), b.constant(np.asarray(axes, np.int64)), ints(-1)]
  return b.add('Slice', names, x)


def _rev(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  return _mirrored(b, x, node.params['dimensions'])


def _dot(b: Builder, node: Node) -> Tensor:
  first, second = (b.in_order(b.value(x)) for x in node.inputs)
  (contracted, batch) = node.params['dimension_numbers']
  plain = not batch[0] and contracted[0] == (first.rank - 1,) and contracted[1] == (0,) and second.rank == 2
  if plain:
    return b.add('MatMul', [first.name, second.name], _output(node))
  return b.add('Einsum', [first.name, second.name], _output(node), equation=_equation(contracted, batch, first, second))


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
    names, attributes = [x.name], {'axes': axes}
    if op == 'ReduceSum' or b.opset >= 18:
      names, attributes = [x.name, b.constant(np.asarray(axes, np.int64))], {}
    return b.add(op, names, _output(node, order), keepdims=0, **attributes)

  return convert


def _is_mean(graph: Graph, node: Node) -> Node | None:
  """The node that divides a sum over all of space by how many values it has; `None` where nothing does."""
  (following, *others) = graph.consumers().get(node.output, []) or [None]
  if following is None or others or node.op != 'reduce_sum' or following.op != 'affine':
    return None
  shapes = {n.output: n.shape for n in graph.nodes} | {graph.input: graph.input_shape}
  shape = shapes[node.inputs[0]]
  count = np.prod([shape[axis] for axis in node.params['axes']])
  _, scale, offset = following.inputs
  divides = np.size(scale) == 1 and not np.any(offset) and np.isclose(np.asarray(scale) * count, 1, rtol=1e-6).all()
  return following if divides else None


def _global_average_pool(b: Builder, node: Node, mean: Node) -> Tensor | None:
  x = b.value(node.inputs[0])
  if not isinstance(x, Tensor) or x.rank < 3 or x.order[2:] != tuple(sorted(node.params['axes'])):
    return None
  sides = tuple(1 if axis in node.params['axes'] else side for axis, side in enumerate(x.shape))
  pooled = b.add('GlobalAveragePool', [x.name], dataclasses.replace(x, shape=sides))
  return b.add('Flatten', [pooled.name], _output(mean), axis=1)


def _pool(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    p, rank = node.params, len(node.shape)
    x = b.value(node.inputs[0])
    order = x.order if isinstance(x, Tensor) and x.order != tuple(range(rank)) else (0, rank - 1, *range(1, rank - 1))
    x = b.in_order(x, order)
    at = lambda name: [p[name][axis] for axis in order]
    window, padding, dilation = at('window_dimensions'), at('padding'), at('window_dilation')
    outer = [window[:2], at('window_strides')[:2], [pad for pads in padding[:2] for pad in pads]]
    dilated = any(d != 1 for d in p['base_dilation']) or (op == 'AveragePool' and any(d != 1 for d in dilation))
    if outer != [[1, 1], [1, 1], [0, 0, 0, 0]] or dilated:
      raise _refused(node, 'pools over examples or channels, or with gaps')
    pads = [pad for side in zip(*padding[2:], strict=True) for pad in side]
    settings = {'kernel_shape': window[2:], 'strides': at('window_strides')[2:], 'pads': pads}
    if op == 'MaxPool':
      return b.add(op, [x.name], _output(node, order), dilations=dilation[2:], **settings)
    mean = b.add(op, [x.name], _output(node, order), count_include_pad=1, **settings)
    return b.add('Mul', [mean.name, b.constant(np.float32(np.prod(window)))], mean)

  return convert


def _reshaped(b: Builder, x: Tensor, node: Node, sizes: Sequence[int]) -> Tensor:
  """A tensor in the network's own order with other sides; `node` is whom it is for."""
  there = [b.size(size) for size in sizes]
  if there.count(-1) > 1:
    raise _refused(node, 'has several sides that depend on the number of examples')
  output = dataclasses.replace(_output(node), shape=tuple(sizes))
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
  return b.add('Expand', [aligned.name, target], _output(node))  # a side of 1 there leaves what is here


def _shape(b: Builder, node: Node) -> str:
  """The shape of what a node gives, the number of examples read off the input where it is not fixed."""
  sizes = [b.size(size) for size in node.shape]
  if -1 not in sizes:
    return b.constant(np.asarray(sizes, np.int64))
  if min(node.shape) < -1:
    raise _refused(node, 'repeats values several times for each example')
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
    raise _refused(node, 'pads between values, or by a computed value')
  pads = [low for low, _, _ in config] + [high for _, high, _ in config]
  return b.add('Pad', [x.name, b.constant(np.asarray(pads, np.int64)), b.constant(value)], _output(node, x.order))


def _slice(b: Builder, node: Node) -> Tensor:
  p = node.params
  x = b.in_order(v) if isinstance(v := b.value(node.inputs[0]), np.ndarray) else v
  steps = p.get('strides') or (1,) * x.rank
  limit = lambda size: _END if size < 0 else size
  columns = [(p['start_indices'][a], limit(p['limit_indices'][a]), i, steps[a]) for i, a in enumerate(x.order)]
  arrays = [b.constant(np.asarray(column, np.int64)) for column in zip(*columns, strict=True)]
  return b.add('Slice', [x.name, *arrays], _output(node, x.order))


def _argmax(b: Builder, node: Node) -> Tensor:
  x = b.in_order(b.value(node.inputs[0]))
  found = dataclasses.replace(_output(node), dtype='int64')
  found = b.add('ArgMax', [x.name], found, axis=node.params['axes'][0], keepdims=0)
  return b.add('Cast', [found.name], _output(node), to=DTYPES[node.dtype])


def _gather(b: Builder, node: Node) -> Tensor:
  """Entries of one axis, such as the rows of an embedding."""
  p, (x, indices) = node.params, (b.in_order(b.value(v)) for v in node.inputs)
  numbers, places = p['dimension_numbers'], indices.shape[:-1]
  axis = next(iter(numbers['start_index_map']), 0)
  offsets = (*range(axis), *range(axis + len(places), len(node.shape)))
  along_one = tuple(numbers['start_index_map']) == tuple(numbers['collapsed_slice_dims']) == (axis,)
  whole = tuple(p['slice_sizes']) == (*x.shape[:axis], 1, *x.shape[axis + 1 :])
  if not along_one or not whole or tuple(numbers['offset_dims']) != offsets or indices.shape[-1] != 1:
    raise _refused(node, 'gathers other things than entries of one axis')
  limited = b.add('Min', [indices.name, b.constant(np.asarray(x.shape[axis] - 1, indices.dtype))], indices)
  sizes = b.constant(np.asarray([b.size(size) for size in places], np.int64))
  flat = b.add('Reshape', [limited.name, sizes], Tensor('', places, indices.dtype, tuple(range(len(places)))))
  return b.add('Gather', [x.name, flat.name], _output(node), axis=axis)


def _refused(node: Node, what: str) -> ValueError:
  return ValueError(
    f'{node.output} {what}, which is not written as ONNX: export with --format packed or --format stablehlo'
  )


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
  'conv_general_dilated': _conv,
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
  'reduce_window_max': _pool('MaxPool'),
  'reduce_window_sum': _pool('AveragePool'),
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
    mean = _is_mean(graph, node) if node.op == 'reduce_sum' else None
    pooled = None if mean is None else _global_average_pool(b, node, mean)
    if pooled is not None:
      b.values[mean.output] = pooled
      done.add(mean.output)
    elif node.op == 'constant':
      b.values[node.output] = np.asarray(node.inputs[0])
    elif node.op == 'quantize':
      x = b.value(node.inputs[0])
      if isinstance(x, np.ndarray) or all(user.op == 'dot_general' for user in consumers.get(node.output, [])):
        x = b.in_order(x)  # so that nothing stands between a quantizer and the product that it is for
      b.values[node.output] = quantizers.inputs(b, node, x)
    elif node.op == 'kernel':
      b.values[node.output] = quantizers.kernel(b, node, _kernel_order(node, consumers[node.output]))
    elif node.op in CONVERSIONS:
      b.values[node.output] = CONVERSIONS[node.op](b, node)
    else:
      raise _refused(node, f'is the operation {node.op!r}')


def _kernel_order(node: Node, consumers: Sequence[Node]) -> tuple[int, ...]:
  """The order in which what reads a kernel takes it."""
  first = consumers[0]
  if len(consumers) == 1 and first.op == 'conv_general_dilated':
    return tuple(first.params['dimension_numbers']['rhs_spec'])
  return tuple(range(len(node.shape)))
