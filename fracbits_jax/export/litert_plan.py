"""What a LiteRT file holds, before it is written: tensors of integers and the operations that make them.

An integer q of a tensor stands for scale (q - zero). Activations are int8 with one scale and one zero; weights are int8
or int4 with the zero 0 and a scale for each output channel; biases int32.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST, MOST = -128, 127  # of int8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
  """What the integers of an int8 tensor stand for."""

  scale: float
  zero: int

  @property
  def interval(self) -> tuple[float, float]:
    """The least and the largest real number."""
    return self.scale * (LEAST - self.zero), self.scale * (MOST - self.zero)

  def agrees(self, other: 'Quantization') -> bool:
    """Whether both are the same within a rounding of float32."""
    return self.zero == other.zero and abs(self.scale - other.scale) <= 1e-6 * self.scale


@dataclasses.dataclass(kw_only=True, eq=False)
class Tensor:
  """A tensor.

  Attributes:
    name: in the file.
    shape: for one example.
    dtype: `int8`, `int4` or `int32`.
    scale: float32, `[1]` or one for each entry along `axis`; `None` for plain integers, such as a shape.
    zero: the integer of the real number 0.
    axis: along which the scales are.
    data: its integers, where they are constant.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  scale: np.ndarray | None = None
  zero: int = 0
  axis: int = 0
  data: np.ndarray | None = None

  @property
  def quantization(self) -> Quantization:
    """Of a tensor with one scale."""
    assert self.scale is not None
    return Quantization(scale=float(self.scale[0]), zero=self.zero)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
  """An operation of LiteRT.

  Attributes:
    op: its name among the schema's `BuiltinOperator`.
    inputs: what it takes.
    output: what it makes.
    options: fields of its options in the schema; names of the schema's enumerations are strings.
  """

  op: str
  inputs: tuple[Tensor, ...]
  output: Tensor
  options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """A whole file.

  Attributes:
    operations: each behind those that it needs.
    inputs: what the network is called with.
    outputs: what it gives.
    codes: the tensor of each `quantize` node of the graph, by the node's output; where the node's grid has the code c,
      it has c - 128.
  """

  operations: tuple[Operation, ...]
  inputs: tuple[Tensor, ...]
  outputs: tuple[Tensor, ...]
  codes: Mapping[str, Tensor]


class Builder:
  """Collects the operations of a file; each tensor gets a name of its own."""

  def __init__(self):
    self.operations: list[Operation] = []
    self._names: set[str] = set()

  def activation(self, name: str, shape: Sequence[int], quantization: Quantization) -> Tensor:
    """An int8 tensor that an operation makes, or an input."""
    scale = np.asarray([quantization.scale], np.float32)
    return Tensor(name=self._free(name), shape=tuple(shape), dtype='int8', scale=scale, zero=quantization.zero)

  def constant(self, name: str, data: np.ndarray, dtype: str, scale: np.ndarray | None = None, axis: int = 0) -> Tensor:
    """A tensor of constant integers."""
    return Tensor(name=self._free(name), shape=data.shape, dtype=dtype, scale=scale, axis=axis, data=data)

  def add(self, op: str, inputs: Sequence[Tensor], output: Tensor, **options: Any) -> Tensor:
    """Adds an operation; returns its output."""
    self.operations.append(Operation(op=op, inputs=tuple(inputs), output=output, options=options))
    return output

  def same(self, op: str, x: Tensor, name: str, shape: Sequence[int], *rest: Tensor, **options: Any) -> Tensor:
    """Adds an operation that moves integers, or takes some of them: they stand for what they stood for."""
    return self.add(op, (x, *rest), self.activation(name, shape, x.quantization), **options)

  def maker(self, x: Tensor) -> Operation | None:
    """The operation that makes a tensor."""
    return next((operation for operation in reversed(self.operations) if operation.output is x), None)

  def reshaped(self, x: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The same integers in another shape."""
    made = self.maker(x)
    while made is not None and made.op == 'RESHAPE':
      x = made.inputs[0]
      made = self.maker(x)
    if x.shape == tuple(shape):
      return x
    to = self.constant(f'{name}/shape', np.asarray(shape, np.int32), 'int32')
    return self.same('RESHAPE', x, name, shape, to, newShape=to.data)

  def plan(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], codes: Mapping[str, Tensor]) -> Plan:
    """The operations that the outputs need."""
    needed, kept = set(outputs), []
    for operation in reversed(self.operations):
      if operation.output in needed:
        needed |= set(operation.inputs)
        kept.append(operation)
    found = {}
    for name, tensor in codes.items():
      made = self.maker(tensor)
      # A shape that nothing reads is left out, and the integers are those before it.
      found[name] = made.inputs[0] if made is not None and tensor not in needed else tensor
    return Plan(operations=tuple(reversed(kept)), inputs=tuple(inputs), outputs=tuple(outputs), codes=found)

  def _free(self, name: str) -> str:
    found, count = name, 1
    while found in self._names:
      count += 1
      found = f'{name}_{count}'
    self._names.add(found)
    return found
