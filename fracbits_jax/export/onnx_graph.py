"""A graph as it is written as ONNX: quantizers right before the products that they are for, kernels as they are read.

What moves values without computing any, such as a reshape or a padding with the values of the other side, gives the
same values before a quantizer as behind it. Runtimes look for a quantizer and a product side by side; where other
operations are between them, onnxruntime moves integers of few bits through those, which it has no implementation for.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Grid, Kernel

MOVES = {'broadcast_in_dim', 'concatenate', 'expand_dims', 'reshape', 'rev', 'slice', 'squeeze', 'transpose'}
_IMAGES = Grid(bits=8, alpha=255.0, signed=False, scheme='original')


def with_late_quantizers(graph: Graph, *, images: bool) -> Graph:
  """The graph with values quantized where something computes with them, and at the output.

  Args:
    graph: the graph.
    images: whether its inputs are integers from 0 to 255, which then have a quantizer as well.
  """
  graph = _with_quantized_images(graph) if images else graph
  nodes: list[Node] = []
  late: dict[str, Node] = {}  # the quantizer of each value that is made by one or moved behind one
  added: set[str] = set()

  def add_quantizers(names: Sequence[Any]) -> None:
    for name in names:
      if isinstance(name, str) and name in late and name not in added:
        added.add(name)
        nodes.append(late[name])

  for node in graph.nodes:
    behind = [late[x] for x in node.inputs if isinstance(x, str) and x in late]
    if node.op == 'quantize':
      add_quantizers(node.inputs)
      late[node.output] = node
    elif (
      node.op in MOVES
      and behind
      and len(behind) == len(node.inputs)
      and all(_grid(q) == _grid(behind[0]) for q in behind)
    ):
      raw = dataclasses.replace(node, inputs=tuple(q.inputs[0] for q in behind), output=f'{node.output}_raw')
      nodes.append(raw)
      late[node.output] = dataclasses.replace(
        behind[0], inputs=(raw.output,), output=node.output, shape=node.shape, dtype=node.dtype
      )
    else:
      add_quantizers(node.inputs)
      nodes.append(node)
  add_quantizers(graph.outputs)
  return dataclasses.replace(graph, nodes=tuple(nodes))


def _grid(quantizer: Node) -> Grid:
  return quantizer.params['grid']


def _with_quantized_images(graph: Graph) -> Graph:
  images = [
    Node(
      op='quantize',
      inputs=(x.name,),
      output=f'{x.name}_quantized',
      shape=x.shape,
      dtype=x.dtype,
      params={'layer': x.name, 'grid': _IMAGES},
    )
    for x in graph.inputs
    if np.dtype(x.dtype).kind == 'f'
  ]
  names = {image.inputs[0]: image.output for image in images}
  nodes = (_renamed(node, names) for node in graph.nodes)
  return dataclasses.replace(graph, nodes=(*images, *nodes))


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
  inputs = tuple(names.get(x, x) if isinstance(x, str) else x for x in node.inputs)
  return dataclasses.replace(node, inputs=inputs)


def with_read_kernels(graph: Graph) -> Graph:
  """Kernels are moved in this program, and mirrored for transposed convolutions, whose nodes then say so.

  A kernel that several operations read, such as a table of words that is the head as well, is written once, as it is.
  """
  consumers = graph.consumers()
  kernels: dict[str, Node] = {}
  nodes: dict[str, Node] = {}
  for node in graph.nodes:
    kernel = kernels.get(node.inputs[0]) if node.inputs and isinstance(node.inputs[0], str) else None
    if node.op == 'kernel':
      kernels[node.output] = nodes[node.output] = node
    elif kernel is not None and _can_move(kernel, node) and len(consumers[node.inputs[0]]) == 1:
      kernels[node.output] = nodes[node.output] = _changed(kernel, node, functools.partial(_moved, node))
    elif is_transposed(node) and isinstance(node.inputs[1], str) and node.inputs[1] in kernels:
      kernel = kernels[node.inputs[1]]
      mirrored = dataclasses.replace(kernel, output=f'{kernel.output}_mirrored')
      space = node.params['dimension_numbers']['rhs_spec'][2:]
      nodes[mirrored.output] = _changed(kernel, mirrored, functools.partial(np.flip, axis=space))
      params = {**node.params, 'mirrored': True}
      nodes[node.output] = dataclasses.replace(node, inputs=(node.inputs[0], mirrored.output), params=params)
    else:
      nodes[node.output] = node
  read = {*graph.outputs, *(x for node in nodes.values() for x in node.inputs if isinstance(x, str))}
  kept = (node for node in nodes.values() if node.op != 'kernel' or node.output in read)
  return dataclasses.replace(graph, nodes=tuple(kept))


def _can_move(kernel: Node, node: Node) -> bool:
  return node.op in MOVES and len(node.inputs) == 1 and np.unique(_bits(kernel)).size == 1


def is_transposed(node: Node) -> bool:
  """Whether a node is a transposed convolution: one over an input with gaps."""
  return node.op == 'conv_general_dilated' and any(d != 1 for d in node.params['lhs_dilation'])


def _bits(kernel: Node) -> np.ndarray:
  return kernel.params['kernel'].bits


def _moved_ranges(own: Kernel, change: Callable[[np.ndarray], Any]) -> Any:
  """A kernel's range or ranges moved with it: an array that broadcasts against its codes where there are several."""
  if isinstance(own.alpha, float):
    return own.alpha
  moved = np.asarray(change(np.broadcast_to(own.alpha, own.codes.shape)))
  for axis in range(moved.ndim):
    first = np.take(moved, [0], axis) if moved.shape[axis] else moved
    moved = first if np.array_equal(np.broadcast_to(first, moved.shape), moved) else moved
  return moved


def _moved(node: Node, array: np.ndarray) -> Any:
  """An array as a node that moves its elements gives it."""
  return ops.apply(node.op, node.params, [array], images=1)


def _changed(kernel: Node, output: Node, change: Callable[[np.ndarray], Any]) -> Node:
  """A node `kernel` whose arrays are changed; name and shape are those of `output`."""
  own: Kernel = kernel.params['kernel']
  bits = own.bits if output.op == 'kernel' else own.bits.flat[0]
  codes, exact = np.asarray(change(own.codes)), np.asarray(change(own.value))
  changed = dataclasses.replace(own, codes=codes, exact=exact, bits=np.asarray(bits), alpha=_moved_ranges(own, change))
  params = {**kernel.params, 'kernel': changed}
  return dataclasses.replace(kernel, output=output.output, shape=output.shape, params=params)
