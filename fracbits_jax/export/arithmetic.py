"""What integer inference does with integers: computed by JAX, or recorded for a program in another language.

Each function takes an array and computes, or takes a `Recorded` tensor and notes what is to be done to it. So there is
one account of the arithmetic, and a recording of it is what JAX computes, to the last bit.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.graph.graph import Node


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
  """A tensor of integers that a program computes, for one example.

  Attributes:
    op: the name of a function of this module, or `input`.
    operands: what it is computed from.
    params: what the function takes beside them.
    shape: of the tensor.
  """

  op: str
  operands: tuple['Recorded', ...]
  params: dict[str, Any]
  shape: tuple[int, ...]

  @property
  def ndim(self) -> int:
    """The rank."""
    return len(self.shape)


def _record(op: str, operands: Sequence[Any], shape: Sequence[int], **params: Any) -> Recorded:
  return Recorded(op=op, operands=tuple(operands), params=params, shape=tuple(shape))


def _shape_of(function: Callable, *operands: Any) -> tuple[int, ...]:
  as_struct = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.int32)
  return jax.eval_shape(function, *map(as_struct, operands)).shape


def shifted(integers: jax.Array, shift: np.ndarray | int) -> jax.Array:
  """integers / 2^shift, rounded half to even, int64."""
  whole = integers >> shift
  twice, one = (integers - (whole << shift)) * 2, np.left_shift(np.int64(1), shift)
  return whole + ((twice > one) | ((twice == one) & (whole % 2 == 1)))


def decoded(codes: Any, times: int, shift: int) -> Any:
  """times codes - shift: the integers that codes stand for."""
  if isinstance(codes, Recorded):
    return _record('decoded', [codes], codes.shape, times=times, shift=shift)
  return times * codes - shift


def constant(x: Any, number: int) -> Any:
  """A tensor of one number in the shape of x."""
  return (
    _record('constant', [], x.shape, number=number) if isinstance(x, Recorded) else jnp.full(x.shape, number, jnp.int32)
  )


def rescaled(x: Any, scaling: Any, least: np.ndarray, most: np.ndarray) -> Any:
  """clip((multiplier (x - zero) + offset) / 2^shift, least, most), rounded half to even, int32; see `rescale`."""
  if isinstance(x, Recorded):
    return _record('rescaled', [x], x.shape, scaling=scaling, least=least, most=most)
  rounded = shifted(_scaled(x, scaling), scaling.shift)
  return jnp.clip(rounded, least.astype(np.int64), most.astype(np.int64)).astype(jnp.int32)


def signs(x: Any, scaling: Any, least: np.ndarray, most: np.ndarray) -> Any:
  """clip(1 where multiplier (x - zero) + offset is not negative, 0 elsewhere, least, most), int32."""
  if isinstance(x, Recorded):
    return _record('signs', [x], x.shape, scaling=scaling, least=least, most=most)
  return jnp.clip((_scaled(x, scaling) >= 0).astype(jnp.int32), least.astype(np.int32), most.astype(np.int32))


def _scaled(x: jax.Array, scaling: Any) -> jax.Array:
  return (x.astype(jnp.int64) - scaling.zero) * scaling.multiplier + scaling.offset


def negated(x: Any, sign: np.ndarray) -> Any:
  """x sign, with a sign of 1 or -1 for each channel."""
  return _record('negated', [x], x.shape, sign=sign) if isinstance(x, Recorded) else x * sign


def added(first: Any, second: Any) -> Any:
  """first + second."""
  if isinstance(first, Recorded):
    return _record('added', [first, second], np.broadcast_shapes(first.shape, second.shape))
  return first + second


def multiplied(node: Node, multiply: Callable, x: Any, kernel: np.ndarray) -> Any:
  """The product of a node: `multiply(x, kernel)`, accumulated in 32 bits."""
  if isinstance(x, Recorded):
    return _record('multiplied', [x], _shape_of(multiply, x, kernel), node=node, kernel=kernel)
  return multiply(x, jnp.asarray(kernel))


def summed(node: Node, add: Callable, x: Any, shift: int) -> Any:
  """Sums `add(x)` in 64 bits, divided by 2^shift and rounded half to even, int32."""
  if isinstance(x, Recorded):
    return _record('summed', [x], _shape_of(add, x), node=node, shift=int(shift))
  return shifted(add(x.astype(jnp.int64)), shift).astype(jnp.int32)


def largest(node: Node, pool: Callable, x: Any) -> Any:
  """The largest integers `pool(x)`."""
  return _record('largest', [x], _shape_of(pool, x), node=node) if isinstance(x, Recorded) else pool(x)


def moved(move: Callable[[Any], Any], x: Any) -> Any:
  """`move(x)`, elements at other places, some of them left out, repeated, or 0."""
  if not isinstance(x, Recorded):
    return move(x)
  with jax.ensure_compile_time_eval():
    places = jnp.arange(1, 1 + math.prod(x.shape), dtype=jnp.int32).reshape(x.shape)
    index = np.asarray(move(places)) - 1
  return _record('moved', [x], index.shape, index=index)


def concatenated(xs: Sequence[Any], axis: int) -> Any:
  """The tensors one behind the other."""
  if not isinstance(xs[0], Recorded):
    return jnp.concatenate(xs, axis)
  return _record('concatenated', xs, _shape_of(lambda *a: jnp.concatenate(a, axis), *xs), axis=axis)
