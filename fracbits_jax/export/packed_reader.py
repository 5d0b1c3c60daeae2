"""A packed network from what its file holds, which anybody may have written.

Sizes are checked before anything of them is made: what a file can make its reader allocate is a small multiple of its
own size, and what its network computes of an image is a multiple of the file's and the image's.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export import graph_check, packed_arrays, packed_rows, shape_values, shapes
from fracbits_jax.export import packed_fields as fields
from fracbits_jax.graph.graph import Graph, Input, Node
from fracbits_jax.graph.grid import Grid
from fracbits_jax.layers.quant_config import SCHEMES
from fracbits_jax.system.strict_json import shown

MAX_NODES, MAX_INPUTS, MAX_ARRAYS = 5000, 1000, 10_000
MAX_COUNT = 10**18

MAX_ENDS = 1000  # inputs, and outputs

_KEYS = ('name', 'input', 'output', 'nodes', 'arrays', 'layers', 'bitops_g', 'size_mb')
_SEVERAL = {'input', 'output'}, {'inputs', 'outputs', 'input_range'}  # keys of one and those in their place of several


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
  """What a packed file holds.

  Attributes:
    name: of the network.
    graph: the network; batch norms are one scale and one offset a channel.
    input_range: least and largest input where inputs are integers, such as (0, 255) for images; `None` for real ones.
    layers: for each layer its `name`, `kernel` bits (a list where each channel has its own), `input` bits, `macs` and
      `weights`.
    bitops_g: BitOPs of an input, in 10^9.
    size_mb: size of the kernels and biases, in 10^6 bytes.
  """

  name: str
  graph: Graph
  input_range: tuple[int, int] | None
  layers: tuple[Mapping[str, Any], ...]
  bitops_g: float
  size_mb: float


def parse(header: Any, body: memoryview, size: int, version: int) -> Packed:
  """The network of a file of `size` bytes and of a version.

  Raises:
    ValueError: what is wrong with it, without the file's name.
  """
  one, several = _SEVERAL
  if not isinstance(header, dict) or set(header) not in (set(_KEYS), set(_KEYS) - one | several):
    raise ValueError(f'its header is not an object of {", ".join(_KEYS)}')
  if len(fields.list_of(header['nodes'], 'the operations')) > MAX_NODES:
    raise ValueError(f'it has {len(header["nodes"]):,} operations, and at most {MAX_NODES:,} are read')
  rows = header['nodes'] if version == 1 else packed_rows.expanded(header['nodes'])
  inputs, outputs, names, input_range = _ends(header)
  if len(fields.list_of(header['arrays'], 'the arrays')) > MAX_ARRAYS:
    raise ValueError(f'it has {len(header["arrays"]):,} arrays, and at most {MAX_ARRAYS:,} are read')
  arrays = packed_arrays.Reader(header['arrays'], body)
  graph = Graph(
    nodes=tuple(_node(row, arrays) for row in rows),
    inputs=inputs,
    outputs=outputs,
    output_names=names,
  )
  arrays.check_used()
  graph_check.check(graph, size)
  return Packed(
    name=fields.name(header['name']),
    graph=graph,
    input_range=None if input_range is None else _input_range(input_range),
    layers=tuple(_layers(fields.list_of(header['layers'], 'the layers'), graph)),
    bitops_g=fields.number(header['bitops_g'], 'the BitOPs', 0, 1e30),
    size_mb=fields.number(header['size_mb'], 'the size', 0, 1e30),
  )


def _ends(header: Mapping[str, Any]) -> tuple[tuple[Input, ...], tuple[str, ...], tuple[str, ...], Any]:
  """Inputs, the values that are outputs, the names of those, and the range of the inputs."""
  if 'input' in header:
    name, shape, dtype, input_range = fields.entries(header['input'], 4, 'the input')
    rows, outputs = [[name, shape, dtype]], [['output', header['output']]]
  else:
    rows, outputs = fields.list_of(header['inputs'], 'the inputs'), fields.list_of(header['outputs'], 'the outputs')
    input_range = header['input_range']
  if len(rows) > MAX_ENDS or not 1 <= len(outputs) <= MAX_ENDS:
    raise ValueError(f'it has {len(rows):,} inputs and {len(outputs):,} outputs: 1 to {MAX_ENDS:,} are read')
  inputs = []
  for row in rows:
    name, shape, dtype = fields.entries(row, 3, 'an input')
    inputs.append(Input(name=fields.name(name), shape=_input_shape(shape), dtype=fields.dtype(dtype)))
  pairs = [[fields.name(entry) for entry in fields.entries(pair, 2, 'an output')] for pair in outputs]
  names = tuple(name for name, _ in pairs)
  if len(set(names)) != len(names):
    raise ValueError('two outputs have one name')
  return tuple(inputs), tuple(value for _, value in pairs), names, input_range


def _node(row: Any, arrays: packed_arrays.Reader) -> Node:
  op, inputs, output, shape, dtype, params = fields.entries(row, 6, 'an operation')
  if not isinstance(op, str) or op not in shapes.RULES:
    raise ValueError(f'it has an operation {shown(op)} that is unknown')
  if not isinstance(params, dict):
    raise ValueError(f'the parameters of {op} are {shown(params)}')
  if len(fields.list_of(inputs, 'the inputs of an operation')) > MAX_INPUTS:
    raise ValueError(f'an operation has {len(inputs):,} inputs, and at most {MAX_INPUTS:,} are read')
  params = _frozen(params)
  if op in ('quantize', 'kernel'):
    fields.name(params.get('layer'))
  if op == 'quantize':
    params['grid'] = _grid(params.get('grid'))
  if op == 'kernel':
    params['kernel'] = arrays.take(params.get('kernel'), kernel=True)
  return Node(
    op=op,
    inputs=tuple(_operand(x, arrays) for x in inputs),
    output=fields.name(output),
    shape=fields.shape(shape),
    dtype=fields.dtype(dtype),
    params=params,
  )


def _operand(x: Any, arrays: packed_arrays.Reader) -> Any:
  """The name of a value, an array, or a number as an array."""
  if isinstance(x, str):
    return x
  if isinstance(x, list) and len(x) == 1:
    return arrays.take(x[0], kernel=False)
  dtype, value = fields.entries(x, 2, 'an input of an operation')
  kind = bool if fields.dtype(dtype) == 'bool' else (int, float) if dtype in shape_values.FLOATS else int
  if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
    raise ValueError(f'a number of {dtype} is {shown(value)}')
  try:
    with np.errstate(over='raise'):
      return np.asarray(value, dtype)
  except (OverflowError, FloatingPointError):
    raise ValueError(f'a number of {dtype} is {shown(value)}, out of its range') from None


def _grid(value: Any) -> Grid:
  names = [field.name for field in dataclasses.fields(Grid)]
  if not isinstance(value, dict) or {*value, 'moved'} != set(names):  # which few have
    raise ValueError(f'the grid of a quantizer is no object of {", ".join(names)}')
  bits, signed, scheme = value['bits'], value['signed'], value['scheme']
  if type(bits) is not int or not 0 <= bits <= fields.MAX_BITS or type(signed) is not bool or scheme not in SCHEMES:
    raise ValueError('the inputs of a layer have a grid that is not possible')
  alpha = fields.number(value['alpha'], 'the clip of a quantizer', 0, fields.MAX_FLOAT)
  moved = value.get('moved', 0)
  most = 2 ** (bits - 1) if signed and scheme == 'lsq' and bits > 1 else 0
  if type(moved) is not int or not min(1 - most, 0) <= moved <= most:
    raise ValueError('the inputs of a layer have codes that lie where none can')
  return Grid(bits=bits, alpha=alpha, signed=signed, scheme=scheme, moved=moved)


def _layers(rows: Sequence[Any], graph: Graph) -> Iterator[dict[str, Any]]:
  kernels = {node.params['layer']: node.params['kernel'].bits.tolist() for node in graph.nodes if node.op == 'kernel'}
  seen: set[str] = set()
  for row in rows:
    name, bits, macs, weights = fields.entries(row, 4, 'a layer')
    if fields.name(name) in seen:
      raise ValueError(f'the layer {shown(name)} is there twice')
    seen.add(name)
    if type(bits) is not int or not 0 <= bits <= 32:
      raise ValueError(f'the inputs of the layer {shown(name)} have {shown(bits)} bits')
    if any(type(count) is not int or not 0 <= count <= MAX_COUNT for count in (macs, weights)):
      raise ValueError(f'the layer {shown(name)} has {shown(macs)} multiplications and {shown(weights)} weights')
    float_bits = 32 if macs or weights else 0  # 0: nothing but a quantizer
    yield {'name': name, 'kernel': kernels.get(name, float_bits), 'input': bits, 'macs': macs, 'weights': weights}


def _input_shape(value: Any) -> tuple[int, ...]:
  shape = fields.shape(value)
  rest = shape[1:] if shape[:1] == (-1,) else shape
  if min(rest, default=0) < 0 or math.prod(rest) > 2**28:
    raise ValueError('the shape of its input is not -1, for the number of examples, and the sides of an input')
  return shape


def _input_range(value: Any) -> tuple[int, int]:
  low, high = fields.entries(value, 2, 'the range of the input')
  if type(low) is not int or type(high) is not int or not -(2**31) <= low <= high < 2**31:
    raise ValueError('the range of the input is not two integers')
  return low, high


def _frozen(value: Any) -> Any:
  """A value of JSON with tuples for lists."""
  if isinstance(value, dict):
    return {key: _frozen(entry) for key, entry in value.items()}
  return tuple(map(_frozen, value)) if isinstance(value, list) else value
