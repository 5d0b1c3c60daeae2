"""A network as a graph of a few operations: what every export but StableHLO begins with; `capture` makes one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.graph import ops
from fracbits_jax.layers.examples import arguments_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
  """One operation.

  Attributes:
    op: `quantize`, `kernel`, or the name of an operation of `jax.lax`, see `ops.OPS`.
    inputs: names of values, or arrays.
    output: name of the value that it makes.
    shape: of that value; -k stands for k times the number of examples.
    dtype: of that value, as NumPy names it.
    params: what the operation takes beside its inputs: numbers, strings and tuples of them, with -k as in `shape`. Of
      `quantize` they are `layer` (its name) and `grid` (a `Grid`), of `kernel` `layer` and `kernel` (a `Kernel`).
    place: the modules that it is computed in, as JAX keeps them, where they are known; part of no file.
  """

  op: str
  inputs: tuple[Any, ...]
  output: str
  shape: tuple[int, ...]
  dtype: str
  params: Mapping[str, Any]
  place: str = dataclasses.field(default='', compare=False, repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
  """What a network is called with.

  Attributes:
    name: of the value.
    shape: of it, -1 for the number of examples.
    dtype: of it, as NumPy names it.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str

  @property
  def is_batched(self) -> bool:
    """Whether it has an entry for each example."""
    return bool(self.shape) and self.shape[0] == -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
  """A network.

  Attributes:
    nodes: the operations, each behind those that it needs.
    inputs: what it is called with.
    outputs: names of the values that it gives.
    output_names: what those are called outside.
    note: a sentence on what the graph cannot do that the network can, or ''; part of no file.
  """

  nodes: tuple[Node, ...]
  inputs: tuple[Input, ...]
  outputs: tuple[str, ...]
  output_names: tuple[str, ...] = ('output',)
  note: str = dataclasses.field(default='', compare=False, repr=False)

  @property
  def input(self) -> str:
    """Name of the first input."""
    return self.inputs[0].name

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Its shape."""
    return self.inputs[0].shape

  @property
  def input_dtype(self) -> str:
    """Its dtype."""
    return self.inputs[0].dtype

  @property
  def output(self) -> str:
    """Name of the value that is the first output."""
    return self.outputs[0]

  def consumers(self) -> dict[str, list[Node]]:
    """The nodes that read each value."""
    found: dict[str, list[Node]] = {}
    for node in self.nodes:
      for name in dict.fromkeys(x for x in node.inputs if isinstance(x, str)):
        found.setdefault(name, []).append(node)
    return found

  def producers(self) -> dict[str, Node]:
    """The node that makes each value; inputs have none."""
    return {node.output: node for node in self.nodes}

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """The shape of each value."""
    return {**{x.name: x.shape for x in self.inputs}, **{node.output: node.shape for node in self.nodes}}

  def given(self, inputs: Any) -> dict[str, Any]:
    """The inputs of a call by name: of one array, of several in their order, or by name."""
    names = [x.name for x in self.inputs]
    if isinstance(inputs, Mapping):
      if set(inputs) != set(names):
        raise ValueError(f'inputs are given for {", ".join(map(repr, inputs))}: give them for {", ".join(names)}')
      return {name: inputs[name] for name in names}
    several = arguments_of(inputs)
    if len(several) != len(names):
      raise ValueError(f'{len(several)} inputs for a network that takes {len(names)}: {", ".join(names)}')
    return dict(zip(names, several, strict=True))

  def count(self, given: Mapping[str, Any]) -> int:
    """The number of examples among inputs by name."""
    return next((np.shape(given[x.name])[0] for x in self.inputs if x.is_batched), 1)

  def result(self, values: Mapping[str, Any]) -> Any:
    """What the network gives, among all values: one array, or a tuple of several."""
    found = tuple(values[name] for name in self.outputs)
    return found[0] if len(found) == 1 else found


def evaluate(graph: Graph, inputs: Any, keep: Sequence[str] = ()) -> tuple[Any, dict[str, jax.Array]]:
  """What a graph gives in floating point, and the values named in `keep`; it may be jitted.

  Args:
    graph: the network.
    inputs: one array, several in the order of `graph.inputs`, or arrays by name.
    keep: names of values.
  """
  values = {name: jnp.asarray(x) for name, x in graph.given(inputs).items()}
  count = graph.count(values)
  read = lambda x: values[x] if isinstance(x, str) else jnp.asarray(x)
  for node in graph.nodes:
    values[node.output] = ops.apply(node.op, node.params, [read(x) for x in node.inputs], count)
  return graph.result(values), {name: values[name] for name in keep}


def without_dead_nodes(graph: Graph) -> Graph:
  """The graph without operations that no output needs."""
  needed, kept = set(graph.outputs), []
  for node in reversed(graph.nodes):
    if node.output in needed:
      kept.append(node)
      needed.update(x for x in node.inputs if isinstance(x, str))
  return dataclasses.replace(graph, nodes=tuple(reversed(kept)))
