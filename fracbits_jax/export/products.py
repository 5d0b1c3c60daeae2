"""Convolutions and matrix products of integers with the integers of a kernel, accumulated in 32 bits."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.export import arithmetic, rescale
from fracbits_jax.export.values import Value, value
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Node

_ACCUMULATOR = 2.0**31  # what 32 bits hold


def multiply_accumulate(node: Node, first: Value, second: Value, count: int, layer: str) -> Value | None:
  """A convolution or a matrix product with a kernel; `None` for what is neither, such as a product of activations.

  Raises:
    ValueError: codes and kernel are so large that an accumulator could need more than 32 bits.
  """
  kernel_first = isinstance(first.integers, np.ndarray)
  x, kernel = (second, first) if kernel_first else (first, second)
  if not isinstance(kernel.integers, np.ndarray) or isinstance(x.integers, np.ndarray):
    return None
  numbers = node.params['dimension_numbers']
  if kernel.offset.any() or kernel.limited or (node.op == 'dot_general' and numbers[1][0]):
    return None
  if node.op == 'conv_general_dilated' and node.params['batch_group_count'] > 1:
    return None
  product = _Product(node, kernel, x.integers.ndim, kernel_first)
  if product.scale is None:
    return None
  scale = product.input_scale(x)
  if scale is None:
    x = rescale.fixed(x, rescale.digits(x.largest().max(), (_ACCUMULATOR - 1) / max(product.weights.max(), 1)))
    scale = x.scale
  bound = product.weights * x.bound.max()
  if bound.size and bound.max() >= _ACCUMULATOR:
    raise ValueError(
      f'{layer} needs accumulators of more than 32 bits, up to {bound.max():.3g}: it multiplies integers up to '
      f'{x.bound.max():.0f} by a kernel whose absolute values add up to {product.weights.max():.0f}; use kernels or '
      'inputs of fewer bits'
    )
  multiply = lambda a, b, count: _multiplied(node, [b, a] if kernel_first else [a, b], count)
  offset = np.zeros(())
  if x.offset.any():
    # Where a convolution pads there is no offset, so it is the product of the offset and the kernel at each position.
    with jax.ensure_compile_time_eval():
      shape = np.where(np.arange(x.integers.ndim) == product.images, 1, x.integers.shape)
      everywhere = jnp.asarray(np.broadcast_to(x.offset, shape))
      offset = np.asarray(multiply(everywhere, jnp.asarray(kernel.integers * kernel.scale, jnp.float64), 1))
  error = x.error.max() * product.weights * np.abs(product.scale)
  integers = arithmetic.multiplied(node, lambda a, b: multiply(a, b, count), x.integers, kernel.integers)
  return value(integers, -bound, bound, scale * product.scale, offset, error=error)


def _multiplied(node: Node, operands: Sequence[jax.Array], count: int) -> jax.Array:
  """A convolution or a product of operands of other dtypes than the network's, accumulated in theirs."""
  return ops.apply(node.op, {**node.params, 'preferred_element_type': None}, operands, count)


def product_of_codes(node: Node, first: Value, second: Value, shape: Sequence[int]) -> Value | None:
  """A matrix product of two activations whose integers are exact; `None` where they are not, or are too large.

  Args:
    node: a `dot_general`.
    first, second: what it multiplies.
    shape: of the first, as `graph.Node` has it.
  """
  for x in (first, second):
    if isinstance(x.integers, arithmetic.Recorded):
      return None
    if x.limited or x.offset.any() or x.error.any() or x.scale.size > 1:
      return None
  count = math.prod(shape[axis] for axis in node.params['dimension_numbers'][0][0])
  bound = abs(count) * first.bound.max() * second.bound.max()
  if bound >= _ACCUMULATOR or count < 0:
    return None
  integers = _multiplied(node, [first.integers, second.integers], 1)
  return value(integers, -bound, bound, (first.scale * second.scale).reshape(()))


class _Product:
  """Where a product has the channels of its operands.

  Attributes:
    images: the axis of the inputs along which nothing is constant.
    weights: the sum of the kernel's absolute values for each channel of the output, broadcastable against the output.
    scale: the kernel's scale in the same manner; `None` where it differs between weights that are summed.
  """

  def __init__(self, node: Node, kernel: Value, rank: int, kernel_first: bool):
    self.node, self.rank, self.kernel_first, self.numbers = node, rank, kernel_first, node.params['dimension_numbers']
    self.is_conv = node.op == 'conv_general_dilated'
    self.images = self.numbers['lhs_spec'][0] if self.is_conv else 0
    summed = self._summed(kernel.integers.ndim)
    self.weights = self._at_outputs(np.sum(np.abs(kernel.integers.astype(np.float64)), axis=summed))
    self.scale = kernel.scale.reshape(()) if kernel.scale.size == 1 else None
    if kernel.scale.size > 1 and all(kernel.scale.shape[axis] == 1 for axis in summed):
      full = [size if axis not in summed else 1 for axis, size in enumerate(kernel.integers.shape)]
      self.scale = self._at_outputs(np.squeeze(np.broadcast_to(kernel.scale, full), summed))

  def _summed(self, rank: int) -> tuple[int, ...]:
    """The axes of the kernel that are summed over."""
    if self.is_conv:
      return tuple(axis for axis in range(rank) if axis != self.numbers['rhs_spec'][0])
    return tuple(self.numbers[0][0 if self.kernel_first else 1])

  def _at_outputs(self, array: np.ndarray) -> np.ndarray:
    """An array of the kernel's own axes, broadcastable against the output."""
    if self.is_conv:
      return self._of_channels(array)
    free = (1,) * (self.rank - len(self.numbers[0][0]))
    return array.reshape((*array.shape, *free) if self.kernel_first else (*free, *array.shape))

  def _of_channels(self, array: np.ndarray) -> np.ndarray:
    shape = [1] * self.rank
    shape[self.numbers['out_spec'][1]] = array.size
    return array.reshape(shape)

  def input_scale(self, x: Value) -> np.ndarray | None:
    """The inputs' scale, broadcastable against the output; `None` where it differs between what is summed."""
    if x.limited:
      return None
    if x.scale.size == 1:
      return x.scale.reshape(())
    return self._scale_of_groups(x.scale) if self.is_conv else self._scale_of_rows(x.scale)

  def _scale_of_groups(self, scale: np.ndarray) -> np.ndarray | None:
    channel, groups = self.numbers['lhs_spec'][1], self.node.params['feature_group_count']
    if scale.size != scale.shape[channel]:
      return None
    grouped = scale.reshape(groups, -1)
    if (grouped != grouped[:, :1]).any():
      return None
    return self._of_channels(np.repeat(grouped[:, 0], self.weights.size // groups))

  def _scale_of_rows(self, scale: np.ndarray) -> np.ndarray | None:
    summed = tuple(self.numbers[0][1 if self.kernel_first else 0])
    if any(scale.shape[axis] > 1 for axis in summed):
      return None
    rows, ones = np.squeeze(scale, summed).shape, (1,) * (self.weights.ndim - self.rank + len(summed))
    return scale.reshape((*ones, *rows) if self.kernel_first else (*rows, *ones))
