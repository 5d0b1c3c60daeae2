"""Building an ONNX file from a graph: values and their layouts, constants, nodes.

The networks of JAX have channels last, ONNX's convolutions have them second. A tensor therefore has an `order`: its
axes as the network counts them, in the order in which the file has them. What works element by element takes any order,
so that a network of convolutions is transposed nowhere; operations that need the network's own order transpose first.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import onnx
  from onnx import TensorProto, helper, numpy_helper

from fracbits_jax.export.source import Source
from fracbits_jax.graph.graph import Graph, Input, Node
from fracbits_jax.system.files import write_whole

DTYPES = {
  'float32': TensorProto.FLOAT,
  'int32': TensorProto.INT32,
  'int64': TensorProto.INT64,
  'bool': TensorProto.BOOL,
  **{f'{sign}int{bits}': getattr(TensorProto, f'{sign}int{bits}'.upper()) for sign in ('', 'u') for bits in (2, 4, 8)},
}
END = np.iinfo(np.int64).max  # of a slice that goes to the end
# The oldest version of the file format that has what an operator set needs.
_IR_VERSIONS = {13: 8, 21: 10, 25: 13}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A value in the file.

  Attributes:
    name: its name there.
    shape: as the network has it; -k stands for k times the number of examples.
    dtype: as NumPy and ml_dtypes name it.
    order: the network's axes in the order of the file.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  order: tuple[int, ...]

  @property
  def rank(self) -> int:
    return len(self.shape)

  @property
  def shape_there(self) -> tuple[int, ...]:
    """The shape in the file."""
    return tuple(self.shape[axis] for axis in self.order)


class Builder:
  """An ONNX file that grows node by node.

  Attributes:
    opset: version of ONNX's operator set.
    inputs: what the file takes.
    values: the tensor or the constant of each value of the graph so far.
  """

  def __init__(self, source: Source, *, opset: int, batch_size: int | None):
    """Begins a file.

    Args:
      source: what is exported.
      opset: 13, 21 or 25.
      batch_size: examples that the file takes at once; `None` for any number.
    """
    self.opset, self._batch_size, self._source = opset, batch_size, source
    self._nodes: list[onnx.NodeProto] = []
    self._infos: list[onnx.ValueInfoProto] = []
    self._constants: dict[Any, str] = {}
    self._initializers: list[onnx.TensorProto] = []
    self._reordered: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    self._domains: set[str] = set()
    self._makers: dict[str, str] = {}
    self._types: dict[str, int] = {}
    self._integers: dict[str, int] = {}
    graph = source.graph
    self.inputs = tuple(Tensor(x.name, x.shape, x.dtype, _input_order(graph, x)) for x in graph.inputs)
    self.values: dict[str, Tensor | np.ndarray] = {x.name: x for x in self.inputs}
    self._values = {x.name: x for x in self.inputs}
    self._reserved = {*self._values, *graph.output_names}

  def value(self, x: Any) -> Tensor | np.ndarray:
    """What an input of a graph's node is here."""
    return self.values[x] if isinstance(x, str) else np.asarray(x)

  def constant(self, array: Any, name: str = 'constant') -> str:
    """The name of a constant; equal ones are kept once."""
    array = np.asarray(array)
    if array.dtype == np.float64:
      array = array.astype(np.float32)
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in self._constants:
      self._constants[key] = self.initializer(numpy_helper.from_array(array), name)
    return self._constants[key]

  def initializer(self, proto: onnx.TensorProto, name: str) -> str:
    """The name of a constant that is given as ONNX keeps it."""
    proto.name = self._free(f'{name}_{len(self._initializers)}')
    self._initializers.append(proto)
    self._types[proto.name] = proto.data_type
    self._infos.append(helper.make_tensor_value_info(proto.name, proto.data_type, list(proto.dims)))
    return proto.name

  def _free(self, name: str) -> str:
    """A name that is not that of an input or an output."""
    return name if name not in self._reserved else f'{name}_inner'

  def add(self, op: str, inputs: Sequence[str], like: Tensor, *, domain: str = '', **attributes: Any) -> Tensor:
    """Adds a node; returns its output.

    Args:
      op: ONNX's operator.
      inputs: names; an empty one leaves an input out.
      like: the output, but for its name.
      domain: the operator's.
      **attributes: of the node.
    """
    return self.add_several(op, inputs, [like], domain=domain, **attributes)[0]

  def add_several(
    self, op: str, inputs: Sequence[str], likes: Sequence[Tensor], *, domain: str = '', **attributes: Any
  ) -> list[Tensor]:
    """The same for a node that gives several values, each like one of `likes`."""
    self._domains.add(domain)
    inputs = [self._once(name, inputs[:i]) for i, name in enumerate(inputs)]
    name = self._free(f'{op}_{len(self._nodes)}')
    outputs = [dataclasses.replace(like, name=f'{name}_{i}' if i else name) for i, like in enumerate(likes)]
    for output in outputs:
      self._makers[output.name], self._types[output.name] = op, DTYPES[output.dtype]
      self._values[output.name] = output
      self._infos.append(self._info(output))
    if op == 'DequantizeLinear':
      self._integers[name] = self._types[inputs[0]]
    names = [output.name for output in outputs]
    self._nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
    return outputs

  def _once(self, name: str, before: Sequence[str]) -> str:
    """A value's name as an input behind others; a copy where it is one of those, for qonnx renames only the first."""
    if name not in before or name not in self._values:
      return name
    return self.add('Identity', [name], self._values[name]).name

  def maker(self, name: str) -> str | None:
    """The operator that makes a value; `None` for inputs and constants."""
    return self._makers.get(name)

  def integers(self, name: str) -> int | None:
    """The type of the integers that a DequantizeLinear makes a value of; `None` for other values."""
    return self._integers.get(name)

  def apart(self, x: Tensor) -> Tensor:
    """The same values, behind an operation that runtimes neither drop nor move a quantizer over: a maximum."""
    return self.add('Max', [x.name, self.constant(np.finfo(np.float32).min)], x)

  def beside(self, x: Tensor, kernel: Tensor) -> Tensor:
    """A kernel as a product with `x` takes it: apart from its DequantizeLinear, but where both have 8 bits.

    There onnxruntime multiplies the integers. With fewer bits it tries to as well and fails, or rounds `x` to 8 bits of
    its own choice.
    """
    found = {self.integers(x.name), self.integers(kernel.name)}
    return (
      kernel
      if found <= {TensorProto.INT8, TensorProto.UINT8} or None is self.integers(kernel.name)
      else self.apart(kernel)
    )

  def in_order(self, x: Tensor | np.ndarray, order: Iterable[int] | None = None) -> Tensor:
    """A value in an order of axes, the network's own by default; constants become part of the file."""
    order = tuple(range(x.ndim if isinstance(x, np.ndarray) else x.rank) if order is None else order)
    if isinstance(x, np.ndarray):
      return Tensor(self.constant(np.transpose(x, order)), x.shape, x.dtype.name, order)
    if x.order == order:
      return x
    key = (x.name, order)
    if key not in self._reordered:
      permutation = [x.order.index(axis) for axis in order]
      self._reordered[key] = self.add('Transpose', [x.name], dataclasses.replace(x, order=order), perm=permutation)
    return self._reordered[key]

  def size(self, size: int) -> int:
    """A side of an array, -1 for one that depends on the number of examples."""
    if size >= 0:
      return size
    return -1 if self._batch_size is None else -size * self._batch_size

  def _info(self, x: Tensor) -> onnx.ValueInfoProto:
    named = lambda side: 'N' if side == -1 else f'{-side}N'
    sides = [named(side) if self.size(side) < 0 else self.size(side) for side in x.shape_there]
    return helper.make_tensor_value_info(x.name, DTYPES[x.dtype], sides)

  def finish(self, path: str | os.PathLike) -> None:
    """Writes the file, whole or not at all."""
    write_whole(path, self.serialized())

  def serialized(self, others: Iterable[Tensor] = ()) -> bytes:
    """The file, with other tensors among its outputs as well."""
    source = self._source.graph
    found = [self.in_order(self.value(name)) for name in source.outputs]
    outputs = [dataclasses.replace(x, name=name) for x, name in zip(found, source.output_names, strict=True)]
    copies = zip(found, outputs, strict=True)
    nodes = [*self._nodes, *(helper.make_node('Identity', [x.name], [y.name], name=y.name) for x, y in copies)]
    used = {name for node in nodes for name in node.input}
    outputs += others
    inner = {*used, *(name for node in nodes for name in node.output)} - {x.name for x in outputs}
    graph = helper.make_graph(
      nodes,
      self._source.name,
      [self._info(x) for x in self.inputs],
      [self._info(x) for x in outputs],
      initializer=[constant for constant in self._initializers if constant.name in used],
      value_info=[info for info in self._infos if info.name in inner],
    )
    opsets = [helper.make_opsetid(domain, 1 if domain else self.opset) for domain in sorted(self._domains | {''})]
    model = helper.make_model(
      graph, opset_imports=opsets, producer_name='fracbits_jax', ir_version=_IR_VERSIONS[self.opset]
    )
    helper.set_model_props(model, self._source.notes())
    if self._domains <= {''}:
      onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _input_order(graph: Graph, x: Input) -> tuple[int, ...]:
  """Channels second for what a convolution sees, the network's own order otherwise."""
  rank = len(x.shape)
  if np.dtype(x.dtype).kind not in 'fu':
    return tuple(range(rank))
  for node in graph.nodes:
    if node.op == 'conv_general_dilated' and len(node.shape) == rank:
      return tuple(node.params['dimension_numbers']['lhs_spec'])
  return tuple(range(rank))


def output_of(node: Node, order: Sequence[int] | None = None) -> Tensor:
  """What a node gives, in an order of axes, the network's own by default."""
  return Tensor('', node.shape, node.dtype, tuple(range(len(node.shape)) if order is None else order))


def refused(node: Node, what: str) -> ValueError:
  """The error that a node is none that ONNX has, with what is in the way, where it is and which formats have it."""
  place = f' in {node.place}' if node.place else ''
  return ValueError(
    f'the operation {node.op!r}{place} ({node.output}) {what}, which is not written as ONNX: export with '
    '--format packed or --format stablehlo'
  )
