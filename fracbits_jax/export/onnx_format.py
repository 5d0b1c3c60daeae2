"""ONNX with the standard types of 8, 4 and 2 bits: what onnxruntime and its like read.

Inputs of layers go through QuantizeLinear and DequantizeLinear; kernels are stored as int8, int4 or int2 behind a
DequantizeLinear. Where a grid has its zero in the middle between two codes, as the schemes `original` gives it, half a
step is added in float, so that the codes stay those of the network.
"""

import dataclasses
import os

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  from onnx import TensorProto

from fracbits_jax.export import bitpack, grouped, onnx_check, onnx_graph, onnx_ops
from fracbits_jax.export.floats import in_float32
from fracbits_jax.export.onnx_build import DTYPES, Builder, Tensor
from fracbits_jax.export.qonnx_format import by_bits, scale_of
from fracbits_jax.export.source import Source
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Grid, Kernel
from fracbits_jax.system.files import write_whole

WIDTHS = (2, 4, 8)
EXACT_ON_X64 = onnx_check.EXACT_ON_X64

# Operators between which and a QuantizeLinear something has to stand: what onnxruntime moves quantizers over, or could,
# and then lacks for integers of 2 or 4 bits; and another quantizer, for it takes one of two in a row away.
_MOVES = {
  *('Concat', 'DepthToSpace', 'DequantizeLinear', 'Expand', 'Flatten', 'Gather', 'Identity', 'MaxPool', 'Pad'),
  *('Reshape', 'Resize', 'Slice', 'SpaceToDepth', 'Split', 'Squeeze', 'Tile', 'Transpose', 'Unsqueeze'),
}


def write(source: Source, path: str | os.PathLike, *, check: bool = True) -> str:
  """Writes an ONNX file, whole or not at all; returns what it takes on disk.

  Args:
    source: the network.
    path: of the file.
    check: run the file with onnxruntime first, where that is installed, beside the network.

  Raises:
    ValueError: bit-widths other than 2, 4 and 8, an operation that has no counterpart in ONNX, or a file that
      onnxruntime does not load or that gives other answers there than the network; nothing is written then.
  """
  grouped.refuse(source.graph, 'this ONNX export')
  source = dataclasses.replace(source, given=in_float32(source.graph))
  widths = _check_widths(source.graph)
  file = built(source)
  check = check and onnx_check.is_possible()
  if check:
    inputs = onnx_check.inputs_like(source.graph, source.input_range)
    wrong = onnx_check.differences(source.graph, file, inputs)
    if wrong is not None:
      raise ValueError(f'{path} is not written, for onnxruntime {wrong}: export with --format packed or stablehlo')
  write_whole(path, file.content)
  size, reported = len(file.content), round(source.size_mb * 1e6)
  said = (
    f'{path}: {size:,} bytes, of which {reported:,} are kernels and biases, as reported; '
    f'opset {file.opset}, kernels and inputs of {", ".join(map(str, sorted(widths)))} bits; '
    + ('checked with onnxruntime' if check else 'not checked with onnxruntime')
  )
  if file.graph.note:
    said += f'\n{path} {file.graph.note}'
  if 8 in widths:
    said += f'\nonnxruntime on x86 without VNNI needs options.add_session_config_entry{EXACT_ON_X64}'
  return said


def built(source: Source) -> onnx_check.Written:
  """The file of a network before it is written; `ValueError` as of `write`, but for what onnxruntime makes of it."""
  grouped.refuse(source.graph, 'this ONNX export')
  source = dataclasses.replace(source, given=in_float32(source.graph))
  b = Builder(source, opset=25 if 2 in _check_widths(source.graph) else 21, batch_size=None)
  late = onnx_graph.with_late_quantizers(fold_affine(source.graph), images=source.input_range == (0, 255))
  onnx_ops.convert(b, onnx_graph.with_read_kernels(late), Quantizers())
  return onnx_check.written(b, late)


def _check_widths(graph: Graph) -> set[int]:
  found: dict[int, str] = {}
  for node in graph.nodes:
    if node.op in ('quantize', 'kernel'):
      which = 'grid' if node.op == 'quantize' else 'kernel'
      for bits in np.unique(node.params[which].bits).tolist():
        found.setdefault(bits, f'the {"inputs" if which == "grid" else "kernel"} of {node.params["layer"]}')
  for bits, where in found.items():
    if bits not in (0, *WIDTHS):
      raise ValueError(
        f'{where} have {bits} bits, and ONNX has types of 2, 4 and 8: search with choices=(2, 4, 8), or export with '
        '--format qonnx, packed or stablehlo'
      )
  return set(found) - {0}


class Quantizers:
  """How inputs and kernels are quantized in the file."""

  def inputs(self, b: Builder, node: Node, x: Tensor) -> Tensor:
    """Adds a `quantize` node."""
    grid: Grid = node.params['grid']
    if grid.bits == 0:
      return b.add('Mul', [x.name, b.constant(np.float32(0))], x)
    half = _half_step(grid.zero, grid.scale)
    if half:
      x = b.add('Sub', [x.name, b.constant(np.float32(half))], x)
    y = _quantize_dequantize(b, x, grid)
    return b.add('Add', [y.name, b.constant(np.float32(half))], y) if half else y

  def kernel(self, b: Builder, node: Node, order: tuple[int, ...]) -> Tensor:
    """Adds a `kernel` node, its axes in `order`."""
    kernel: Kernel = node.params['kernel']
    return by_bits(b, node, kernel, order, lambda own, like, _, codes: _dequantize(b, own, like, codes))


def _half_step(zero: float, scale: float) -> float:
  """What is missing to a grid whose zero is a code, for one whose zero is half a code below 2^(bits - 1)."""
  return scale / 2 if zero % 1 else 0.0


def _quantize_dequantize(b: Builder, x: Tensor, grid: Grid) -> Tensor:
  dtype = f'{"" if grid.signed else "u"}int{grid.bits}'
  if b.maker(x.name) in _MOVES or (grid.bits < 8 and b.maker(x.name) == 'Relu'):  # which onnxruntime drops before int4
    x = b.apart(x)
  names = [b.constant(np.float32(grid.scale)), _stored(b, dtype, np.asarray(-grid.moved, np.int32))]
  codes = b.add('QuantizeLinear', [x.name, *names], dataclasses.replace(x, dtype=dtype))
  return b.add('DequantizeLinear', [codes.name, *names], x)


def _dequantize(b: Builder, kernel: Kernel, like: Tensor, codes: np.ndarray) -> Tensor:
  bits, scale = int(kernel.bits), scale_of(kernel, like.order)
  stored = _stored(b, f'int{bits}', codes - 2 ** (bits - 1))
  axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
  if len(axes) == 1 and not float(kernel.zero) % 1:  # as runtimes know it, beside a product
    zeros = _stored(b, f'int{bits}', np.zeros(scale.size, np.int32))  # which onnxruntime needs where it changes types
    return b.add('DequantizeLinear', [stored, b.constant(scale.reshape(-1)), zeros], like, axis=axes[0])
  value = b.add('DequantizeLinear', [stored, b.constant(np.float32(1) if scale.ndim else scale)], like)
  if scale.ndim:  # one for each channel, wherever those are
    if float(kernel.zero) % 1:
      value = b.add('Add', [value.name, b.constant(np.float32(0.5))], value)
    return b.add('Mul', [value.name, b.constant(scale)], value)
  half = _half_step(float(kernel.zero), float(scale))
  return b.add('Add', [value.name, b.constant(np.float32(half))], value) if half else value


def _stored(b: Builder, dtype: str, integers: np.ndarray) -> str:
  """A constant of a type of few bits, several of which share a byte, the first in the lowest bits."""
  bits = int(dtype.lstrip('uint'))
  raw = bitpack.pack((integers % 2**bits).astype(np.int32).reshape(-1, 1), np.asarray(bits))
  proto = TensorProto(data_type=DTYPES[dtype], dims=integers.shape, raw_data=raw)
  return b.initializer(proto, 'codes' if integers.ndim else 'zero')
