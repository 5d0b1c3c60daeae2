"""QONNX: ONNX with nodes that quantize to any bit-width, as FINN, hls4ml and the package `qonnx` read it.

Each quantized input is a node `Quant` with its bit-width, each kernel a constant behind one; a kernel whose channels
have several bit-widths is put together from one such node for each. At 1 bit they are `BipolarQuant`.

Source: A. Pappalardo et al., QONNX: Representing Arbitrary-Precision Quantized Neural Networks, 2022, arXiv 2206.07527.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fracbits_jax.export import grouped, onnx_ops
from fracbits_jax.export.floats import in_float32
from fracbits_jax.export.onnx_build import Builder, Tensor
from fracbits_jax.export.onnx_check import Written, written
from fracbits_jax.export.source import Source
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Node
from fracbits_jax.graph.grid import Grid, Kernel
from fracbits_jax.system.files import write_whole

DOMAIN = 'qonnx.custom_op.general'
_OPSET = 13


def write(source: Source, path: str | os.PathLike, *, batch_size: int = 1) -> str:
  """Writes a QONNX file, whole or not at all; returns what it is.

  Args:
    source: the network.
    path: of the file.
    batch_size: examples that it takes at once: the programs that read QONNX want a fixed number.

  Raises:
    ValueError: an operation that has no counterpart in ONNX.
  """
  file = built(source, batch_size)
  write_whole(path, file.content)
  nodes = sum(node.op in ('quantize', 'kernel') for node in file.graph.nodes)
  return (
    f'{path}: {len(file.content):,} bytes, {nodes} quantized tensors, weights in float32 before their nodes, '
    'as QONNX has it' + (f'\n{path} {file.graph.note}' if file.graph.note else '')
  )


def built(source: Source, batch_size: int) -> Written:
  """The file of a network before it is written; `ValueError` as of `write`."""
  grouped.refuse(source.graph, 'QONNX')
  source = dataclasses.replace(source, given=in_float32(source.graph))
  graph = fold_affine(source.graph)
  b = Builder(source, opset=_OPSET, batch_size=batch_size)
  for x in b.inputs if source.input_range == (0, 255) else ():
    if np.dtype(x.dtype).kind == 'f':
      b.values[x.name] = _quant(b, x, bits=8, scale=1.0, zero=0.0, signed=False)
  onnx_ops.convert(b, graph, Quantizers())
  return written(b, graph)


class Quantizers:
  """How inputs and kernels are quantized in the file."""

  def inputs(self, b: Builder, node: Node, x: Tensor) -> Tensor:
    """Adds a `quantize` node."""
    return quantize(b, x, node.params['grid'])

  def kernel(self, b: Builder, node: Node, order: tuple[int, ...]) -> Tensor:
    """Adds a `kernel` node, its axes in `order`."""
    kernel: Kernel = node.params['kernel']
    return by_bits(b, node, kernel, order, lambda own, like, value, _: _constant_quant(b, own, like, value))


def quantize(b: Builder, x: Tensor, grid: Grid) -> Tensor:
  """Adds the quantizer of a layer's inputs."""
  if grid.bits == 0:
    return b.add('Mul', [x.name, b.constant(np.float32(0))], x)
  if grid.bits == 1 and grid.signed and grid.scheme == 'lsq':  # at 0 it goes up, which is not rounding half to even
    return _bipolar(b, x, grid.scale / 2)
  return _quant(b, x, bits=grid.bits, scale=grid.scale, zero=grid.zero, signed=grid.signed)


def by_bits(
  b: Builder,
  node: Node,
  kernel: Kernel,
  order: tuple[int, ...],
  add: Callable[[Kernel, Tensor, np.ndarray, np.ndarray], Tensor],
) -> Tensor:
  """Adds a kernel, from one part for each bit-width where its channels have several.

  Args:
    b: the file.
    node: of the kernel.
    kernel: the kernel.
    order: of the axes in the file.
    add: `add(kernel, like, value, codes)` adds the part of the channels that have one bit-width, and returns it: as a
      kernel of its own, as a tensor that has no name yet, and its values and codes in the order of the file.
  """
  bits = np.broadcast_to(kernel.bits, kernel.codes.shape[-1:])
  parts, members = [], []
  for width in np.unique(bits):
    member = np.flatnonzero(bits == width)
    own = _of_channels(kernel, width, member) if len(member) < len(bits) else dataclasses.replace(kernel, bits=width)
    like = Tensor('', own.codes.shape, node.dtype, order)
    value, codes = (np.transpose(array, order) for array in (own.value, own.codes))
    parts.append(add(own, like, value, codes) if width else _given(b, like, np.zeros_like(value)))
    members.append(member)
  if len(parts) == 1:
    return parts[0]
  whole, axis = Tensor('', node.shape, node.dtype, order), order.index(len(order) - 1)
  joined = b.add('Concat', [part.name for part in parts], whole, axis=axis)
  places = np.argsort(np.concatenate(members))
  return b.add('Gather', [joined.name, b.constant(places.astype(np.int64))], whole, axis=axis)


def _of_channels(kernel: Kernel, width: np.ndarray, member: np.ndarray) -> Kernel:
  """Some channels of a kernel, all of one bit-width."""
  alpha = kernel.alpha if isinstance(kernel.alpha, float) else kernel.alpha[..., member]
  codes, exact = kernel.codes[..., member], kernel.value[..., member]
  return dataclasses.replace(kernel, bits=width, codes=codes, exact=exact, alpha=alpha)


def scale_of(kernel: Kernel, order: tuple[int, ...]) -> np.ndarray:
  """The scale of a kernel of one bit-width, broadcastable against it with its axes in an order."""
  scale = np.asarray(kernel.scale, np.float32)
  return np.transpose(scale.reshape((1,) * (len(order) - scale.ndim) + scale.shape), order) if scale.ndim else scale


def _given(b: Builder, like: Tensor, value: np.ndarray) -> Tensor:
  return dataclasses.replace(like, name=b.constant(value, 'kernel'))


def _constant_quant(b: Builder, kernel: Kernel, like: Tensor, value: np.ndarray) -> Tensor:
  given, bits, zero = _given(b, like, value), int(kernel.bits), float(kernel.zero)
  scale = scale_of(kernel, like.order)
  if bits == 1 and zero == 0.5:
    return _bipolar(b, given, scale / 2)
  return _quant(b, given, bits=bits, scale=scale, zero=zero, signed=True)


def _bipolar(b: Builder, x: Tensor, scale: Any) -> Tensor:
  return b.add('BipolarQuant', [x.name, b.constant(np.asarray(scale, np.float32))], x, domain=DOMAIN)


def _quant(b: Builder, x: Tensor, *, bits: int, scale: Any, zero: float, signed: bool) -> Tensor:
  """A node `Quant`: signed integers without a zero point where the codes' zero is the middle of a two's complement."""
  twos_complement = signed and bits > 1 and zero == 2 ** (bits - 1)
  operands = [np.asarray(scale, np.float32), np.float32(0 if twos_complement else zero), np.float32(bits)]
  names = [x.name, *map(b.constant, operands)]
  settings = {'signed': int(twos_complement), 'narrow': 0, 'rounding_mode': 'ROUND'}
  return b.add('Quant', names, x, domain=DOMAIN, **settings)
