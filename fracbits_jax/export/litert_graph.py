"""From a graph to the operations of LiteRT: int8 from the image to the outputs.

A convolution or a dense layer becomes one operation with its batch norm, bias and ReLU in it, whose output has the
scale and zero of the inputs of the next layer.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.litert_check import SETTINGS
from fracbits_jax.export.litert_moves import MOVED, Window, image_window, windows
from fracbits_jax.export.litert_plan import LEAST, MOST, Builder, Plan, Quantization, Tensor
from fracbits_jax.export.litert_ranges import MOVES, Ranges, limits_of, of_grid
from fracbits_jax.export.litert_values import Mean, Product, Storer, Sum, Value
from fracbits_jax.export.values import Value as Integers
from fracbits_jax.export.values import moved_kernel, of_kernel
from fracbits_jax.graph.fold import as_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Grid

_NHWC = (0, 3, 1, 2)


def plan(graph: Graph, ranges: Ranges, *, images: bool, narrow: bool) -> tuple[Plan, dict[str, int]]:
  """The operations of a network for one example at a time.

  Args:
    graph: the network, its chains of constants folded, its kernels from -127 to 127.
    ranges: of its values.
    images: whether its input is an image of integers from 0 to 255.
    narrow: whether weights of up to four bits are stored as int4.

  Returns:
    The operations, and how many weights they have of each type.

  Raises:
    ValueError: one sentence: what LiteRT's kernels for int8 cannot compute, and what they can.
  """
  return _Walk(graph, ranges, images, narrow).plan()


class _Walk:
  """Goes through a graph; values are `Value`, or the integers of kernels."""

  def __init__(self, graph: Graph, ranges: Ranges, images: bool, narrow: bool):
    self.graph, self.ranges, self.images = graph, ranges, images
    self.shapes, self.consumers = graph.shapes(), graph.consumers()
    self.b = Builder()
    self.storer = Storer(self.b, narrow=narrow)
    self.values: dict[str, Any] = {}
    self.coded: set[str] = set()  # values that are the integers of a layer's inputs, or images
    self.codes: dict[str, Tensor] = {}
    self.layers: dict[str, str] = {}  # of kernels

  def plan(self) -> tuple[Plan, dict[str, int]]:
    inputs = tuple(self._input())
    for node in self.graph.nodes:
      self.values[node.output] = self._value(node)
      if self._branches(node.output):
        self._tensor(node.output)
    outputs = []
    for name, shown in zip(self.graph.outputs, self.graph.output_names, strict=True):
      if not isinstance(self.values[name], Value):
        raise ValueError(f'the output {shown} is a kernel, or nothing that the input changes')
      outputs.append(self._tensor(name))
    return self.b.plan(inputs, outputs, self.codes), self.storer.weights

  def _input(self) -> list[Tensor]:
    if len(self.graph.inputs) != 1 or not self.graph.inputs[0].is_batched:
      raise ValueError(
        f'the network is called with {len(self.graph.inputs)} inputs, and a LiteRT file is written for one that has an '
        'entry for each example: export with --format packed, onnx or stablehlo'
      )
    (x,) = self.graph.inputs
    if np.dtype(x.dtype).kind not in 'fu':
      raise ValueError(f'the input {x.name} is {x.dtype}, and LiteRT files take images or real numbers as int8')
    to = Quantization(scale=1.0, zero=LEAST) if self.images else self.ranges.of(x.name)
    tensor = self.b.activation(x.name, self._shape(x.name), to)
    self.values[x.name] = Value(source=tensor)
    if self.images:
      self.coded.add(x.name)
    return [tensor]

  def _branches(self, name: str) -> bool:
    """Whether a value that several operations read would be computed for each of them."""
    x = self.values[name]
    return isinstance(x, Value) and not isinstance(x.source, Tensor) and len(self.consumers.get(name, [])) > 1

  def _tensor(self, name: str) -> Tensor:
    """A value as a tensor of the file; it is one from then on."""
    x = self.values[name]
    if not (isinstance(x.source, Tensor) and x.as_it_is and not x.limited):
      x = Value(source=self.storer.store(x, self.ranges.of(name), name))
      self.values[name] = x
    return x.source

  def _shape(self, name: str) -> tuple[int, ...]:
    """A shape for one example."""
    return tuple(-size if size < 0 else size for size in self.shapes[name])

  def _value(self, node: Node) -> Any:
    if node.op == 'kernel':
      return self._kernel(node)
    names = [x for x in node.inputs if isinstance(x, str)]
    kernels = [isinstance(self.values[name], Integers) for name in names]
    if all(kernels) and names:
      if len(names) > 1 or node.op not in MOVES:
        raise ValueError(_refusal(node))
      self.layers[node.output] = self.layers[names[0]]
      return moved_kernel(node, self.values[names[0]])
    if node.op in ('conv_general_dilated', 'dot_general') and len(names) == 2 and kernels == [False, True]:
      return self._convolution(node) if node.op == 'conv_general_dilated' else self._dense(node)
    if any(kernels) or not names:
      raise ValueError(_refusal(node))
    if node.op == 'quantize':
      return self._quantized(node)
    if node.op == 'add' and len(names) == 2 and self._shape(names[0]) == self._shape(names[1]):
      return Value(source=Sum(first=self._tensor(names[0]), second=self._tensor(names[1])))
    if node.op == 'concatenate':
      return self._concatenated(node, names)
    found = self._of_one(node, names[0]) if len(names) == 1 else None
    if found is None:
      raise ValueError(_refusal(node))
    return found

  def _of_one(self, node: Node, name: str) -> Value | None:
    """What an operation gives of one value and constants; `None` for what LiteRT does not have."""
    x: Value = self.values[name]
    constants = as_affine(node)
    if constants is not None:
      return self._affine(node, name, *constants[1:])
    limits = limits_of(node)
    if limits is not None:
      return x.limit(*limits)
    if node.op == 'neg':
      return self._affine(node, name, np.float64(-1), np.float64(0))
    if node.op == 'convert_element_type' and np.dtype(node.dtype).kind == 'f':
      if name in self.coded:
        self.coded.add(node.output)
      return x
    if node.op == 'reduce_sum' and 0 not in node.params['axes']:
      axes = tuple(int(axis) for axis in node.params['axes'])
      count = math.prod(self._shape(name)[axis] for axis in axes)
      return Value(source=Mean(x=self._tensor(name), axes=axes), scale=np.float64(count))
    if node.op == 'reduce_window_sum':
      return self._window_sum(node, name)
    return self._moved(node, name) if node.op in MOVES else None

  def _kernel(self, node: Node) -> Integers:
    self.layers[node.output] = node.params['layer']
    return of_kernel(node.params['kernel'])

  def _quantized(self, node: Node) -> Value:
    grid: Grid = node.params['grid']
    tensor = self.storer.store(self.values[node.inputs[0]], of_grid(grid), f'{node.params["layer"]}/input')
    self.codes[node.output] = tensor
    self.coded.add(node.output)
    return Value(source=tensor)

  def _affine(self, node: Node, name: str, scale: Any, offset: Any) -> Value:
    scale, offset = (_of_channels(node, array) for array in (scale, offset))
    x: Value = self.values[name]
    if name in self.coded:
      self.coded.add(node.output)
      return self._of_codes(name, x, scale, offset)
    if not isinstance(x.source, Product) and (not isinstance(x.source, Mean) or np.any(offset)):
      x = Value(source=self._tensor(name))
    found = x.affine(scale, offset)
    if found is None:  # behind limits
      found = Value(source=self._tensor(name)).affine(scale, offset)
    assert found is not None
    return found

  def _of_codes(self, name: str, x: Value, scale: np.ndarray, offset: np.ndarray) -> Value:
    """scale x + offset of a layer's inputs; of an image the scale and zero of the input, where they can be that."""
    found = x.affine(scale, offset)
    assert found is not None
    assert isinstance(x.source, Tensor)
    is_input = name == self.graph.input and len(self.consumers[name]) == 1
    if is_input and scale.size == offset.size == 1 and scale > 0:
      zero = x.source.zero - float(offset) / (float(scale) * x.source.quantization.scale)
      if zero == round(zero) and LEAST <= zero <= MOST:
        x.source.zero = round(zero)
        x.source.scale = np.asarray([x.source.quantization.scale * float(scale)], np.float32)
        return x
    return found

  def _concatenated(self, node: Node, names: Sequence[str]) -> Value:
    axis = int(node.params['dimension'])
    if axis == 0 or len(names) != len(node.inputs):
      raise ValueError(_refusal(node))
    found = [self.values[name] for name in names]
    to = self.ranges.together(names, node.output)
    if self.coded.issuperset(names) and all(
      x.as_it_is and x.source.quantization == found[0].source.quantization for x in found
    ):
      to = found[0].source.quantization
      self.coded.add(node.output)
    tensors = [self.storer.store(self.values[name], to, name) for name in names]
    output = self.b.activation(node.output, self._shape(node.output), to)
    return Value(source=self.b.add('CONCATENATION', tensors, output, axis=axis, fusedActivationFunction='NONE'))

  def _moved(self, node: Node, name: str) -> Value | None:
    """What an operation gives that moves integers, or takes some of them."""
    x: Value = self.values[name]
    shape = self._shape(node.output)
    if name in self.coded:
      self.coded.add(node.output)
    if shape == self._shape(name) and _moves_nothing(node):
      return x
    if name not in self.coded:
      found = MOVED[node.op](self.b, node, self.storer.store(x, self.ranges.of(node.output), name), shape)
      return None if found is None else Value(source=found)
    # What follows the integers of a layer's inputs moves with them where it is the same for all and leaves 0 at 0.
    if np.size(x.scale) > 1 or np.size(x.offset) > 1 or x.scale < 0 or (node.op == 'pad' and x.offset):
      return None
    assert isinstance(x.source, Tensor)
    found = MOVED[node.op](self.b, node, x.source, shape)
    return None if found is None else dataclasses.replace(x, source=found)

  def _window_sum(self, node: Node, name: str) -> Value | None:
    """Sums of windows, channel by channel, as a convolution with ones."""
    window = image_window(node)
    if window is None:
      return None
    shape = self._shape(node.output)
    x, options = windows(self.b, self._tensor(name), window, shape)
    source = Product(
      op='DEPTHWISE_CONV_2D',
      x=x,
      integers=np.ones((1, *window.sizes, x.shape[-1]), np.int64),
      scale=np.float64(x.quantization.scale),
      shape=shape,
      options={**options, 'depthMultiplier': 1},
      layer=node.output,
    )
    return Value(source=source)

  def _inputs(self, node: Node, layer: str) -> Value:
    """What a layer multiplies: the integers of its inputs, and what they stand for."""
    name = node.inputs[0]
    x: Value = self.values[name]
    if name not in self.coded:
      raise ValueError(
        f'the inputs of {layer} are real numbers, and LiteRT computes with int8: train with '
        f'--config.quant.weight_only=False {SETTINGS}; images are given with input_range=(0, 255)'
      )
    if np.size(x.scale) > 1:
      raise ValueError(f'the inputs of {layer} have a scale of their own in each channel, and int8 has one: give one')
    return x

  def _convolution(self, node: Node) -> Value:
    layer, kernel = self.layers[node.inputs[1]], self.values[node.inputs[1]]
    p, numbers = node.params, node.params['dimension_numbers']
    channels_last = tuple(numbers['lhs_spec']) == tuple(numbers['out_spec']) == _NHWC
    if not channels_last or p['batch_group_count'] > 1 or any(d > 1 for d in p['lhs_dilation']):
      raise ValueError(
        f'{layer} is a convolution that LiteRT files are not written for, one over other than two axes of [N, H, W, C] '
        'or a transposed one: export with --format packed or onnx'
      )
    x = self._inputs(node, layer)
    out, within, *space = (int(axis) for axis in numbers['rhs_spec'])
    groups = int(p['feature_group_count'])
    depthwise = groups > 1 and kernel.integers.shape[within] == 1
    order = (within, *space, out) if depthwise else (out, *space, within)
    integers = np.transpose(kernel.integers, order).astype(np.int64)
    window = Window(
      sizes=tuple(kernel.integers.shape[axis] for axis in space),
      strides=tuple(p['window_strides']),
      padding=tuple(tuple(pad) for pad in p['padding']),
      dilations=tuple(p['rhs_dilation']),
    )
    if np.any(x.offset) and any(pad > 0 for pads in window.padding for pad in pads):
      raise ValueError(
        f'the inputs of {layer} have a 0 that is no int8, and it pads with it: give --config.model.image_mean one '
        'integer, the same for each colour'
      )
    assert isinstance(x.source, Tensor)
    shape = self._shape(node.output)
    tensor, options = windows(self.b, x.source, window, shape)
    if depthwise:
      options['depthMultiplier'] = shape[-1] // groups
    by_output = np.moveaxis(integers, -1, 0) if depthwise else integers
    sums = by_output.reshape(len(by_output), -1, 1 if depthwise else integers.shape[-1]).sum(1)
    op = 'DEPTHWISE_CONV_2D' if depthwise else 'CONV_2D'
    return self._product(op, x, tensor, integers, _kernel_scale(kernel, out, layer), sums, shape, options, layer)

  def _dense(self, node: Node) -> Value:
    layer, kernel = self.layers[node.inputs[1]], self.values[node.inputs[1]]
    (of_x, of_kernel), batch = node.params['dimension_numbers']
    rank = len(self._shape(node.inputs[0]))
    if rank < 2 or kernel.integers.ndim != 2 or tuple(of_x) != (rank - 1,) or any(batch):
      raise ValueError(
        f'{layer} multiplies other than the last axis of [N, ..., K] by a matrix, which LiteRT files are not written '
        'for: export with --format packed or onnx'
      )
    x = self._inputs(node, layer)
    summed = int(of_kernel[0])
    integers = np.moveaxis(kernel.integers, 1 - summed, 0).astype(np.int64)
    scale = _kernel_scale(kernel, 1 - summed, layer)
    assert isinstance(x.source, Tensor)
    shape = self._shape(node.output)
    return self._product(
      'FULLY_CONNECTED', x, x.source, integers, scale, integers, shape, {'keepNumDims': False}, layer
    )

  def _product(
    self,
    op: str,
    x: Value,
    tensor: Tensor,
    integers: np.ndarray,
    scale: np.ndarray,
    sums: np.ndarray,
    shape: tuple[int, ...],
    options: dict[str, Any],
    layer: str,
  ) -> Value:
    """A product; `sums` `[C_out, channels of a group]` are the sums of its weights for each channel of the inputs."""
    channels = tensor.shape[-1]
    groups = channels // sums.shape[1]
    of_group = np.broadcast_to(x.offset, (channels,)).reshape(groups, -1)
    offset = scale * np.sum(sums * np.repeat(of_group, len(sums) // groups, axis=0), axis=1)
    source = Product(
      op=op,
      x=tensor,
      integers=integers,
      scale=scale * x.scale * tensor.quantization.scale,
      shape=shape,
      options=options,
      layer=layer,
    )
    return Value(source=source, offset=offset)


def _moves_nothing(node: Node) -> bool:
  """Whether an operation whose result has the shape of what it takes gives just that."""
  if node.op == 'pad':
    return not any(side for config in node.params['padding_config'] for side in config)
  return node.op in ('reshape', 'squeeze', 'expand_dims', 'slice')


def _of_channels(node: Node, array: Any) -> np.ndarray:
  """Constants as one number or one for each entry of the last axis."""
  array = np.asarray(array, np.float64)
  if (array == array.flat[0]).all():
    return array.flat[0]
  if array.size != node.shape[-1] or array.shape[-1] != array.size:
    raise ValueError(
      f'{node.output} has constants that differ along other axes than that of the channels, the last one, which LiteRT '
      'files are not written for: export with --format packed or onnx'
    )
  return array.reshape(-1)


def _kernel_scale(kernel: Integers, out: int, layer: str) -> np.ndarray:
  """The scale of a kernel, `()` or one for each entry of its axis `out`."""
  if kernel.scale.size == 1:
    return kernel.scale.reshape(())
  if any(size > 1 for axis, size in enumerate(kernel.scale.shape) if axis != out):
    raise ValueError(f'the kernel of {layer} has scales along other axes than that of its outputs, and LiteRT has none')
  return np.broadcast_to(kernel.scale.reshape(-1), (kernel.integers.shape[out],))


def _refusal(node: Node) -> str:
  where = f' in {node.place}' if node.place else ''
  return (
    f'the operation {node.op!r}{where} has no counterpart among those of int8 that LiteRT files are written with: '
    'export with --format packed, onnx or stablehlo'
  )
