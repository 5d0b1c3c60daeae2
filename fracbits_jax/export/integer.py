"""Inference with integers: what a program on a device without floating point computes.

A value is a tensor of integers with, for each channel, a scale and an offset that stand for its real numbers:

    real = clip(scale integer + offset, low, high)

Convolutions and dense layers multiply and accumulate integers in 32 bits. What follows them (kernel and input scales,
SAT's factor, batch norm, bias) only changes scale and offset, until the next layer's codes are made: then each channel
is rescaled once, by an integer multiplier, an integer offset and a shift:

    code = clip((integer multiplier + offset) / 2^shift, 0, 2^bits - 1),    rounded half to even

Where tensors are added, pooled or reshaped they are first rescaled in the same way to fixed-point numbers of at most 30
bits and a sign, with one power of two for the tensor. Ranges are known from the kernels, so nothing overflows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jax import lax

from fracbits_jax.export import ops
from fracbits_jax.export.fold import as_affine
from fracbits_jax.export.graph import Graph, Node
from fracbits_jax.export.grid import Grid, Kernel

_ACCUMULATOR = 2.0**31  # what 32 bits hold
_FIXED = 2.0**30  # the largest fixed-point number
_MULTIPLIER_BITS = 30
_MAX_SHIFT = 46
_LAYOUT = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'slice', 'rev', 'broadcast_in_dim')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
  """A tensor of integers and the real numbers that they stand for.

  Attributes:
    integers: int32; a NumPy array where they are a kernel.
    bound: the largest |integer| there can be.
    scale: float64, broadcastable against the integers.
    offset: the same.
    low: real numbers below it are it.
    high: real numbers above it are it.
  """

  integers: jax.Array
  bound: float
  scale: np.ndarray
  offset: np.ndarray
  low: float = -math.inf
  high: float = math.inf

  @property
  def plain(self) -> bool:
    """Whether the integers are the real numbers but for one scale."""
    return self.scale.size == 1 and not self.offset.any() and self.low == -math.inf and self.high == math.inf

  def real(self) -> jax.Array:
    """The real numbers, float32."""
    return jnp.clip(self.integers * self.scale + self.offset, self.low, self.high).astype(jnp.float32)

  def largest(self) -> float:
    """A bound of |real|."""
    return float(np.max(np.abs(self.scale) * self.bound + np.abs(self.offset), initial=0.0))


def inference(
  graph: Graph, *, integer_inputs: bool = True, keep: Sequence[str] = ()
) -> Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]:
  """A compiled function of inputs: what a graph gives when its layers compute with integers.

  Args:
    graph: of `packed.read` or `capture`.
    integer_inputs: whether inputs are integers from 0 to 255, such as images, which the first layer takes as they are;
      where they are real numbers, `quantize` nodes make codes of them in floating point first.
    keep: names of values to return as well: codes of `quantize` nodes, real numbers of others.

  Returns:
    `function(inputs, given={})`, which gives the output in real numbers, float32, and the values that are kept. `given`
    are codes, by the names of `quantize` nodes, from which the network goes on instead of those that it computes.
    Raises `ValueError` for accumulators beyond 32 bits, and inputs that are not what `integer_inputs` says.
  """
  interpreter = Interpreter(graph, integer_inputs)
  compiled = jax.jit(lambda inputs, given: interpreter(inputs, tuple(keep), given))

  def run(inputs: Any, given: Mapping[str, Any] = FrozenDict()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    inputs = np.asarray(inputs)
    if integer_inputs and ((inputs != np.round(inputs)) | (inputs < 0) | (inputs > 255)).any():
      raise ValueError('the inputs are not integers from 0 to 255: give images as they are, or integer_inputs=False')
    with jax.enable_x64(True):
      output, kept = compiled(inputs, dict(given))
      return np.asarray(output), {name: np.asarray(value) for name, value in kept.items()}

  return run


def float_operations(graph: Graph, *, integer_inputs: bool = True) -> tuple[str, ...]:
  """The names of the nodes that `inference` computes in floating point, as they have no meaning in integers here."""
  interpreter = Interpreter(graph, integer_inputs)
  shape = tuple(abs(size) for size in graph.input_shape)
  with jax.enable_x64(True):
    jax.eval_shape(lambda x: interpreter(x, (), {}), jax.ShapeDtypeStruct(shape, graph.input_dtype))
  return tuple(interpreter.in_float)


class Interpreter:
  """Computes a graph; values are `Value`, or arrays where they are real numbers."""

  def __init__(self, graph: Graph, integer_inputs: bool):
    self.graph, self.integer_inputs = graph, integer_inputs
    self.in_float: list[str] = []

  def __call__(self, inputs: Any, keep: Sequence[str], given: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    self.in_float = []
    start: Any = jnp.asarray(inputs, jnp.float32)
    if self.integer_inputs:
      start = _value(jnp.asarray(inputs).astype(jnp.int32), 255.0, 1.0)
    values: dict[str, Any] = {self.graph.input: start}
    codes: dict[str, jax.Array] = {}
    for node in self.graph.nodes:
      found = self._node(node, [values[x] if isinstance(x, str) else x for x in node.inputs], len(inputs), codes, given)
      values[node.output] = found
    real = lambda name: codes[name] if name in codes else _real(values[name])
    return _real(values[self.graph.output]), {name: real(name) for name in keep}

  def _node(self, node: Node, operands: list[Any], count: int, codes: dict[str, Any], given: dict[str, Any]) -> Any:
    if node.op == 'kernel':
      return _of_kernel(node.params['kernel'])
    if node.op == 'quantize':
      grid: Grid = node.params['grid']
      found = _codes(operands[0], grid)
      codes[node.output] = found
      return _of_codes(jnp.asarray(given.get(node.output, found), jnp.int32), grid)
    found = self._in_integers(node, operands, count)
    if found is None:
      self.in_float.append(node.output)
      found = ops.apply(node.op, node.params, [jnp.asarray(_real(x)) for x in operands], count)
      found = found.astype(node.dtype)
    return found

  def _in_integers(self, node: Node, operands: list[Any], count: int) -> Value | jax.Array | None:
    """What a node gives in integers, or `None`."""
    ints = [x for x in operands if isinstance(x, Value)]
    if not ints:
      return None
    x = ints[0]
    if node.op in ('conv_general_dilated', 'dot_general') and len(ints) == 2:
      return _multiply_accumulate(node, *ints, count)
    affine = as_affine(node)
    if affine is not None:
      return _affine(x, *affine[1:])
    if node.op in ('max', 'min') and len(ints) == 1:
      constant = next(y for y in operands if not isinstance(y, Value))
      if np.ndim(constant) == 0 or np.size(constant) == 1:
        return _limited(x, node.op, float(np.asarray(constant).reshape(())))
    if node.op == 'add' and len(ints) == 2:
      return _sum(*ints)
    if node.op == 'convert_element_type':
      return x if np.issubdtype(np.dtype(node.dtype), np.floating) else None
    if node.op == 'reduce_sum':
      return _reduced(x, node.params['axes'])
    if node.op in _LAYOUT and isinstance(x.integers, np.ndarray):
      return _moved_kernel(node, x)
    if node.op in ('reduce_window_max', *_LAYOUT) or _pads_zeros(node, operands):
      x = _fixed(x)
      rest = [jnp.asarray(y, jnp.int32) for y in operands[1:]]
      return dataclasses.replace(x, integers=_moved(node, x.integers, rest, count))
    if node.op == 'concatenate' and len(ints) == len(operands):
      return _concatenated(ints, node.params['dimension'])
    return None


def _real(x: Any) -> Any:
  return x.real() if isinstance(x, Value) else x


def _value(integers: jax.Array, bound: float, scale: Any) -> Value:
  return Value(integers=integers, bound=bound, scale=np.asarray(scale, np.float64), offset=np.zeros(()))


def _doubled(zero: np.ndarray) -> int:
  """2 where a zero is half an integer, so that what is doubled is an integer; 1 otherwise."""
  return 2 if (np.asarray(zero) % 1).any() else 1


def _of_kernel(kernel: Kernel) -> Value:
  times = _doubled(kernel.zero)
  integers = np.round(times * (kernel.codes - kernel.zero)).astype(np.int32)
  return _value(integers, float(np.abs(integers).max(initial=0)), kernel.scale / times)


def _of_codes(codes: jax.Array, grid: Grid) -> Value:
  times, largest = _doubled(grid.zero), 2**grid.bits - 1
  shift = round(times * grid.zero)
  return _value(times * codes - shift, float(max(shift, times * largest - shift)), grid.scale / times)


def _rescaled(x: Value, scale: np.ndarray, offset: np.ndarray) -> tuple[jax.Array, np.ndarray]:
  """(integers scale + offset) as int64 with `shift` binary digits behind the point, and the shift of each channel."""
  scale, offset = np.broadcast_arrays(np.asarray(scale, np.float64), np.asarray(offset, np.float64))
  size = lambda array: np.ceil(np.log2(np.maximum(np.abs(array), 1e-30)))
  shift = np.minimum(_MULTIPLIER_BITS - size(scale), 60 - np.maximum(size(offset), 0))
  shift = np.clip(shift, 1, _MAX_SHIFT).astype(np.int64)
  multiplier, addend = (np.round(np.ldexp(array, shift)).astype(np.int64) for array in (scale, offset))
  return x.integers.astype(jnp.int64) * multiplier + addend, shift


def _codes(x: Any, grid: Grid) -> jax.Array:
  """The codes of a layer's inputs."""
  if not isinstance(x, Value):
    return grid.codes(grid.quantize(x))
  if grid.bits == 0:
    return jnp.zeros(x.integers.shape, jnp.int32)
  grid_low, grid_high = (0.0 if not grid.signed else -grid.alpha), grid.alpha
  if x.low > grid_low or x.high < grid_high:
    x = _fixed(x)  # a limit that the grid does not have
  if grid.scheme == 'lsq' and grid.signed and grid.bits == 1:
    scaled, _ = _rescaled(x, x.scale / grid.scale, x.offset / grid.scale)
    return (scaled >= 0).astype(jnp.int32)
  scaled, shift = _rescaled(x, x.scale / grid.scale, x.offset / grid.scale + grid.zero)
  whole = scaled >> shift
  rest, half = scaled - (whole << shift), np.int64(1) << (shift - 1)
  up = (rest > half) | ((rest == half) & (whole % 2 == 1))
  return jnp.clip(whole + up, 0, 2**grid.bits - 1).astype(jnp.int32)


def _fixed(x: Value, digits: int | None = None) -> Value:
  """As fixed-point numbers with `digits` binary digits behind the point, as many as fit where it is `None`."""
  if x.plain and digits is None:
    return dataclasses.replace(x, scale=x.scale.reshape(()), offset=np.zeros(()))
  if digits is None:
    digits = _digits(x.largest())
  scaled, shift = _rescaled(x, np.ldexp(x.scale, digits), np.ldexp(x.offset, digits))
  integers = (scaled + (np.int64(1) << (shift - 1))) >> shift
  limit = lambda real: float(np.clip(np.round(np.ldexp(real, digits)), -_FIXED, _FIXED))
  low, high = (limit(real) if math.isfinite(real) else real * _FIXED for real in (x.low, x.high))
  if math.isfinite(x.low) or math.isfinite(x.high):
    integers = jnp.clip(integers, int(max(low, -_FIXED)), int(min(high, _FIXED)))
  return _value(integers.astype(jnp.int32), np.ldexp(x.largest(), digits) + 1, np.ldexp(1.0, -digits))


def _digits(largest: float) -> int:
  """How many binary digits behind the point fit beside numbers up to `largest`."""
  return math.floor(math.log2(_FIXED / max(largest, 1e-9))) - 1


def _affine(x: Value, scale: np.ndarray, offset: np.ndarray) -> Value:
  if math.isfinite(x.low) or math.isfinite(x.high):
    x = _fixed(x)
  return dataclasses.replace(x, scale=x.scale * scale, offset=x.offset * scale + offset)


def _limited(x: Value, op: str, limit: float) -> Value:
  if op == 'max':
    return dataclasses.replace(x, low=max(x.low, limit), high=max(x.high, limit))
  return dataclasses.replace(x, low=min(x.low, limit), high=min(x.high, limit))


def _sum(*values: Value) -> Value:
  digits = _digits(sum(x.largest() for x in values))
  values = [_fixed(x, digits) for x in values]
  integers = functools.reduce(jnp.add, (x.integers for x in values))
  return _value(integers, sum(x.bound for x in values), values[0].scale)


def _concatenated(values: Sequence[Value], axis: int) -> Value:
  digits = _digits(max(x.largest() for x in values))
  values = [_fixed(x, digits) for x in values]
  integers = jnp.concatenate([x.integers for x in values], axis)
  return _value(integers, max(x.bound for x in values), values[0].scale)


def _reduced(x: Value, axes: Sequence[int]) -> Value:
  count = math.prod(x.integers.shape[axis] for axis in axes)
  x = _fixed(x)
  if x.bound * count >= _ACCUMULATOR:
    x = _fixed(x, _digits(x.largest() * count))
  integers = jnp.sum(x.integers, tuple(axes), dtype=jnp.int32)
  return dataclasses.replace(x, integers=integers, bound=x.bound * count)


def _pads_zeros(node: Node, operands: list[Any]) -> bool:
  return node.op == 'pad' and not isinstance(operands[1], Value) and not np.asarray(operands[1]).any()


def _moved(node: Node, integers: jax.Array, rest: list[jax.Array], count: int) -> jax.Array:
  if node.op != 'reduce_window_max':
    return ops.apply(node.op, node.params, [integers, *rest], count)
  p = node.params
  window = p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'], p['window_dilation']
  return lax.reduce_window(integers, jnp.int32(np.iinfo(np.int32).min), lax.max, *window)


def _moved_kernel(node: Node, kernel: Value) -> Value:
  with jax.ensure_compile_time_eval():
    move = lambda array: np.asarray(ops.apply(node.op, node.params, [jnp.asarray(array)], 1))
    integers, scale = move(kernel.integers), move(np.broadcast_to(kernel.scale, kernel.integers.shape))
  return dataclasses.replace(kernel, integers=integers, scale=scale)


def _multiply_accumulate(node: Node, first: Value, second: Value, count: int) -> Value | None:
  """A convolution or a matrix product with a kernel; `None` for what is neither, such as a product of activations."""
  x, kernel = (second, first) if isinstance(first.integers, np.ndarray) else (first, second)
  scale = _output_scale(node, kernel, x.integers.ndim, kernel_first=kernel is first)
  if scale is None:
    return None
  if x.scale.size > 1 or math.isfinite(x.low) or math.isfinite(x.high):
    x = _fixed(x)
  multiply = lambda a, b, count: ops.apply(node.op, node.params, [b, a] if kernel is first else [a, b], count)
  offset = np.zeros(())
  if x.offset.any():
    # Where a convolution pads there is no offset, so it is the product of the offset and the kernel at each position.
    with jax.ensure_compile_time_eval():
      everywhere = jnp.broadcast_to(jnp.asarray(x.offset, jnp.float64), (1, *x.integers.shape[1:]))
      offset = np.asarray(multiply(everywhere, jnp.asarray(kernel.integers * kernel.scale, jnp.float64), 1))
  weights = np.abs(kernel.integers.astype(np.float64))
  bound = float(np.max(np.sum(weights, axis=_summed_axes(node, weights.ndim, kernel is first)))) * x.bound
  if bound >= _ACCUMULATOR:
    raise ValueError(
      f'{node.output} needs accumulators of more than 32 bits, up to {bound:.3g}: use kernels and inputs of fewer bits'
    )
  integers = multiply(x.integers, jnp.asarray(kernel.integers), count)
  return Value(integers=integers, bound=bound, scale=x.scale * scale, offset=offset)


def _summed_axes(node: Node, rank: int, kernel_first: bool) -> tuple[int, ...]:
  """The axes of the kernel that are summed over."""
  numbers = node.params['dimension_numbers']
  if node.op == 'conv_general_dilated':
    return tuple(axis for axis in range(rank) if axis != numbers['rhs_spec'][0])
  return tuple(numbers[0][0 if kernel_first else 1])


def _output_scale(node: Node, kernel: Value, x_rank: int, *, kernel_first: bool) -> np.ndarray | None:
  """The kernel's scale, broadcastable against the outputs; `None` where the operation is no product with a kernel."""
  numbers = node.params['dimension_numbers']
  if not isinstance(kernel.integers, np.ndarray) or (node.op == 'dot_general' and numbers[1][0]):
    return None
  if kernel.scale.size == 1:
    return kernel.scale.reshape(())
  summed = _summed_axes(node, kernel.integers.ndim, kernel_first)
  full = np.broadcast_to(kernel.scale, kernel.integers.shape)
  one = full[tuple(slice(0, 1) if axis in summed else slice(None) for axis in range(full.ndim))]
  if (full != one).any():
    return None
  one = np.squeeze(one, summed)
  if node.op == 'conv_general_dilated':
    shape = [1] * x_rank
    shape[numbers['out_spec'][1]] = one.size
    return one.reshape(shape)
  free = x_rank - len(summed)
  return one.reshape((*one.shape, *(1,) * free) if kernel_first else (*(1,) * free, *one.shape))
