"""Which scale and zero each tensor of a LiteRT file has.

What a layer multiplies has those of its quantizer. Where nothing but layers with such inputs reads a value, it is
stored as the one with the largest range has it, and requantized for the others. What a sum, a mean or the outside reads
is stored with the range that it has on some examples, as far as anything behind depends on it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.export.litert_plan import LEAST, MOST, Quantization
from fracbits_jax.export.needed import needed
from fracbits_jax.graph.graph import Graph, Node, evaluate
from fracbits_jax.graph.grid import Grid

MOVES = ('concatenate', 'expand_dims', 'pad', 'reduce_window_max', 'reshape', 'slice', 'squeeze', 'transpose')
_BATCH = 32  # examples at once
_LIMITS = ('max', 'min', 'clamp')


def of_grid(grid: Grid) -> Quantization:
  """That of a layer's inputs of 8 bits, whose codes from 0 to 255 are stored less 128."""
  return Quantization(scale=grid.scale, zero=round(grid.zero) + LEAST)


def of_range(least: float, most: float) -> Quantization:
  """That of numbers between two ends, and of 0."""
  least, most = min(least, 0.0), max(most, 0.0)
  scale = (most - least) / (MOST - LEAST)
  if not (math.isfinite(scale) and scale > 0):
    return Quantization(scale=1.0, zero=LEAST)
  return Quantization(scale=scale, zero=round(LEAST - least / scale))


def limits_of(node: Node) -> tuple[float, float] | None:
  """The limits that a node gives its value; `None` for other nodes, and for limits that differ between channels."""
  constants = [np.asarray(x, np.float64) for x in node.inputs if not isinstance(x, str)]
  if node.op not in _LIMITS or len(constants) != (2 if node.op == 'clamp' else 1) or any(c.size > 1 for c in constants):
    return None
  ends = [float(c.reshape(())) for c in constants]
  if node.op == 'clamp':
    return (min(ends), ends[1]) if isinstance(node.inputs[1], str) else None
  return (ends[0], math.inf) if node.op == 'max' else (-math.inf, ends[0])


class Ranges:
  """Finds the scale and zero of values."""

  def __init__(self, graph: Graph, examples: Any):
    self.graph, self.consumers = graph, graph.consumers()
    self.observed = observed(graph, examples)
    intervals = {name: (np.float64(least), np.float64(most)) for name, (least, most) in self.observed.items()}
    self.reach = needed(graph, intervals, graph.shapes(), ())

  def of(self, name: str) -> Quantization:
    """That of a value."""
    grids, others = self._readers(name)
    whole = self._range(name)
    if grids and len({(grid.signed, grid.moved) for grid in grids}) == 1:
      widest = of_grid(max(grids, key=lambda grid: grid.alpha))
      ends = widest.interval
      if not others or (ends[0] <= whole[0] + widest.scale / 2 and whole[1] - widest.scale / 2 <= ends[1]):
        return widest
    return of_range(*whole)

  def together(self, names: Sequence[str], output: str) -> Quantization:
    """That of values that are stored side by side, such as those of a concatenation."""
    grids, others = self._readers(output)
    if grids and not others:
      return self.of(output)
    ranges = [self._range(name) for name in names]
    return of_range(min(least for least, _ in ranges), max(most for _, most in ranges))

  def _range(self, name: str) -> tuple[float, float]:
    least, most = self.observed[name]
    low, high = self.reach.get(name, (-math.inf, math.inf))
    return max(least, float(np.min(low))), min(most, float(np.max(high)))

  def _readers(self, name: str) -> tuple[list[Grid], bool]:
    """The grids of the layers that read a value, and whether anything else does."""
    grids: list[Grid] = []
    others = name in self.graph.outputs
    for node in self.consumers.get(name, []):
      if node.op == 'quantize':
        grids.append(node.params['grid'])
        continue
      limits = limits_of(node)
      if node.op in MOVES or limits is not None:
        found, more = self._readers(node.output)
        if limits is None or all(_within(of_grid(grid), limits) for grid in found):
          grids, others = grids + found, others or more
          continue
      others = True
    return grids, others


def _within(quantization: Quantization, limits: tuple[float, float]) -> bool:
  """Whether limits change nothing about what is rounded and ended so."""
  (least, most), (low, high) = quantization.interval, limits
  return low <= least + quantization.scale / 4 and high >= most - quantization.scale / 4


def observed(graph: Graph, examples: Any) -> Mapping[str, tuple[float, float]]:
  """The least and the largest number of each real value of a network on some examples."""
  names = [node.output for node in graph.nodes if node.op != 'kernel' and np.dtype(node.dtype).kind == 'f']

  def ends(inputs: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    _, values = evaluate(graph, inputs, keep=names)
    return {name: (jnp.min(x), jnp.max(x)) for name, x in values.items()}

  arrays = {x.name: np.asarray(y, x.dtype) for x, y in zip(graph.inputs, graph.given(examples).values(), strict=True)}
  count, compiled = graph.count(arrays), jax.jit(ends)
  least, most = dict.fromkeys(names, math.inf), dict.fromkeys(names, -math.inf)
  for start in range(0, count, _BATCH):
    # The last images are taken twice where they are no whole batch, so that one program does for all.
    part = lambda x: x[max(0, min(start, count - _BATCH)) :][:_BATCH]  # noqa: B023
    found = compiled({x.name: part(arrays[x.name]) if x.is_batched else arrays[x.name] for x in graph.inputs})
    for name, (low, high) in jax.device_get(found).items():
      least[name], most[name] = min(least[name], float(low)), max(most[name], float(high))
  of_inputs = {name: (float(np.min(x)), float(np.max(x))) for name, x in arrays.items()}
  return {**{name: (least[name], most[name]) for name in names}, **of_inputs}
