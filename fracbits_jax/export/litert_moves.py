"""Windows over images, and what moves integers, as LiteRT's operations."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.litert_plan import LEAST, Builder, Tensor
from fracbits_jax.graph.graph import Node

_PAIR = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """Windows along height and width: their sizes, strides, padding (before, behind) and dilations."""

  sizes: _PAIR
  strides: _PAIR
  padding: tuple[_PAIR, ...]
  dilations: _PAIR


def image_window(node: Node) -> Window | None:
  """The windows of a pool over the height and width of images; `None` for others."""
  p = node.params
  of_image = lambda pair: tuple(pair[1:3])
  outer = [p['window_dimensions'], p['window_strides'], p['window_dilation'], p['base_dilation']]
  pads = [tuple(pad) for pad in p['padding']]
  if len(node.shape) != 4 or any(side != 1 for group in outer for side in (group[0], group[3])):
    return None
  if any(pads[0] + pads[3]) or any(gap != 1 for gap in p['base_dilation']):
    return None
  return Window(
    sizes=of_image(p['window_dimensions']),
    strides=of_image(p['window_strides']),
    padding=of_image(pads),
    dilations=of_image(p['window_dilation']),
  )


def windows(
  b: Builder, x: Tensor, window: Window, shape: Sequence[int], *, of_maxima: bool = False
) -> tuple[Tensor, dict[str, Any]]:
  """What a convolution or a pool over images takes, padded where LiteRT's own padding is another, and its options.

  Args:
    b: the file.
    x: the images.
    window: its windows.
    shape: of what it gives.
    of_maxima: whether what is padded is left out, and not 0.
  """
  sides = list(
    zip(x.shape[1:3], shape[1:3], window.sizes, window.strides, window.padding, window.dilations, strict=True)
  )
  pads = [_padding(*side) for side in sides]
  options: dict[str, Any] = {'padding': 'VALID', 'strideH': window.strides[0], 'strideW': window.strides[1]}
  if window.dilations != (1, 1):
    options |= {'dilationHFactor': window.dilations[0], 'dilationWFactor': window.dilations[1]}
  if any(any(pad) for pad, _ in pads):
    if all(same for _, same in pads):
      options['padding'] = 'SAME'
    else:
      x = padded(b, x, [(0, 0), *(pad for pad, _ in pads), (0, 0)], LEAST if of_maxima else x.zero)
  return x, options


def _padding(size: int, out: int, window: int, stride: int, pads: _PAIR, dilation: int) -> tuple[tuple[int, int], bool]:
  """The padding of an axis that its windows see, and whether LiteRT's `SAME` is that."""
  whole = (window - 1) * dilation + 1
  before = pads[0]
  behind = max((out - 1) * stride + whole - size - before, 0)
  total = max((-(-size // stride) - 1) * stride + whole - size, 0)
  return (before, behind), out == -(-size // stride) and (before, behind) == (total // 2, total - total // 2)


def padded(b: Builder, x: Tensor, pads: Sequence[tuple[int, int]], beside: int) -> Tensor:
  """A tensor with an integer beside it, (before, behind) along each axis."""
  shape = tuple(size + sum(pad) for size, pad in zip(x.shape, pads, strict=True))
  name = f'{x.name}/padded'
  counts = b.constant(f'{name}/pads', np.asarray(pads, np.int32), 'int32')
  if beside == x.zero:
    return b.same('PAD', x, name, shape, counts)
  value = b.constant(f'{name}/value', np.asarray([beside]), 'int8', x.scale)
  value.zero = x.zero
  return b.same('PADV2', x, name, shape, counts, value)


def _reshaped(b: Builder, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
  return b.reshaped(x, shape, node.output)


def _transposed(b: Builder, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
  order = np.asarray(node.params['permutation'], np.int32)
  if order[0] != 0:
    return None
  return b.same('TRANSPOSE', x, node.output, shape, b.constant(f'{node.output}/order', order, 'int32'))


def _sliced(b: Builder, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
  p, rank = node.params, len(shape)
  starts, strides = p['start_indices'], p.get('strides') or (1,) * rank
  if starts[0] or strides[0] != 1 or shape[0] != x.shape[0]:
    return None
  ends = [start + (size - 1) * by + 1 for start, size, by in zip(starts, shape, strides, strict=True)]
  operands = [
    b.constant(f'{node.output}/{name}', np.asarray(array, np.int32), 'int32')
    for name, array in (('starts', starts), ('ends', ends), ('strides', strides))
  ]
  return b.same('STRIDED_SLICE', x, node.output, shape, *operands)


def _padded(b: Builder, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
  config, value = node.params['padding_config'], node.inputs[1]
  if any(low < 0 or high < 0 or within for low, high, within in config) or any(config[0]) or np.asarray(value).any():
    return None
  return padded(b, x, [(low, high) for low, high, _ in config], x.zero)


def _largest(b: Builder, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
  window = image_window(node)
  if window is None or window.dilations != (1, 1):
    return None
  x, options = windows(b, x, window, shape, of_maxima=True)
  options |= {'filterHeight': window.sizes[0], 'filterWidth': window.sizes[1], 'fusedActivationFunction': 'NONE'}
  return b.same('MAX_POOL_2D', x, node.output, shape, **options)


# What an operation that moves integers gives of a tensor, in the shape of one example; `None` where LiteRT has it not.
MOVED: dict[str, Callable[[Builder, Node, Tensor, tuple[int, ...]], Tensor | None]] = {
  'expand_dims': _reshaped,
  'pad': _padded,
  'reduce_window_max': _largest,
  'reshape': _reshaped,
  'slice': _sliced,
  'squeeze': _reshaped,
  'transpose': _transposed,
}
