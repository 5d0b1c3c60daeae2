"""The packed file: a network with each weight at its bit-width, in one file that needs no code of the network.

| bytes | content |
| --- | --- |
| 8 | `FRACBITS` |
| 4 | version, 2; 1 is read as well |
| 4 | length of the header |
| 8 | length of the body |
| 32 | SHA-256 of all other bytes |
| | header: JSON, compressed with zlib: the graph, the layers' bit-widths, the input |
| | body: the arrays that the header lists, one behind the other |

Integers are little-endian. A kernel is packed channel by channel at its channels' bit-widths, see `bitpack`; other
arrays are as they are in memory, equal ones once. A file is data, whoever wrote it: `read` runs nothing of it, and
refuses one that would take much more memory than its own arrays.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fracbits_jax.export import packed_arrays, packed_header, packed_reader, packed_rows
from fracbits_jax.export.packed_header import MAGIC, VERSION
from fracbits_jax.export.packed_reader import Packed
from fracbits_jax.export.source import Source, policy_of
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph, Input, Node
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.layers.quant_config import KERNEL_SCHEMES
from fracbits_jax.system.files import write_whole

__all__ = ('MAGIC', 'VERSION', 'Packed', 'read', 'write')


def write(source: Source, path: str | os.PathLike) -> str:
  """Writes a packed file, whole or not at all; returns what it takes on disk and for what.

  Raises:
    ValueError: one sentence: something of the network that a file cannot hold, or that `read` would not give back.
  """
  graph = packed_rows.named(fold_affine(source.brief_graph))
  policy = policy_of(source)
  arrays = packed_arrays.Writer()
  nodes = [_row(node, arrays) for node in graph.nodes]
  header = {
    'name': source.name,
    **_ends(graph, source.input_range),
    'nodes': packed_rows.shortened(nodes),
    'arrays': arrays.specs,
    'layers': [[e.name, e.input, e.macs, e.weights] for e in policy.layers],
    'bitops_g': policy.bitops_g,
    'size_mb': policy.size_mb,
  }
  content = packed_header.seal(header, b''.join(arrays.chunks))
  _check_read_back(content, graph)
  write_whole(path, content)
  rescale = arrays.bytes_of(x for row in nodes if row[0] == 'affine' for x in row[1])
  ranges = arrays.bytes_of(spec[3] for spec in arrays.specs if spec[0] in KERNEL_SCHEMES and len(spec) == 4)
  reported = round(source.size_mb * 1e6)
  rest = len(content) - rescale - ranges - reported
  share = lambda part: f'{part / reported:.2%}' if reported else 'of nothing'
  grouped = any(kernel.group_size is not None for kernel in _kernels(graph))
  counted = 'kernels, ranges of groups and biases' if grouped else 'kernels and biases'
  return (
    f'{path}: {len(content):,} bytes = {reported:,} of {counted}, as reported, + {rescale:,} of rescaling '
    f'({share(rescale)}; a scale and an offset for each channel, in place of norms) + '
    + (f'{ranges:,} of ranges of channels ({share(ranges)}) + ' if ranges else '')
    + f'{rest:,} of graph and bit-widths ({share(rest)})'
    + (f'\n{path} {graph.note}' if graph.note else '')
  )


def read(path: str | os.PathLike) -> Packed:
  """Reads a packed file that anybody may have written.

  Raises:
    ValueError: one sentence that names the file and what is wrong with it.
  """
  try:
    return _parse(packed_header.load(path))
  except ValueError as error:
    raise ValueError(f'{path} is no packed network: {str(error)[:300]}; export it anew') from None


def _parse(content: bytes) -> Packed:
  header, body, version = packed_header.unseal(content)
  return packed_reader.parse(header, body, len(content), version)


def _ends(graph: Graph, input_range: tuple[int, int] | None) -> dict[str, Any]:
  """What the header says of inputs and outputs; of one of each as versions that knew no others read it."""
  inputs = [[x.name, x.shape, x.dtype] for x in graph.inputs]
  if len(inputs) == len(graph.outputs) == 1 and graph.output_names == ('output',):
    return {'input': [*inputs[0], input_range], 'output': graph.output}
  outputs = [list(pair) for pair in zip(graph.output_names, graph.outputs, strict=True)]
  return {'inputs': inputs, 'outputs': outputs, 'input_range': input_range}


def _kernels(graph: Graph) -> list[Kernel]:
  return [node.params['kernel'] for node in graph.nodes if node.op == 'kernel']


def _row(node: Node, arrays: packed_arrays.Writer) -> list[Any]:
  """What the header says of an operation."""
  params = dict(node.params)
  if node.op == 'quantize':
    grid = dataclasses.asdict(params['grid'])
    params['grid'] = {name: value for name, value in grid.items() if name != 'moved' or value}
  if node.op == 'kernel':
    params['kernel'] = arrays.add_kernel(params['kernel'])
  inputs = [x if isinstance(x, str) else arrays.add(np.asarray(x)) for x in node.inputs]
  return [node.op, inputs, node.output, node.shape, node.dtype, params]


def _check_read_back(content: bytes, graph: Graph) -> None:
  """Raises `ValueError` unless a file is read, and holds the graph that it was made of."""
  try:
    found = _parse(content).graph
  except ValueError as error:
    raise ValueError(f'the network cannot be packed: {error}; export it as stablehlo') from None
  for node, written in zip(found.nodes, graph.nodes, strict=True):
    if written.op == 'kernel' and not _near(node.params['kernel'], written.params['kernel']):
      raise ValueError(
        f'the kernel of {node.params["layer"]} cannot be packed: its values are not finite, or on no grid'
      )
  if not _same(found, graph):
    raise ValueError('the network cannot be packed: it is read back as another one; export it as stablehlo')


def _same(read: Any, written: Any) -> bool:
  """Whether what was read is what was written, to the last bit; kernels to the last bit of their codes."""
  if isinstance(written, Graph | Node | Input):
    names = [field.name for field in dataclasses.fields(written) if field.compare]
    return _same([getattr(read, name) for name in names], [getattr(written, name) for name in names])
  if isinstance(written, Kernel):
    fields = ('codes', 'bits', 'scheme', 'alpha', 'group_size', 'range_bits')
    return _same([getattr(read, f) for f in fields], [getattr(written, f) for f in fields])
  if isinstance(written, np.ndarray | np.generic | jax.Array):
    a, b = np.asarray(read), np.asarray(written)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  if isinstance(written, dict):
    return set(read) == set(written) and all(_same(read[key], value) for key, value in written.items())
  if isinstance(written, Sequence) and not isinstance(written, str):
    return len(read) == len(written) and all(map(_same, read, written))
  return read == written or (read != read and written != written)


def _near(read: Kernel, written: Kernel) -> bool:
  """Whether the codes of a kernel stand for its values, but for a rounding."""
  largest = np.abs(written.alpha).max(initial=0)
  return np.allclose(read.value, written.value, rtol=1e-5, atol=1e-6 * max(1.0, largest))
