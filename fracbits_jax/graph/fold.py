"""Chains of additions and multiplications by constants, such as a batch norm, as one scale and one offset."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fracbits_jax.graph.graph import Graph, Node

_Affine = tuple[str, np.ndarray | np.float64, np.ndarray | np.float64]  # x, scale and offset, float64

_FOLDED = ('add', 'sub', 'mul', 'div', 'affine')


def constant_operand(node: Node) -> tuple[str, np.ndarray, bool] | None:
  """The value and the constant of a node of two operands, and whether the constant is the first; `None` for others."""
  if node.op not in ('add', 'sub', 'mul', 'div') or len(node.inputs) != 2:
    return None
  first, second = node.inputs
  if isinstance(first, str) == isinstance(second, str) or not np.issubdtype(np.dtype(node.dtype), np.floating):
    return None
  return (second, np.asarray(first), True) if isinstance(second, str) else (first, np.asarray(second), False)


def as_affine(node: Node) -> _Affine | None:
  """(x, scale, offset), float64, of a node that gives scale x + offset; `None` for others."""
  if node.op == 'affine':
    x, scale, offset = node.inputs
    return x, np.asarray(scale, np.float64), np.asarray(offset, np.float64)
  found = constant_operand(node)
  if found is None:
    return None
  x, constant, first = found
  c, one, zero = constant.astype(np.float64), np.float64(1), np.float64(0)
  if node.op == 'div':
    return None if first else (x, 1 / c, zero)
  if node.op == 'mul':
    return x, c, zero
  if node.op == 'sub':
    return (x, -one, c) if first else (x, one, -c)
  return x, one, c


def fold_affine(graph: Graph) -> Graph:
  """The graph with each such chain as one node `affine`, in float32: scale x + offset.

  A lone addition, the bias of a layer, stays as it is.
  """
  consumers, producers = graph.consumers(), graph.producers()
  folded: list[Node] = []
  for node in graph.nodes:
    found = as_affine(node)
    if found is None:
      folded.append(node)
    if found is None or _continues(node, graph, consumers):
      continue
    chain = [found]
    while (before := producers.get(found[0])) is not None and (found := as_affine(before)) is not None:
      if not _continues(before, graph, consumers):
        break
      chain.insert(0, found)
    folded.append(node if len(chain) == 1 and node.op in ('add', 'sub') else _merged(chain, node))
  return dataclasses.replace(graph, nodes=tuple(folded))


def _continues(node: Node, graph: Graph, consumers: dict[str, list[Node]]) -> bool:
  """Whether nothing but one other node of a chain sees what a node gives."""
  following = consumers.get(node.output, [])
  return node.output not in graph.outputs and len(following) == 1 and as_affine(following[0]) is not None


def _merged(chain: Sequence[_Affine], last: Node) -> Node:
  scale, offset = np.asarray(1.0), np.asarray(0.0)
  for _, c, d in chain:
    scale, offset = np.asarray(scale * c), np.asarray(offset * c + d)
  shape = np.broadcast_shapes(scale.shape, offset.shape)
  if scale.shape == shape:
    offset = _alone(offset)
  elif offset.shape == shape:
    scale = _alone(scale)
  constants = (_smallest(array, last) for array in (scale, offset))
  return dataclasses.replace(last, op='affine', inputs=(chain[0][0], *constants), params={})


def _alone(array: np.ndarray) -> np.ndarray:
  """One number for an array of nothing else, such as the offsets of a norm without any."""
  return array.ravel()[0] if array.size and np.all(array == array.ravel()[0]) else array


def _smallest(array: np.ndarray, node: Node) -> np.ndarray | np.float32:
  """A constant in the rank of the node's output, float32."""
  rank = len(node.shape)
  return array.reshape((1,) * (rank - array.ndim) + array.shape).astype(np.float32) if array.ndim else np.float32(array)
