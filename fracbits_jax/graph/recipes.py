"""Constants that follow from a few numbers, kept as the operations that make them.

A causal mask, or the sines of rotary positions, are much larger than a decoder's packed weights at a few bits, and
follow from counting. A recipe says by which operations a known array was made, and of what.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.graph import ops
from fracbits_jax.graph.params import plain_params

LEAST_BYTES = 256  # of an array that is not simply stored
_MOST_BYTES, _MOST_STEPS = 1024, 32  # of the arrays that a recipe starts from, and its operations
_SHORTER = 4  # how many times smaller these have to be than the array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
  """How an array was made: an operation, what it took, and what all of its operations together start from."""

  array: np.ndarray  # kept, so that its identity stays its own
  op: str
  params: Mapping[str, Any]
  inputs: Sequence[Any]
  start_bytes: int
  steps: int


class Recipes:
  """Those of the arrays of one network."""

  def __init__(self) -> None:
    self._recipes: dict[int, _Recipe] = {}
    self._names: dict[Any, str] = {}

  def note(self, equation: Any, inputs: Sequence[Any], results: Sequence[Any]) -> None:
    """Takes notice of an equation with known inputs and results."""
    op = equation.primitive.name.replace('-', '_')
    if op not in ops.OPS or op in ops.SEVERAL or len(results) != 1 or not isinstance(results[0], np.ndarray):
      return
    before = [self._recipes.get(id(x)) for x in inputs]
    start = sum(np.asarray(x).nbytes if r is None else r.start_bytes for x, r in zip(inputs, before, strict=True))
    steps = 1 + sum(r.steps for r in before if r is not None)
    if start <= _MOST_BYTES and steps <= _MOST_STEPS:
      self._recipes[id(results[0])] = _Recipe(
        array=results[0],
        op=op,
        params=dict(plain_params(equation.params)),
        inputs=tuple(inputs),
        start_bytes=start,
        steps=steps,
      )

  def written(self, array: Any, add: Callable[[str, Sequence[Any], Any, Mapping[str, Any]], str]) -> Any:
    """An array as it is, or the name of what computes it.

    Args:
      array: a known value.
      add: adds an operation, of which it is given name, inputs, result and parameters; the name of its result.
    """
    found = self._recipes.get(id(array))
    if found is None or array.nbytes < max(LEAST_BYTES, _SHORTER * found.start_bytes):
      return array
    key = array.shape, array.dtype.str, hashlib.sha1(np.ascontiguousarray(array).tobytes()).digest()
    if key not in self._names:  # once for all blocks of a network
      inputs = [self.written(x, add) for x in found.inputs]
      self._names[key] = add(found.op, inputs, array, found.params)
    return self._names[key]
