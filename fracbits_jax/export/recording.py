"""Integer inference as a recording of what is done to integers, for a program in another language."""

import dataclasses
from typing import Any

from fracbits_jax.export.arithmetic import Recorded
from fracbits_jax.export.integer import Pass, is_image
from fracbits_jax.export.needed import needed
from fracbits_jax.export.values import Value, sized
from fracbits_jax.graph.graph import Graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
  """What integer inference does with one example, for a program in another language.

  Attributes:
    integers: of the values of the graph, by name.
    codes: of the quantizers, by name.
    outputs: of the network: integers, each 2^digits times the real number.
    digits: of each output.
  """

  integers: dict[str, Recorded]
  codes: dict[str, Any]
  outputs: dict[str, Recorded]
  digits: dict[str, int]


def record(graph: Graph) -> Recording:
  """Records integer inference of images from 0 to 255; raises `ValueError` for what has no meaning in integers."""
  for x in graph.inputs:
    if not is_image(x):
      raise ValueError(f'the input {x.name} has the type {x.dtype}: a program of integers takes integers from 0 to 255')
  inputs = {
    x.name: Recorded(op='input', operands=(), params={'name': x.name}, shape=sized(x.shape, 1)) for x in graph.inputs
  }
  first = Pass(graph, True, 1)
  first(inputs, {})
  stops = needed(graph, first.intervals, first.shapes, ())
  second = Pass(graph, True, 1, first.intervals, stops)
  values, codes = second(inputs, {})
  outputs, digits = {}, {}
  for name in graph.outputs:
    outputs[name], digits[name] = second.fixed(values[name], name)
  integers = {name: x.integers for name, x in values.items() if isinstance(x, Value)}
  return Recording(integers=integers, codes=codes, outputs=outputs, digits=digits)
