"""Networks of other floating-point numbers than float32, as those of bfloat16, for formats that compute in float32."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from fracbits_jax.graph.graph import Graph, Node

_DTYPES = ('dtype', 'new_dtype', 'preferred_element_type')  # parameters that are one


def in_float32(graph: Graph) -> Graph:
  """The graph with float32 wherever it has other floating-point numbers; conversions between those are left out."""
  dtypes_there = (*(x.dtype for x in graph.inputs), *(node.dtype for node in graph.nodes))
  found = {dtype for dtype in dtypes_there if _other(dtype)}
  if not found:
    return graph
  names: dict[str, str] = {}
  dtypes = {x.name: _changed(x.dtype) for x in graph.inputs}
  nodes = []
  for node in graph.nodes:
    inputs = tuple(names.get(x, x) if isinstance(x, str) else _constant(x) for x in node.inputs)
    dtypes[node.output] = _changed(node.dtype)
    first = inputs[0] if inputs else None
    if node.op == 'convert_element_type' and isinstance(first, str) and dtypes[first] == dtypes[node.output]:
      names[node.output] = first
      continue
    params = {key: _changed(value) if key in _DTYPES else value for key, value in node.params.items()}
    nodes.append(_replaced(node, inputs, dtypes[node.output], params))
  note = f'computes in float32 what the network computes in {" and ".join(sorted(found))}'
  return dataclasses.replace(
    graph,
    nodes=tuple(nodes),
    inputs=tuple(dataclasses.replace(x, dtype=dtypes[x.name]) for x in graph.inputs),
    outputs=tuple(names.get(x, x) for x in graph.outputs),
    note=', and '.join(part for part in (graph.note, note) if part),
  )


def _replaced(node: Node, inputs: tuple[Any, ...], dtype: str, params: dict[str, Any]) -> Node:
  return dataclasses.replace(node, inputs=inputs, dtype=dtype, params=params)


def _other(dtype: Any) -> bool:
  return dtype is not None and dtype != 'float32' and bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))


def _changed(dtype: Any) -> Any:
  return 'float32' if _other(dtype) else dtype


def _constant(x: Any) -> np.ndarray:
  x = np.asarray(x)
  return x.astype(np.float32) if _other(x.dtype.name) else x
