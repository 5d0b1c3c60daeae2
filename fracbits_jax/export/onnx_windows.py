"""Convolutions and pools of a graph as nodes of ONNX: what slides a window."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.onnx_build import END, Builder, Tensor, output_of, refused
from fracbits_jax.export.onnx_graph import is_transposed
from fracbits_jax.graph.graph import Graph, Node


def conv(b: Builder, node: Node) -> Tensor:
  """Adds a convolution, transposed or not; `ValueError` for what ONNX has no operator for."""
  p, numbers = node.params, node.params['dimension_numbers']
  x = b.in_order(b.value(node.inputs[0]), numbers['lhs_spec'])
  kernel = b.beside(x, b.in_order(b.value(node.inputs[1]), kernel_order(node)))
  if p['batch_group_count'] != 1:
    raise refused(node, 'is grouped by batches')
  output = output_of(node, numbers['out_spec'])
  if is_transposed(node):
    return _conv_transpose(b, node, x, kernel, output)
  pads = [pad for side in zip(*p['padding'], strict=True) for pad in side]
  if min(pads) < 0:
    raise refused(node, 'has a negative padding')
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


def kernel_order(node: Node) -> tuple[int, ...]:
  """The order of axes in which ONNX has a convolution's kernel: transposed ones have those of its inputs first."""
  out_channels, in_channels, *space = node.params['dimension_numbers']['rhs_spec']
  return (in_channels, out_channels, *space) if is_transposed(node) else (out_channels, in_channels, *space)


def _conv_transpose(b: Builder, node: Node, x: Tensor, kernel: Tensor, output: Tensor) -> Tensor:
  """A convolution over an input with gaps, as the transposed convolution that it is; ONNX mirrors the kernel."""
  p = node.params
  if any(s != 1 for s in p['window_strides']) or p['feature_group_count'] != 1:
    raise refused(node, 'is transposed, with strides of its own or in groups')
  sizes = kernel.shape_there[2:]
  reach = [d * (size - 1) for d, size in zip(p['rhs_dilation'], sizes, strict=True)]
  begin = [r - low for r, (low, _) in zip(reach, p['padding'], strict=True)]
  end = [r - high for r, (_, high) in zip(reach, p['padding'], strict=True)]
  if min(begin) < 0 or any(-e >= max(d, 1) for e, d in zip(end, p['lhs_dilation'], strict=True)):
    raise refused(node, 'is transposed, with more padding than its kernel reaches')
  if not p.get('mirrored'):
    kernel = mirrored(b, kernel, range(2, kernel.rank))
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


def mirrored(b: Builder, x: Tensor, axes: Sequence[int]) -> Tensor:
  """A tensor with axes of the file reversed."""
  ints = lambda value: b.constant(np.full(len(axes), value, np.int64))
  names = [x.name, ints(-1), ints(-END), b.constant(np.asarray(axes, np.int64)), ints(-1)]
  return b.add('Slice', names, x)


def mean_behind(graph: Graph, consumers: Mapping[str, Sequence[Node]], node: Node) -> Node | None:
  """The node that divides a `reduce_sum` by how many values it adds; `None` where nothing does."""
  users = consumers.get(node.output, ())
  if len(users) != 1 or users[0].op != 'affine' or not isinstance(node.inputs[0], str):
    return None
  (following,) = users
  shape = graph.shapes()[node.inputs[0]]
  count = np.prod([shape[axis] for axis in node.params['axes']])
  _, scale, offset = following.inputs
  divides = np.size(scale) == 1 and not np.any(offset) and np.isclose(np.asarray(scale) * count, 1, rtol=1e-6).all()
  return following if divides else None


def global_average_pool(b: Builder, node: Node, mean: Node) -> Tensor | None:
  """Adds a sum and the division behind it as one pool; `None`, and nothing is added, where they are none over space."""
  x = b.value(node.inputs[0])
  if not isinstance(x, Tensor) or x.rank < 3 or x.order[2:] != tuple(sorted(node.params['axes'])):
    return None
  sides = tuple(1 if axis in node.params['axes'] else side for axis, side in enumerate(x.shape))
  pooled = b.add('GlobalAveragePool', [x.name], dataclasses.replace(x, shape=sides))
  return b.add('Flatten', [pooled.name], output_of(mean), axis=1)


def pool(op: str) -> Callable[[Builder, Node], Tensor]:
  """What adds a pool by ONNX's `op`: `MaxPool`, or `AveragePool` for sums."""

  def convert(b: Builder, node: Node) -> Tensor:
    p, rank = node.params, len(node.shape)
    x = b.value(node.inputs[0])
    order = (0, rank - 1, *range(1, rank - 1))  # channels second
    if isinstance(x, Tensor) and all(p['window_dimensions'][axis] == 1 for axis in x.order[:2]):
      order = x.order if x.order != tuple(range(rank)) else order
    x = b.in_order(x, order)
    at = lambda name: [p[name][axis] for axis in order]
    window, padding, dilation = at('window_dimensions'), at('padding'), at('window_dilation')
    outer = [window[:2], at('window_strides')[:2], [pad for pads in padding[:2] for pad in pads]]
    dilated = any(d != 1 for d in p['base_dilation']) or (op == 'AveragePool' and any(d != 1 for d in dilation))
    if outer != [[1, 1], [1, 1], [0, 0, 0, 0]] or dilated:
      raise refused(node, 'pools over examples or channels, or with gaps')
    pads = [pad for side in zip(*padding[2:], strict=True) for pad in side]
    settings: dict[str, Any] = {'kernel_shape': window[2:], 'strides': at('window_strides')[2:], 'pads': pads}
    if op == 'MaxPool':
      return b.add(op, [x.name], output_of(node, order), dilations=dilation[2:], **settings)
    mean = b.add(op, [x.name], output_of(node, order), count_include_pad=1, **settings)
    return b.add('Mul', [mean.name, b.constant(np.float32(np.prod(window)))], mean)

  return convert
