"""How far inference with integers agrees with the network in floating point, layer by layer and as a whole."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fracbits_jax.export.graph import Graph, evaluate
from fracbits_jax.export.grid import Grid
from fracbits_jax.export.integer import inference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """How the integers of a network compare with those of the network in floating point.

  Attributes:
    codes: inputs of layers that were compared.
    different: how many of them are other integers, each layer having been given the same inputs.
    farthest_from_tie: for these, the largest distance of the floating-point value from the middle between two codes, in
      units of a code.
    predictions: examples whose largest output is another one, all layers having gone on from their own integers.
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
    inputs: examples `[N, ...]`.
    reference: what is computed in floating point, such as the graph from which `graph` was packed; `None` for `graph`.
    integer_inputs: as for `inference`.
    batch: examples that are computed at once.
  """
  reference = graph if reference is None else reference
  quantizers = {node.output: node for node in reference.nodes if node.op == 'quantize'}
  before = {name: node.inputs[0] for name, node in quantizers.items()}
  in_float = jax.jit(lambda x: evaluate(reference, x, keep=tuple({*quantizers, *before.values()})))
  in_integers = inference(graph, integer_inputs=integer_inputs, keep=tuple(quantizers))
  total = {'codes': 0, 'different': 0, 'predictions': 0}
  largest = {'farthest_from_tie': 0.0, 'largest_difference': 0.0, 'largest_output': 0.0}
  for start in range(0, len(inputs), batch):
    x = np.asarray(inputs[start : start + batch], np.float32)
    expected, values = jax.tree.map(np.asarray, in_float(x))
    codes = {name: np.asarray(node.params['grid'].codes(values[name])) for name, node in quantizers.items()}
    _, found = in_integers(x, codes)
    for name, node in quantizers.items():
      other = found[name] != codes[name]
      total['codes'], total['different'] = total['codes'] + other.size, total['different'] + int(other.sum())
      distance = _distance_from_tie(values[before[name]][other], node.params['grid'])
      largest['farthest_from_tie'] = max(largest['farthest_from_tie'], distance)
    output, _ = in_integers(x)
    total['predictions'] += int((output.argmax(-1) != expected.argmax(-1)).sum())
    largest['largest_difference'] = max(largest['largest_difference'], float(np.abs(output - expected).max()))
    largest['largest_output'] = max(largest['largest_output'], float(np.abs(expected).max()))
  return Comparison(**total, **largest)


def _distance_from_tie(values: np.ndarray, grid: Grid) -> float:
  """The largest distance of values from the middle between two codes, in units of a code."""
  position = values.astype(np.float64) / (grid.scale or 1.0) + grid.zero
  return float(np.max(np.abs(position - np.floor(position) - 0.5), initial=0.0))
