"""The fields of a packed file's header: each is of its type and in its range, or a `ValueError` says what it is."""

from typing import Any

import numpy as np

from fracbits_jax.export import shape_values
from fracbits_jax.system.strict_json import shown

MAX_BITS = 16
MAX_NAME = 1000
MAX_FLOAT = float(np.finfo(np.float32).max)


def entries(value: Any, count: int, what: str) -> list[Any]:
  """A list of a number of entries."""
  if not isinstance(value, list) or len(value) != count:
    raise ValueError(f'{what} is {shown(value)}, not of {count} entries')
  return value


def list_of(value: Any, what: str) -> list[Any]:
  """A list."""
  if not isinstance(value, list):
    raise ValueError(f'{what} are {shown(value)}, not a list')
  return value


def name(value: Any) -> str:
  """A name of a value, a layer or a network."""
  if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_NAME:
    raise ValueError(f'a name is {shown(value)}, not up to {MAX_NAME:,} printable characters')
  return value


def number(value: Any, what: str, least: float, most: float) -> float:
  """A number in a range, so neither NaN nor true."""
  if type(value) not in (int, float) or not least <= value <= most:
    raise ValueError(f'{what} is {shown(value)}, not a number from {least:g} to {most:g}')
  return float(value)


def dtype(value: Any) -> str:
  """The name of a dtype that a file can hold."""
  if not isinstance(value, str) or value not in shape_values.DTYPES:
    raise ValueError(f'a dtype is {shown(value)}, not one of {", ".join(shape_values.DTYPES)}')
  return value


def shape(value: Any, least: int = -shape_values.MAX_SIDE) -> tuple[int, ...]:
  """The sides of an array, of which `least` is the smallest allowed."""
  sides = list_of(value, 'the sides of an array')
  if len(sides) > shape_values.MAX_RANK or not all(
    type(side) is int and least <= side <= shape_values.MAX_SIDE for side in sides
  ):
    raise ValueError('an array has a shape that is not a list of a few integers in their range')
  return tuple(sides)
