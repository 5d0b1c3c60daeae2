"""Tensors of integers and the real numbers that they stand for: what moves, clips and rescales them exactly.

    real = clip(scale integer + offset, low, high)

Scale, offset and limits belong to a channel, or to whatever else they have to: they have the rank of the integers and a
size of 1 along the axes on which they do not depend. A chain of constants multiplies scale and offset, a limit becomes
one of the two limits, and what moves elements moves these along. None of this touches the integers' precision.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.export import arithmetic
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Node
from fracbits_jax.graph.grid import Grid, Kernel

_BY_CHANNEL = ('least', 'most', 'scale', 'offset', 'low', 'high', 'error')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Value:
  """A tensor of integers and the real numbers that they stand for; `value` makes one.

  Attributes:
    integers: int32; a NumPy array where they are a kernel.
    least: the least integer there can be, float64, broadcastable against the integers as all that follow.
    most: the largest.
    scale: of either sign; 0 where a channel is constant.
    offset: the real number of the integer 0.
    low: real numbers below it are it.
    high: real numbers above it are it.
    error: the largest distance of a real number from that of the network, by the fixed-point numbers on the way.
  """

  integers: Any
  least: np.ndarray
  most: np.ndarray
  scale: np.ndarray
  offset: np.ndarray
  low: np.ndarray
  high: np.ndarray
  error: np.ndarray

  @property
  def limited(self) -> bool:
    """Whether there are limits."""
    return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

  @property
  def bound(self) -> np.ndarray:
    """The largest |integer| there can be."""
    return np.maximum(np.abs(self.least), np.abs(self.most))

  def interval(self) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest real number there can be."""
    ends = self.scale * self.least + self.offset, self.scale * self.most + self.offset
    return np.clip(np.minimum(*ends), self.low, self.high), np.clip(np.maximum(*ends), self.low, self.high)

  def largest(self) -> np.ndarray:
    """The largest |real| there can be."""
    low, high = self.interval()
    return np.maximum(np.abs(low), np.abs(high))

  def real(self) -> jax.Array:
    """The real numbers, float32."""
    return jnp.clip(self.integers * self.scale + self.offset, self.low, self.high).astype(jnp.float32)

  def varies(self, axes: Sequence[int]) -> bool:
    """Whether equal integers stand for different real numbers along some of the axes."""
    return any(getattr(self, name).size > 1 and getattr(self, name).shape[axis] > 1
               for name in ('scale', 'offset', 'low', 'high') for axis in axes)  # fmt: skip


def value(
  integers: Any,
  least: Any,
  most: Any,
  scale: Any,
  offset: Any = 0.0,
  low: Any = -math.inf,
  high: Any = math.inf,
  error: Any = 0.0,
) -> Value:
  """A `Value` of arrays that broadcast against the integers; limits that cannot be reached are left out."""
  least, most, scale, offset, low, high, error = (
    np.asarray(x, np.float64) for x in (least, most, scale, offset, low, high, error)
  )
  if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
    raise ValueError('a scale or an offset of a channel is beyond what float64 holds: look at the batch norms for it')
  ends = scale * least + offset, scale * most + offset
  lowest, highest = np.minimum(*ends), np.maximum(*ends)
  at_low, at_high = highest <= low, lowest >= high
  scale = np.where(at_low | at_high, 0.0, scale)
  offset = np.where(at_low, low, np.where(at_high, high, offset))
  low = np.where(at_low | at_high | (lowest >= low), -math.inf, low)
  high = np.where(at_low | at_high | (highest <= high), math.inf, high)
  by_channel = dict(zip(_BY_CHANNEL, map(_shrunk, (least, most, scale, offset, low, high, error)), strict=True))
  return Value(integers=integers, **by_channel)


def moved_kernel(node: Node, kernel: Value) -> Value:
  """A kernel's integers as an operation moves them, with the numbers of their channels."""
  with jax.ensure_compile_time_eval():
    move = lambda array: np.asarray(ops.apply(node.op, node.params, [jnp.asarray(array)], 1))
    integers, scale = move(kernel.integers), move(np.broadcast_to(kernel.scale, kernel.integers.shape))
  return changed(kernel, integers=integers, scale=scale)


def _doubled(zero: np.ndarray | float) -> int:
  """2 where a zero is half an integer, so that what is doubled is an integer; 1 otherwise."""
  return 2 if (np.asarray(zero) % 1).any() else 1


def of_kernel(kernel: Kernel) -> Value:
  """The integers of a kernel, a NumPy array."""
  times = _doubled(kernel.zero)
  integers = np.round(times * (kernel.codes - kernel.zero)).astype(np.int32)
  scale = np.asarray(kernel.scale / times)  # along the last axis where it is one for each channel; or one a weight
  scale = scale.reshape((1,) * (integers.ndim - 1) + (-1,)) if scale.ndim == 1 else scale
  return value(integers, float(integers.min(initial=0)), float(integers.max(initial=0)), scale)


def of_codes(codes: jax.Array, grid: Grid) -> Value:
  """The integers that codes of a layer's inputs stand for."""
  times, largest = _doubled(grid.zero), 2**grid.bits - 1
  shift = round(times * grid.zero)
  return value(
    arithmetic.decoded(codes, times, shift), float(-shift), float(times * largest - shift), grid.scale / times
  )


def changed(x: Value, **fields: Any) -> Value:
  """A value with other integers, or another scale and so on."""
  return value(**{name: getattr(x, name) for name in ('integers', *_BY_CHANNEL)} | fields)


def affine(x: Value, scale: np.ndarray | np.float64, offset: np.ndarray | np.float64) -> Value:
  """scale x + offset; a negative scale exchanges the limits."""
  with np.errstate(invalid='ignore'):  # 0 times infinity
    ends = [np.where(scale == 0, end, limit * scale + offset) for limit, end in ((x.low, -np.inf), (x.high, np.inf))]
  low, high = np.where(scale < 0, ends[1], ends[0]), np.where(scale < 0, ends[0], ends[1])
  return changed(
    x, scale=x.scale * scale, offset=x.offset * scale + offset, low=low, high=high, error=x.error * np.abs(scale)
  )


def limited(x: Value, *, low: Any = -math.inf, high: Any = math.inf) -> Value:
  """min(max(x, low), high)."""
  clip = lambda limit: np.minimum(np.maximum(limit, low), high)
  return changed(x, low=clip(x.low), high=clip(x.high))


def positive(x: Value) -> Value:
  """The same real numbers with no negative scale: such channels' integers are negated."""
  if not (x.scale < 0).any():
    return x
  sign = np.where(x.scale < 0, -1, 1).astype(np.int32)
  least, most = np.minimum(x.least * sign, x.most * sign), np.maximum(x.least * sign, x.most * sign)
  return changed(x, integers=arithmetic.negated(x.integers, sign), least=least, most=most, scale=np.abs(x.scale))


def moved(x: Value, move: Callable[[Any, int], Any], shape: Sequence[int], to: Sequence[int], count: int) -> Value:
  """What an operation gives that moves elements, leaves them out, repeats them or puts zeros beside them.

  Args:
    x: the value.
    move: the operation, of an array and the number of images; puts zeros where it does not put elements.
    shape: of the value, as `graph.Node` has it.
    to: of the result.
    count: the number of images.
  """
  integers = arithmetic.moved(lambda array: move(array, count), x.integers)
  everywhere = all(getattr(x, name).size == 1 for name in _BY_CHANNEL)
  if everywhere and not x.offset.any() and (x.low <= 0).all() and (x.high >= 0).all():
    scalars = {name: getattr(x, name).reshape(()) for name in _BY_CHANNEL}
    with_zero = {'least': np.minimum(x.least.min(), 0), 'most': np.maximum(x.most.max(), 0)}
    return value(integers, **scalars | with_zero)
  found = _moved_channels(x, move, shape, 1)
  if any(
    array.size > 1 and array.shape[axis] > 1 for array in found.values() for axis, size in enumerate(to) if size < 0
  ):
    found = _moved_channels(x, move, shape, count)
  return value(integers, **found)


def _moved_channels(x: Value, move: Callable, shape: Sequence[int], count: int) -> dict[str, np.ndarray]:
  shape = sized(shape, count)
  with jax.ensure_compile_time_eval():
    places = jnp.arange(1, 1 + math.prod(shape), dtype=jnp.int32).reshape(shape)
    index = np.asarray(move(places, count)) - 1
  beside = {'least': 0.0, 'most': 0.0, 'offset': 0.0, 'low': -math.inf, 'high': math.inf, 'error': 0.0}
  found = {}
  for name in _BY_CHANNEL:
    array = np.broadcast_to(getattr(x, name), shape).reshape(-1)[np.maximum(index, 0)]
    found[name] = _shrunk(np.where(index < 0, beside[name], array) if name in beside else array)
  return found


def sized(shape: Sequence[int], count: int) -> tuple[int, ...]:
  """A shape as `graph.Node` has it, for a number of images."""
  return tuple(-size * count if size < 0 else size for size in shape)


def concatenated(values: Sequence[Value], shapes: Sequence[Sequence[int]], axis: int) -> Value | None:
  """The values one behind the other; `None` where they differ and the axis is that of the images."""
  integers = arithmetic.concatenated([x.integers for x in values], axis)
  found = {}
  for name in _BY_CHANNEL:
    arrays = [getattr(x, name) for x in values]
    if all(array.size == 1 and array.reshape(()) == arrays[0].reshape(()) for array in arrays):
      found[name] = arrays[0].reshape(())
    elif any(shape[axis] < 0 for shape in shapes):
      return None
    else:
      found[name] = _beside(arrays, shapes, axis)
  return value(integers, **found)


def _beside(arrays: Sequence[np.ndarray], shapes: Sequence[Sequence[int]], axis: int) -> np.ndarray:
  rank = len(shapes[0])
  arrays = [array if array.ndim else array.reshape((1,) * rank) for array in arrays]
  most = np.max([array.shape for array in arrays], axis=0)
  full = lambda shape: tuple(shape[i] if i == axis else int(most[i]) for i in range(rank))
  return np.concatenate(
    [np.broadcast_to(array, full(shape)) for array, shape in zip(arrays, shapes, strict=True)], axis
  )


def shared(array: np.ndarray, axes: Sequence[int], reduce: Callable = np.max) -> np.ndarray:
  """One number along some axes, by default the largest."""
  return array if array.size == 1 else reduce(array, axis=tuple(axes), keepdims=True)


def _shrunk(array: np.ndarray) -> np.ndarray:
  """An array with size 1 along the axes on which it does not depend."""
  for axis, size in enumerate(array.shape):
    first = array[(slice(None),) * axis + (slice(0, 1),)]
    if size > 1 and (array == first).all():
      array = first
  return array
