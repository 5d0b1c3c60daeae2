"""The packed file: a network with each weight at its bit-width, in one file that needs no code of the network.

| bytes | content |
| --- | --- |
| 8 | `FRACBITS` |
| 4 | version, 1 |
| 4 | length of the header |
| 8 | length of the body |
| 32 | SHA-256 of all other bytes |
| | header: JSON, compressed with zlib: the graph, the layers' bit-widths, the input |
| | body: the arrays that the header lists, one behind the other |

Integers are little-endian. A kernel is packed channel by channel at its channels' bit-widths, see `bitpack`; other
arrays are as they are in memory.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fracbits_jax.export import bitpack, ops
from fracbits_jax.export.fold import fold_affine
from fracbits_jax.export.graph import Graph, Node, evaluate
from fracbits_jax.export.grid import Grid, Kernel
from fracbits_jax.export.source import Source, policy_of
from fracbits_jax.files import write_whole
from fracbits_jax.quant_config import SCHEMES

MAGIC, VERSION = b'FRACBITS', 1

_HEAD = struct.Struct('<8sIIQ32s')
_DTYPES = ('float32', 'int32', 'int64', 'uint8', 'bool')
_MAX_HEADER = 64 * 2**20
_MAX_BITS = 16


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


def write(source: Source, path: str | os.PathLike) -> str:
  """Writes a packed file, whole or not at all; returns what it takes on disk and for what."""
  policy, graph = policy_of(source), fold_affine(source.graph)
  arrays = _Arrays()
  nodes = [arrays.node(node) for node in graph.nodes]
  header = {
    'name': source.name,
    'input': [graph.input, graph.input_shape, graph.input_dtype, source.input_range],
    'output': graph.output,
    'nodes': nodes,
    'arrays': arrays.specs,
    'layers': [[e.name, e.input, e.macs, e.weights] for e in policy.layers],
    'bitops_g': policy.bitops_g,
    'size_mb': policy.size_mb,
  }
  packed_header = zlib.compress(json.dumps(header, separators=(',', ':')).encode(), 9)
  body = b''.join(arrays.chunks)
  head = lambda digest: _HEAD.pack(MAGIC, VERSION, len(packed_header), len(body), digest)
  digest = hashlib.sha256(head(bytes(32)) + packed_header + body).digest()
  write_whole(path, head(digest) + packed_header + body)
  total, rescale = pathlib.Path(path).stat().st_size, arrays.rescale_bytes
  reported = round(source.size_mb * 1e6)
  rest = total - rescale - reported
  return (
    f'{path}: {total:,} bytes = {reported:,} of kernels and biases, as reported, + {rescale:,} of rescaling '
    f'({rescale / reported:.2%}; a scale and an offset for each channel, in place of its batch norm) + {rest:,} of '
    f'graph and bit-widths ({rest / reported:.2%})'
  )


class _Arrays:
  """The arrays of a graph on their way into a file."""

  def __init__(self):
    self.specs: list[Any] = []
    self.chunks: list[bytes] = []
    self.rescale_bytes = 0

  def node(self, node: Node) -> list[Any]:
    params = dict(node.params)
    if node.op == 'quantize':
      params['grid'] = dataclasses.asdict(params['grid'])
    if node.op == 'kernel':
      params['kernel'] = self._kernel(params['kernel'])
    inputs = [x if isinstance(x, str) else self._array(np.asarray(x)) for x in node.inputs]
    if node.op == 'affine':
      self.rescale_bytes += sum(np.asarray(x).nbytes for x in node.inputs[1:])
    return [node.op, inputs, node.output, node.shape, node.dtype, params]

  def _array(self, array: np.ndarray) -> list[Any]:
    if array.dtype.name not in _DTYPES:
      raise ValueError(f'an array of {array.dtype.name} cannot be packed: only {", ".join(_DTYPES)}')
    if not array.ndim:
      return [array.dtype.name, array.item()]
    self.specs.append([array.dtype.name, array.shape])
    self.chunks.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder('<')).tobytes())
    return [len(self.specs) - 1]

  def _kernel(self, kernel: Kernel) -> int:
    self.specs.append([kernel.scheme, kernel.codes.shape, kernel.bits.tolist(), kernel.alpha])
    self.chunks.append(bitpack.pack(kernel.codes, kernel.bits))
    return len(self.specs) - 1


def read(path: str | os.PathLike) -> Packed:
  """Reads a packed file that anybody may have written.

  Raises:
    ValueError: one sentence that names the file and what is wrong with it.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror}') from None
  try:
    return _parse(*_opened(data))
  except (ValueError, KeyError, IndexError, TypeError, OverflowError, ZeroDivisionError, RecursionError) as error:
    reason = str(error).split('\n')[0][:200] if isinstance(error, ValueError) else 'its header is not what write makes'
    raise ValueError(f'{path} is no packed network: {reason}; export it anew') from None


def _opened(data: bytes) -> tuple[Any, memoryview]:
  """The header and the body of a file whose bytes are those that were written."""
  if len(data) < _HEAD.size or data[:8] != MAGIC:
    raise ValueError(f'it does not begin with {MAGIC.decode()}')
  _, version, header_length, body_length, digest = _HEAD.unpack_from(data)
  if version != VERSION:
    raise ValueError(f'it has version {version}, and this program reads version {VERSION}')
  if len(data) != _HEAD.size + header_length + body_length:
    raise ValueError(f'it has {len(data):,} bytes instead of {_HEAD.size + header_length + body_length:,}')
  rest = memoryview(data)[_HEAD.size :]
  blank = _HEAD.pack(MAGIC, version, header_length, body_length, bytes(32))
  if hashlib.sha256(blank + rest).digest() != digest:
    raise ValueError('its bytes have changed since it was written, by their SHA-256')
  decompressor = zlib.decompressobj()
  try:
    text = decompressor.decompress(rest[:header_length], _MAX_HEADER)
  except zlib.error:
    raise ValueError('its header cannot be decompressed') from None
  if not decompressor.eof:
    raise ValueError(f'its header is longer than {_MAX_HEADER:,} bytes, or cut')
  return json.loads(text), rest[header_length:]


def _parse(header: Any, body: memoryview) -> Packed:
  arrays = _read_arrays(header['arrays'], body)
  name, shape, dtype, input_range = header['input']
  graph = Graph(
    nodes=tuple(_read_node(*fields, arrays=arrays) for fields in header['nodes']),
    input=str(name),
    input_shape=_shape(shape),
    input_dtype=_dtype(dtype),
    output=str(header['output']),
  )
  _check(graph)
  kernels = {node.params['layer']: node.params['kernel'].bits.tolist() for node in graph.nodes if node.op == 'kernel'}
  layers = tuple(
    {'name': str(name), 'kernel': kernels.get(name, 32), 'input': int(bits), 'macs': int(macs), 'weights': int(weights)}
    for name, bits, macs, weights in header['layers']
  )
  return Packed(
    name=str(header['name']),
    graph=graph,
    input_range=None if input_range is None else tuple(int(x) for x in input_range),
    layers=layers,
    bitops_g=float(header['bitops_g']),
    size_mb=float(header['size_mb']),
  )


def _read_arrays(specs: list[Any], body: memoryview) -> list[np.ndarray | Kernel]:
  lengths = [_length(spec) for spec in specs]
  if sum(lengths) != len(body):
    raise ValueError(f'its arrays take {sum(lengths):,} bytes and it has {len(body):,}')
  found, at = [], 0
  for spec, length in zip(specs, lengths, strict=True):
    chunk, at = bytes(body[at : at + length]), at + length
    if spec[0] in SCHEMES:
      scheme, shape, bits, alpha = spec
      bits = np.asarray(bits, np.int32)
      codes = bitpack.unpack(chunk, tuple(shape), bits)
      found.append(Kernel(codes=codes, bits=bits, scheme=scheme, alpha=float(alpha)))
    else:
      array = np.frombuffer(chunk, np.dtype(spec[0]).newbyteorder('<')).reshape(spec[1])
      found.append(array.astype(spec[0]))
  return found


def _length(spec: list[Any]) -> int:
  """The bytes of an array, before any of them is read."""
  shape = _shape(spec[1])
  if any(size < 0 for size in shape):
    raise ValueError(f'an array has the shape {shape}')
  if spec[0] not in SCHEMES:
    return math.prod(shape) * np.dtype(_dtype(spec[0])).itemsize
  widths = np.asarray(spec[2])
  if (
    widths.dtype.kind != 'i'
    or widths.shape not in ((), shape[-1:])
    or not ((widths >= 0) & (widths <= _MAX_BITS)).all()
  ):
    raise ValueError('a kernel has bit-widths that are not integers from 0 to 16, one or as many as its channels')
  if not math.isfinite(float(spec[3])):
    raise ValueError('a kernel has a scale that is not finite')
  return bitpack.packed_bytes(shape, widths)


def _read_node(
  op: str, inputs: list[Any], output: str, shape: list[int], dtype: str, params: dict, *, arrays: list[Any]
) -> Node:
  if op not in ops.OPS:
    raise ValueError(f'it has an operation {str(op)[:40]!r} that is unknown')
  params = {key: _frozen(value) for key, value in params.items()}
  if op == 'quantize':
    params['grid'] = _grid(**params['grid'])
  if op == 'kernel':
    params['kernel'] = arrays[params['kernel']]
    if not isinstance(params['kernel'], Kernel):
      raise ValueError('a kernel has no codes')

  def operand(x: Any) -> Any:
    if isinstance(x, str):
      return x
    return arrays[x[0]] if len(x) == 1 else np.asarray(x[1], _dtype(x[0]))

  return Node(
    op=op,
    inputs=tuple(operand(x) for x in inputs),
    output=str(output),
    shape=_shape(shape),
    dtype=_dtype(dtype),
    params=params,
  )


def _grid(bits: Any, alpha: Any, signed: Any, scheme: Any) -> Grid:
  if type(bits) is not int or not 0 <= bits <= _MAX_BITS or type(signed) is not bool or scheme not in SCHEMES:
    raise ValueError('the inputs of a layer have a grid that is not possible')
  if not 0 <= float(alpha) < math.inf:
    raise ValueError('the inputs of a layer have a clip that is not a number')
  return Grid(bits=bits, alpha=float(alpha), signed=signed, scheme=scheme)


def _frozen(value: Any) -> Any:
  return tuple(_frozen(x) for x in value) if isinstance(value, list) else value


def _shape(value: Any) -> tuple[int, ...]:
  if not isinstance(value, list) or not all(type(size) is int and abs(size) < 2**40 for size in value):
    raise ValueError('an array has a shape that is not a list of integers')
  return tuple(value)


def _dtype(value: Any) -> str:
  if value not in _DTYPES:
    raise ValueError(f'an array has a dtype other than {", ".join(_DTYPES)}')
  return value


def _check(graph: Graph) -> None:
  """Raises `ValueError` unless every operation can be computed and gives the shape that it should."""
  names = [graph.input, *(node.output for node in graph.nodes)]
  if len(set(names)) < len(names):
    raise ValueError('two operations make one value')
  example = jax.ShapeDtypeStruct(tuple(-size if size < 0 else size for size in graph.input_shape), graph.input_dtype)
  try:
    found = jax.eval_shape(lambda x: evaluate(graph, x, keep=names[1:])[1], example)
  except Exception as error:  # whatever JAX says of shapes and parameters that do not fit
    raise ValueError(f'its operations do not fit together ({type(error).__name__})') from None
  for node in graph.nodes:
    if found[node.output].shape != tuple(abs(size) for size in node.shape):
      raise ValueError(f'{node.output[:60]!r} has another shape than it should')
  if graph.output not in names:
    raise ValueError('its output is made by no operation')
