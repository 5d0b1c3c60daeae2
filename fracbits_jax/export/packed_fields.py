"""The fields of a packed file's header: each is of its type and in its range, or a `ValueError` says what it is."""

from typing import Any

import numpy as np

from fracbits_jax.export import shapes
from fracbits_jax.strict_json import shown

MAX_BITS = 16
MAX_NAME = 1000
MAX_FLOAT = float(np.finfo(np.float32).max)


def entries(value: Any, count: int, what: str) -> list[Any]:
  if not isinstance(value, list) or len(value) != count:
    raise ValueError(f'{what} is {shown(value)}, not of {count} entries')
  return value


def list_of(value: Any, what: str) -> list[Any]:
  if not isinstance(value, list):
    raise ValueError(f'{what} are {shown(value)}, not a list')
  return value


def name(value: Any) -> str:
  if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_NAME:
    raise ValueError(f'a name is {shown(value)}, not up to {MAX_NAME:,} printable characters')
  return value


def number(value: Any, what: str, least: float, most: float) -> float:
  if type(value) not in (int, float) or not least <= value <= most:
    raise ValueError(f'{what} is {shown(value)}, not a number from {least:g} to {most:g}')
  return float(value)


def dtype(value: Any) -> str:
  if not isinstance(value, str) or value not in shapes.DTYPES:
    raise ValueError(f'a dtype is {shown(value)}, not one of {", ".join(shapes.DTYPES)}')
  return value


def shape(value: Any, least: int = -shapes.MAX_SIDE) -> tuple[int, ...]:
  sides = list_of(value, 'the sides of an array')
  if len(sides) > shapes.MAX_RANK or not all(type(side) is int and least <= side <= shapes.MAX_SIDE for side in sides):
    raise ValueError('an array has a shape that is not a list of a few integers in their range')
  return tuple(sides)
