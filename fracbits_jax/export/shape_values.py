"""What every rule of `shapes` is made of: a value, the dtypes, and what parameters have to be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

FLOATS = ('float32', 'float16', 'bfloat16')
INTEGERS = ('int32', 'int64', 'uint8', 'int8', 'int16', 'uint16', 'uint32')
DTYPES = (*FLOATS, *INTEGERS, 'bool')

MAX_RANK = 16
MAX_SIDE = 2**31 - 1

NUMBERS = FLOATS + INTEGERS
SIGNED = tuple(d for d in NUMBERS if not d.startswith('uint'))
BITS = (*INTEGERS, 'bool')


class Value(NamedTuple):
  """A value of a graph: its shape and the name of its dtype."""

  shape: tuple[int, ...]
  dtype: str


def integers(value: Any, count: int | None = None, least: int = -MAX_SIDE) -> tuple[int, ...]:
  """A tuple of integers from `least` to `MAX_SIDE`, `count` of them; `ValueError` for anything else."""
  if not isinstance(value, tuple) or not all(type(x) is int and least <= x <= MAX_SIDE for x in value):
    raise ValueError('a parameter is no list of integers, or one is out of range')
  if count is not None and len(value) != count:
    raise ValueError(f'a parameter has {len(value)} entries instead of {count}')
  return value


def require(condition: bool, what: str) -> None:
  """Raises `ValueError` unless a condition holds."""
  if not condition:
    raise ValueError(what)


def among(dtype: Any, allowed: Sequence[str]) -> str:
  """A dtype, if it is one of those allowed."""
  require(isinstance(dtype, str) and dtype in allowed, 'a dtype does not fit')
  return dtype


def axes_of(value: Any, rank: int) -> tuple[int, ...]:
  """Axes of an array, each at most once."""
  axes = integers(value, least=0)
  require(all(axis < rank for axis in axes) and len(set(axes)) == len(axes), 'axes do not fit')
  return axes


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
  """The shape of several, each a scalar's or of one rank, in which sides of 1 are repeated."""
  shapes = [shape for shape in shapes if shape] or [()]
  found = shapes[0]
  for shape in shapes[1:]:
    if shape != found:
      require(len(shape) == len(found), 'ranks differ')
      require(all(a == b or a == 1 or b == 1 for a, b in zip(found, shape, strict=True)), 'shapes differ')
      found = tuple(b if a == 1 else a for a, b in zip(found, shape, strict=True))
  return found
