"""The operations of a graph as nodes of ONNX; the larger kinds have modules of their own."""

import dataclasses
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.onnx_build import DTYPES, Builder, Tensor, output_of, refused
from fracbits_jax.export.onnx_indexing import gather, scatter, sort, top_k
from fracbits_jax.export.onnx_layout import (
  broadcast,
  cast_to,
  concatenate,
  examples,
  iota,
  pad,
  reshape,
  rev,
  same_order,
  slice_,
  squeeze,
  transpose,
)
from fracbits_jax.export.onnx_windows import conv, global_average_pool, kernel_order, mean_behind, pool
from fracbits_jax.graph.graph import Graph, Node


def _elementwise(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    names, output = same_order(b, node)
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
    (name, *_), x = same_order(b, node)
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
  (x, scale, offset), output = same_order(b, node)
  product = b.add('Mul', [x, scale], output)
  return b.add('Add', [product.name, offset], output) if np.any(node.inputs[2]) else product


def _max(b: Builder, node: Node) -> Tensor:
  constants = [x for x in node.inputs if not isinstance(x, str)]
  names, output = same_order(b, node)
  if node.dtype == 'float32' and len(constants) == 1 and not np.any(constants[0]) and np.size(constants[0]) == 1:
    return b.add('Relu', [names[isinstance(node.inputs[1], str)]], output)
  return b.add('Max', names, output)


def _clamp(b: Builder, node: Node) -> Tensor:
  (low, x, high), output = same_order(b, node)
  return b.add('Min', [b.add('Max', [x, low], output).name, high], output)


def _integer_pow(b: Builder, node: Node) -> Tensor:
  return _chain(('Pow', node.params['y'], False))(b, node)


def _square(b: Builder, node: Node) -> Tensor:
  (x,), output = same_order(b, node)
  return b.add('Mul', [x, x], output)


def _not_equal(b: Builder, node: Node) -> Tensor:
  names, output = same_order(b, node)
  return b.add('Not', [b.add('Equal', names, output).name], output)


def _cast(b: Builder, node: Node) -> Tensor:
  (x,), output = same_order(b, node)
  return b.add('Cast', [x], output, to=DTYPES[node.dtype])


def _remainder(b: Builder, node: Node) -> Tensor:
  names, output = same_order(b, node)
  return b.add('Mod', names, output, fmod=1)  # the sign of the dividend, as in XLA


def _select(b: Builder, node: Node) -> Tensor:
  if len(node.inputs) != 3:
    raise refused(node, 'chooses among more than two')
  (which, otherwise, chosen), output = same_order(b, node)
  return b.add('Where', [which, chosen, otherwise], output)


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


def _arg(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    x = b.in_order(b.value(node.inputs[0]))
    x = cast_to(b, x, 'int32') if x.dtype == 'bool' else x  # of truth values ONNX has no largest
    found = dataclasses.replace(output_of(node), dtype='int64')
    found = b.add(op, [x.name], found, axis=node.params['axes'][0], keepdims=0)
    return b.add('Cast', [found.name], output_of(node), to=DTYPES[node.dtype])

  return convert


def _reduce_logical(op: str) -> Callable[[Builder, Node], Tensor]:
  def convert(b: Builder, node: Node) -> Tensor:
    if node.dtype != 'bool':
      raise refused(node, 'combines the bits of integers')
    x = cast_to(b, b.in_order(b.value(node.inputs[0])), 'int32')
    b.values[whole := f'{node.output} as integers'] = x
    found = _reduce(op)(b, dataclasses.replace(node, inputs=(whole,), dtype='int32'))
    return cast_to(b, found, 'bool')

  return convert


def _is_finite(b: Builder, node: Node) -> Tensor:
  (x,), output = same_order(b, node)
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
  'broadcast_in_dim': broadcast,
  'clamp': _clamp,
  'concatenate': concatenate,
  'conv_general_dilated': conv,
  'convert_element_type': _cast,
  'cumsum': _cumsum,
  'dim_as_value': examples,
  'dot_general': _dot,
  'eq': _elementwise('Equal'),
  'erfc': _chain('Erf', ('Sub', 1.0, True)),
  'exp2': _chain(('Pow', 2.0, True)),
  'expand_dims': squeeze,
  'expm1': _chain('Exp', ('Sub', 1.0, False)),
  'gather': gather,
  'ge': _elementwise('GreaterOrEqual'),
  'gt': _elementwise('Greater'),
  'integer_pow': _integer_pow,
  'iota': iota,
  'is_finite': _is_finite,
  'le': _elementwise('LessOrEqual'),
  'log1p': _chain(('Add', 1.0, False), 'Log'),
  'logistic': _elementwise('Sigmoid'),
  'lt': _elementwise('Less'),
  'max': _max,
  'ne': _not_equal,
  'pad': pad,
  'reduce_and': _reduce_logical('ReduceMin'),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_or': _reduce_logical('ReduceMax'),
  'reduce_prod': _reduce('ReduceProd'),
  'reduce_sum': _reduce('ReduceSum'),
  'reduce_window_max': pool('MaxPool'),
  'reduce_window_sum': pool('AveragePool'),
  'rem': _remainder,
  'reshape': reshape,
  'rev': rev,
  'round': _round,
  'rsqrt': _chain('Sqrt', 'Reciprocal'),
  'scatter': scatter('none'),
  **{f'scatter_{name}': scatter(name) for name in ('add', 'max', 'min', 'mul')},
  'select_n': _select,
  'slice': slice_,
  'square': _square,
  'sort': sort,
  'squeeze': squeeze,
  'top_k': top_k,
  'transpose': transpose,
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
