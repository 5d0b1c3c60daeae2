"""What is known of a value before a program runs: from what it is computed, and whether it can be negative."""

import dataclasses
import hashlib
import itertools
import math
import os.path
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


class Loop(NamedTuple):
  """A loop over stacked layers: its place in the program, how often it runs, the module that holds its parameters."""

  path: tuple[int, ...]
  length: int
  prefix: str


# An axis of a parameter, or a part of one: where it is (path of the parameter, axis, parts before it) and its size.
Atom = tuple[Hashable, int]


@dataclasses.dataclass(frozen=True)
class Stored:
  """A value that is computed from stored values alone: parameters, other variables, constants.

  Attributes:
    params: the paths of the parameters that it is computed from, none for a constant.
    key: what was done to them; equal for operands that are the same function of the same parameters.
    layout: for each axis the axes of the one parameter that it consists of, where nothing but casts, reshapes and
      transposes were done; `None` otherwise.
    loops: the loops, from the outer to the inner one, of which each pass has its own part of the parameters.
    products: where in the program products of stored values were made that it is computed from.
    repeated: whether it is the same along an axis, as what is broadcast to each example.
  """

  params: frozenset[str] = frozenset()
  key: str = ''
  layout: tuple[tuple[Atom, ...], ...] | None = None
  loops: tuple[Loop, ...] = ()
  products: frozenset[tuple[int, ...]] = frozenset()
  repeated: bool = False


class Value(NamedTuple):
  """What is known of a value: what it is computed from (`None`: inputs as well), and that no entry is negative."""

  stored: Stored | None
  positive: bool = False


def digest(*parts: Any) -> str:
  """A short name for what the parts say; addresses in them do not count."""
  return hashlib.sha1(_ADDRESS.sub('', repr(parts)).encode()).hexdigest()[:20]


def parameter(path: str, shape: Sequence[int], dtype: Any) -> Value:
  """A parameter as it enters the program."""
  layout = tuple(((path, axis, 0), size) for axis, size in enumerate(shape))
  unsigned = np.issubdtype(dtype, np.unsignedinteger) or dtype == np.bool_
  return Value(
    Stored(frozenset({path}), digest('parameter', path), tuple((atom,) for atom in layout)), positive=bool(unsigned)
  )


def variable(path: str) -> Value:
  """A variable of another collection than `params`: stored, and no weight."""
  return Value(Stored(key=digest('variable', path)))


def constant(value: Any) -> Value:
  """A constant of the program."""
  try:
    array = np.asarray(value)
    positive = bool(array.size <= 2**22 and array.dtype.kind in 'fiub' and (array >= 0).all())
    content = array.tobytes() if array.size <= 2**12 else (array.shape, str(array.dtype))
  except TypeError:  # a random key
    return Value(Stored(key=digest('constant', getattr(value, 'shape', ()))))
  return Value(Stored(key=digest('constant', content)), positive)


def joined(op: str, params: Any, values: Iterable[Value], index: int = 0) -> Stored | None:
  """What a result is computed from; `None` where one of the operands depends on the inputs."""
  stored = []
  for value in values:
    if value.stored is None:
      return None
    stored.append(value.stored)
  loops = sorted({loop for one in stored for loop in one.loops}, key=lambda loop: len(loop.path))
  return Stored(
    frozenset().union(*(one.params for one in stored)),
    digest(op, index, params, [one.key for one in stored]),
    None,
    tuple(loops),
    frozenset().union(*(one.products for one in stored)),
    bool(stored) and all(one.repeated for one in stored),
  )


def transposed(layout: tuple | None, permutation: Sequence[int]) -> tuple | None:
  """The layout with its axes in another order."""
  return None if layout is None else tuple(layout[axis] for axis in permutation)


def reshaped(layout: tuple | None, shape: Sequence[int]) -> tuple | None:
  """The layout in another shape; axes of the parameter are split where the shape splits them."""
  if layout is None:
    return None
  atoms = [atom for axis in layout for atom in axis if atom[1] != 1]
  found: list[tuple[Atom, ...]] = []
  for size in shape:
    axis: list[Atom] = []
    left = size
    while left > 1:
      if not atoms:
        return None
      (where, length), *rest = atoms
      if left % length == 0:
        axis.append((where, length))
        left, atoms = left // length, rest
      elif length % left == 0:
        axis.append(((where, 'of', length // left), left))
        atoms = [((where, 'in', left), length // left), *rest]
        left = 1
      else:
        return None
    found.append(tuple(axis))
  return None if atoms else tuple(found)


def broadcast(
  layout: tuple | None, shape: Sequence[int], dimensions: Sequence[int], old: Sequence[int]
) -> tuple | None:
  """The layout with axes of size 1 put in; `None` where anything is repeated."""
  if layout is None or math.prod(shape) != math.prod(old):
    return None
  found: list[tuple[Atom, ...]] = [()] * len(shape)
  for axis, to in enumerate(dimensions):
    found[to] = layout[axis]
  return tuple(found)


def atoms_of(layout: tuple, axes: Iterable[int]) -> tuple[Atom, ...]:
  """The parts of a parameter that some axes of an operand consist of, without those of size 1."""
  return tuple(atom for atom in itertools.chain.from_iterable(layout[axis] for axis in axes) if atom[1] != 1)


def axes_with(layout: tuple, atoms: tuple[Atom, ...]) -> tuple[int, ...] | None:
  """The axes that consist of these parts of a parameter, in their order; `None` where no axes do."""
  axes: list[int] = []
  for atom in atoms:
    axis = next((i for i, parts in enumerate(layout) if atom in parts), None)
    if axis is None:
      return None
    if axis not in axes:
      axes.append(axis)
  return tuple(axes) if atoms_of(layout, axes) == atoms else None


def common_module(values: Sequence[Value]) -> str:
  """The path of the module that holds all parameters that a loop takes apart."""
  modules = [path.rpartition('/')[0] for value in values if value.stored for path in value.stored.params]
  return os.path.commonpath(modules) if modules and all(modules) else ''


def row_of(value: Value, loop: Loop) -> Value:
  """A stored value's part in one pass of a loop over it."""
  one = value.stored
  if one is None:
    return value
  layout = one.layout and one.layout[1:]
  row = dataclasses.replace(one, layout=layout, key=digest('row', one.key), loops=(*one.loops, loop))
  return Value(row if one.params else dataclasses.replace(row, loops=one.loops), value.positive)


def behind(value: Value, loop: Loop) -> Value:
  """What the passes of a loop give, behind it: its parts are one array again."""
  if value.stored is None:
    return value
  outer = tuple(one for one in value.stored.loops if one != loop)
  return Value(dataclasses.replace(value.stored, loops=outer), value.positive)
