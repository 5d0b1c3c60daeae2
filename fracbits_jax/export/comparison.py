"""How far inference with integers agrees with the network in floating point, layer by layer and as a whole."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.export.integer import inference
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Graph, Node, evaluate
from fracbits_jax.graph.grid import Grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """How the integers of a network compare with those of the network in floating point.

  Attributes:
    codes: inputs of layers that were compared.
    different: how many of them are other integers, each layer having been given the same inputs.
    farthest_from_tie: for these, the largest distance of the floating-point value from the middle between two codes, in
      units of a code.
    predictions: how often the largest entry along the last axis of the outputs, of the first where there are several,
      is another one, all layers having gone on from their own integers; 0 where that axis has one entry.
    largest_difference: of the outputs, then.
    largest_output: the largest |output| in floating point.
  """

  codes: int
  different: int
  farthest_from_tie: float
  predictions: int
  largest_difference: float
  largest_output: float


def compare(
  graph: Graph, inputs: Any, *, reference: Graph | None = None, integer_inputs: bool = True, batch: int = 100
) -> Comparison:
  """Compares a network in integers with the same network in floating point, layer by layer and as a whole.

  Args:
    graph: the network.
    inputs: examples `[N, ...]`, several arrays or arrays by name as for `evaluate`.
    reference: what is computed in floating point, such as the graph from which `graph` was packed, with the same
      quantizers in the same order; `None` for `graph`.
    integer_inputs: as for `inference`.
    batch: examples that are computed at once.

  Raises:
    ValueError: one sentence, if `reference` is another network.
  """
  reference = graph if reference is None else reference
  quantizers = {node.output: node for node in _quantizers(reference)}
  own = dict(zip((node.output for node in _quantizers(graph)), quantizers, strict=False))  # names may be others
  if [node.params['layer'] for node in _quantizers(graph)] != [node.params['layer'] for node in quantizers.values()]:
    raise ValueError('the reference has other quantized inputs than the graph: give the graph that it was made from')
  before = {name: node.inputs[0] for name, node in quantizers.items()}
  in_float = jax.jit(lambda x: evaluate(reference, x, keep=tuple({*quantizers, *before.values()})))
  in_integers = inference(graph, integer_inputs=integer_inputs, keep=tuple(own))
  arrays = graph.given(inputs)
  part = lambda x, start: np.asarray(arrays[x.name])[start : start + batch] if x.is_batched else arrays[x.name]
  total: dict[str, Any] = {'codes': 0, 'different': 0, 'predictions': 0}
  largest: dict[str, Any] = {'farthest_from_tie': 0.0, 'largest_difference': 0.0, 'largest_output': 0.0}
  for start in range(0, graph.count(arrays), batch):
    x = {i.name: np.asarray(part(i, start), _read_dtype(i.dtype)) for i in graph.inputs}
    expected, values = jax.tree.map(np.asarray, in_float(x))
    codes = {name: np.asarray(node.params['grid'].codes(values[name])) for name, node in quantizers.items()}
    _, found = in_integers(x, {name: codes[other] for name, other in own.items()})
    found = {other: found[name] for name, other in own.items()}
    for name, node in quantizers.items():
      other = found[name] != codes[name]
      total['codes'], total['different'] = total['codes'] + other.size, total['different'] + int(other.sum())
      distance = distance_from_tie(values[before[name]][other].astype(np.float64), node.params['grid'])
      largest['farthest_from_tie'] = max(largest['farthest_from_tie'], float(distance.max(initial=0.0)))
    output, _ = in_integers(x)
    output, expected = (found[0] if len(graph.outputs) > 1 else found for found in (output, expected))
    total['predictions'] += int((output.argmax(-1) != expected.argmax(-1)).sum())
    largest['largest_difference'] = max(largest['largest_difference'], float(np.abs(output - expected).max()))
    largest['largest_output'] = max(largest['largest_output'], float(np.abs(expected).max()))
  return Comparison(**total, **largest)


def _quantizers(graph: Graph) -> list[Node]:
  return [node for node in graph.nodes if node.op == 'quantize']


def _read_dtype(dtype: str) -> str:
  return 'float32' if jnp.issubdtype(jnp.dtype(dtype), jnp.floating) else dtype


def in_doubles(
  graph: Graph, inputs: Any, choose: Callable[[Node, np.ndarray], Grid] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """What a graph gives in float64, on its own: what integers have to agree with where float32 is too coarse.

  Args:
    graph: the network.
    inputs: examples `[N, ...]`.
    choose: gives a grid to use in place of that of a `quantize` node, given the values before it.

  Returns:
    All values by name, float64, and the codes of the quantizers.
  """
  with jax.enable_x64(True):
    values: dict[str, Any] = {name: _double(x) for name, x in graph.given(inputs).items()}
    count = graph.count(values)
    codes = {}
    for node in graph.nodes:
      operands = [values[x] if isinstance(x, str) else _double(x) for x in node.inputs]
      if node.op == 'kernel':
        kernel = node.params['kernel']
        found = jnp.asarray((kernel.codes - kernel.zero) * kernel.scale)
      elif node.op == 'quantize':
        before = np.asarray(operands[0])
        grid = choose(node, before) if choose else node.params['grid']
        codes[node.output] = _codes(before, grid)
        found = jnp.asarray((codes[node.output] - grid.zero) * grid.scale)
      elif node.op == 'convert_element_type':
        found = operands[0] if np.issubdtype(np.dtype(node.dtype), np.floating) else operands[0].astype(node.dtype)
      else:
        params = {**node.params, 'preferred_element_type': None}  # accumulated in doubles as well
        found = ops.apply(node.op, params, operands, count)
      values[node.output] = found
    return {name: np.asarray(found) for name, found in values.items()}, codes


def _double(x: Any) -> jax.Array:
  x = jnp.asarray(x)
  return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _codes(x: np.ndarray, grid: Grid) -> np.ndarray:
  if not grid.bits:
    return np.zeros(x.shape, np.int32)
  if grid.scheme == 'lsq' and grid.signed and grid.bits == 1:
    return (x >= 0).astype(np.int32)
  position = x / grid.step + grid.zero if grid.step else np.full(x.shape, grid.zero)
  return np.clip(np.round(position), 0, 2**grid.bits - 1).astype(np.int32)


def distance_from_tie(x: np.ndarray, grid: Grid) -> np.ndarray:
  """How far real numbers are from where two codes meet, in steps of a grid."""
  if grid.scheme == 'lsq' and grid.signed and grid.bits == 1:
    return np.abs(x) / grid.step
  position = x / (grid.step or 1.0) + grid.zero
  return np.abs(position - np.floor(position) - 0.5)
