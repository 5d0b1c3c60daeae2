"""Values on their way to int8: what an operation computes, and the scale, offset and limits that follow it.

    real = clip(scale source + offset, low, high)

The source is a tensor of the file, or a product, a sum or a mean that is not written yet. When a value is stored, the
operation is written with all that follows it in it: scales of channels go into the scales of the weights, offsets into
the bias, limits into the activation function or the ends of int8, the rest is the scale and zero of its output.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from fracbits_jax.export.litert_plan import Builder, Quantization, Tensor

_INT32 = 2.0**31
_LEFT_SHIFT = 2.0**30  # the largest factor between an accumulator and its code that runtimes represent
_ONE = 64  # the integer that stands for 1 where a tensor is only rescaled: it leaves biases 6 digits
_OF_TYPE = {'int4': (-8, 7), 'int8': (-127, 127)}  # weights
_FINE = 2.0**-4  # of a code, a step of accumulators that is fine enough for biases, which are whole steps
_ACTIVATIONS = {
  (-math.inf, math.inf): 'NONE',
  (0.0, math.inf): 'RELU',
  (0.0, 6.0): 'RELU6',
  (-1.0, 1.0): 'RELU_N1_TO_1',
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Product:
  """A convolution or a dense layer.

  Attributes:
    op: `CONV_2D`, `DEPTHWISE_CONV_2D` or `FULLY_CONNECTED`.
    x: its inputs, int8.
    integers: the weights, in the order of the file's axes; from -127 to 127.
    scale: what the integer 1 stands for, `()` or `[C_out]`.
    shape: of what it gives.
    options: of the operation.
    layer: its name.
  """

  op: str
  x: Tensor
  integers: np.ndarray
  scale: Any
  shape: tuple[int, ...]
  options: dict[str, Any]
  layer: str

  @property
  def axis(self) -> int:
    """Of the weights, along which the output channels are."""
    return self.integers.ndim - 1 if self.op == 'DEPTHWISE_CONV_2D' else 0

  @property
  def summed(self) -> tuple[int, ...]:
    """The axes of the weights that are summed over."""
    return tuple(axis for axis in range(self.integers.ndim) if axis != self.axis)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
  """The sum of two tensors of one shape."""

  first: Tensor
  second: Tensor

  @property
  def shape(self) -> tuple[int, ...]:
    return self.first.shape


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
  """The mean along some axes."""

  x: Tensor
  axes: tuple[int, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(self.x.shape) if axis not in self.axes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Value:
  """See the module; scale and offset are float64, `()` or one for each channel."""

  source: Tensor | Product | Sum | Mean
  scale: Any = 1.0
  offset: Any = 0.0
  low: float = -math.inf
  high: float = math.inf

  @property
  def shape(self) -> tuple[int, ...]:
    """For one example."""
    return self.source.shape

  @property
  def limited(self) -> bool:
    """Whether it has limits."""
    return self.low > -math.inf or self.high < math.inf

  @property
  def as_it_is(self) -> bool:
    """Whether nothing follows the source but limits."""
    return bool(np.all(np.abs(self.scale - 1) < 1e-6) and np.all(self.offset == 0))

  def affine(self, scale: Any, offset: Any) -> 'Value | None':
    """scale x + offset; `None` where that stands behind limits that do not move with it."""
    scale, offset = np.float64(scale), np.float64(offset)
    low, high = self.low, self.high
    if self.limited:
      if scale.size > 1 or scale <= 0 or np.any(offset):
        return None
      low, high = low * float(scale), high * float(scale)
    return dataclasses.replace(self, scale=self.scale * scale, offset=self.offset * scale + offset, low=low, high=high)

  def limit(self, low: float, high: float) -> 'Value':
    """min(max(x, low), high)."""
    clip = lambda end: min(max(end, low), high)
    return dataclasses.replace(self, low=clip(self.low), high=clip(self.high))


class Storer:
  """Writes values into a file.

  Attributes:
    b: the file.
    narrow: whether weights that fit into four bits take four.
    weights: how many weights the file has of each type.
  """

  def __init__(self, b: Builder, *, narrow: bool):
    self.b, self.narrow = b, narrow
    self.weights: dict[str, int] = {}

  def store(self, x: Value, to: Quantization, name: str) -> Tensor:
    """A tensor with the value, rounded to `to` and ended by it.

    Raises:
      ValueError: limits or numbers that LiteRT's operations do not have.
    """
    activation = _activation(x, to, name)
    if isinstance(x.source, Product):
      return self._product(x.source, x, to, activation, name)
    if isinstance(x.source, Tensor):
      return self._tensor(x.source, x, to, activation, name)
    if not x.as_it_is:
      raise ValueError(f'{name} scales a mean or a sum, which LiteRT cannot before it is rounded')
    output = self.b.activation(name, x.shape, to)
    if isinstance(x.source, Sum):
      return self.b.add('ADD', (x.source.first, x.source.second), output, fusedActivationFunction=activation)
    axes = self.b.constant(f'{name}/axes', np.asarray(x.source.axes, np.int32), 'int32')
    mean = self.b.add('MEAN', (x.source.x, axes), output, keepDims=False)
    return mean if activation == 'NONE' else self.store(Value(source=mean, low=x.low, high=x.high), to, name)

  def _tensor(self, tensor: Tensor, x: Value, to: Quantization, activation: str, name: str) -> Tensor:
    if x.as_it_is and activation == 'NONE' and tensor.quantization.agrees(to):
      return tensor
    if x.as_it_is and activation in ('NONE', 'RELU'):
      op = 'QUANTIZE' if activation == 'NONE' else 'RELU'
      return self.b.add(op, (tensor,), self.b.activation(name, x.shape, to))
    if len(tensor.shape) != 4:
      raise ValueError(f'{name} scales channels that no convolution computes, which LiteRT can only of images')
    return self._product(_copy(tensor, name), x, to, activation, name)

  def _product(self, product: Product, x: Value, to: Quantization, activation: str, name: str) -> Tensor:
    channels = product.shape[-1]
    scale = np.broadcast_to(x.scale * product.scale, (channels,))
    offset = np.broadcast_to(x.offset, (channels,))
    sign = np.where(scale < 0, -1, 1)
    shape = [1] * product.integers.ndim
    shape[product.axis] = channels
    integers = product.integers.astype(np.int64) * np.where(scale == 0, 0, sign).reshape(shape)
    # Of a channel without weights only the bias is left, which has to have digits.
    step = np.where(scale == 0, to.scale * 2.0**-16, np.abs(scale))
    assert product.x.scale is not None
    of_input = np.float64(product.x.scale[0])
    dtype = 'int4' if self.narrow and _fits(integers, 'int4') else 'int8'
    finer = _finer(integers, product.summed, dtype, step / to.scale)
    if product.op == 'FULLY_CONNECTED' and (step == step[0]).all():
      finer = np.full_like(finer, finer.min(initial=0))  # one scale, which takes less than one for each channel
    integers, of_weights = integers << finer.reshape(shape), np.ldexp(step / of_input, -finer).astype(np.float32)
    step = of_input * of_weights
    largest = 255.0 * np.sum(np.abs(integers), axis=product.summed, dtype=np.float64)
    least, most = to.interval
    # Beyond these ends no input brings the sum back to where int8 has more than one integer for it.
    bias = np.round(np.clip(offset, least - largest * step, most + largest * step) / step)
    _check(product.layer, largest + np.abs(bias), step / to.scale)
    if product.op == 'FULLY_CONNECTED' and (of_weights == of_weights[0]).all():
      of_weights = of_weights[:1]
    self.weights[dtype] = self.weights.get(dtype, 0) + integers.size
    return self._written(product, integers, dtype, of_weights, bias.astype(np.int32), to, activation, name)

  def _written(
    self,
    product: Product,
    integers: np.ndarray,
    dtype: str,
    scale: np.ndarray,
    bias: np.ndarray,
    to: Quantization,
    activation: str,
    name: str,
  ) -> Tensor:
    b, options = self.b, {**product.options, 'fusedActivationFunction': activation}
    # tflite-micro has dense layers with four bits and scales of channels as convolutions only; those of more than
    # vectors are convolutions as well.
    many = len(product.x.shape) > 2
    as_conv = product.op == 'FULLY_CONNECTED' and (many or (dtype == 'int4' and scale.size > 1))
    if as_conv:
      integers = integers.reshape(integers.shape[0], 1, 1, -1)
      options = {'padding': 'VALID', 'strideW': 1, 'strideH': 1, 'fusedActivationFunction': activation}
    weights = b.constant(f'{product.layer}/kernel', integers, dtype, scale, product.axis)
    assert product.x.scale is not None
    biases = b.constant(f'{product.layer}/bias', bias, 'int32', product.x.scale * scale)
    if not as_conv:
      return b.add(product.op, (product.x, weights, biases), b.activation(name, product.shape, to), **options)
    shape = (
      product.x.shape if len(product.x.shape) == 4 else (1, math.prod(product.x.shape[1:-1]), 1, len(integers[0].flat))
    )
    x = b.reshaped(product.x, shape, f'{name}/image')
    y = b.activation(name, (*shape[:-1], product.shape[-1]), to)
    return b.reshaped(b.add('CONV_2D', (x, weights, biases), y, **options), product.shape, f'{name}/vector')


def _check(layer: str, largest: np.ndarray, factor: np.ndarray) -> None:
  """Raises `ValueError` for numbers that the runtimes' 32 bits do not hold.

  Args:
    layer: the name.
    largest: accumulators that there can be, bias included.
    factor: from an accumulator to its code.
  """
  with np.errstate(over='ignore', divide='ignore'):
    shifted = largest * np.exp2(np.maximum(np.ceil(np.log2(factor)), 0))
  if not (
    np.isfinite(factor).all() and (factor > 0).all() and (factor <= _LEFT_SHIFT).all() and (shifted < _INT32).all()
  ):
    raise ValueError(
      f'{layer} needs accumulators or biases of more than 32 bits: look for a batch norm behind it with a variance '
      'near 0, or far from that of the other channels'
    )


def _copy(x: Tensor, name: str) -> Product:
  """A tensor as a product with itself, channel by channel, which scales and offsets can follow."""
  channels = x.shape[-1]
  return Product(
    op='DEPTHWISE_CONV_2D',
    x=x,
    integers=np.full((1, 1, 1, channels), _ONE),
    scale=np.float64(x.quantization.scale / _ONE),
    shape=x.shape,
    options={'padding': 'VALID', 'strideW': 1, 'strideH': 1, 'depthMultiplier': 1},
    layer=name,
  )


def _fits(integers: np.ndarray, dtype: str) -> bool:
  least, most = _OF_TYPE[dtype]
  return bool(integers.min(initial=0) >= least and integers.max(initial=0) <= most)


def _finer(integers: np.ndarray, summed: tuple[int, ...], dtype: str, step: np.ndarray) -> np.ndarray:
  """How many binary digits weights get behind the point, so that biases have them where accumulators are coarse.

  Args:
    integers: the weights.
    summed: their axes that are summed over.
    dtype: in which they still have to fit.
    step: of the accumulators of each channel, in codes of what is stored.
  """
  low, high = _OF_TYPE[dtype]
  least, most = integers.min(axis=summed, initial=0), integers.max(axis=summed, initial=0)
  digits = np.zeros(step.shape, np.int64)
  for _ in range(7):
    fits = (least << digits + 1 >= low) & (most << digits + 1 <= high) & (most > least)
    digits += fits & (np.ldexp(step, -digits) > _FINE)
  return digits


def _activation(x: Value, to: Quantization, name: str) -> str:
  """The activation function that limits a value, but for limits that the ends of int8 are within."""
  least, most = to.interval
  close = to.scale / 4
  low = x.low if x.low > least + close else -math.inf
  high = x.high if x.high < most - close else math.inf
  if (low, high) == (-math.inf, 6.0) and least >= -close:
    low = 0.0
  if (low, high) not in _ACTIVATIONS:
    raise ValueError(
      f'{name} is limited to [{x.low:g}, {x.high:g}], and LiteRT has the limits 0, [0, 6] and [-1, 1] beside '
      "those of a layer's inputs: use relu or relu6, or export with --format packed or onnx"
    )
  return _ACTIVATIONS[low, high]
