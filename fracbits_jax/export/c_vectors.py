"""The programs of C steps: operations on a few vectors, followed back from what a step stores to what it reads."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from fracbits_jax.export import c_tables
from fracbits_jax.export.arithmetic import Recorded

REGISTERS = 6  # vectors that a program has, as in fracbits.h


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
  """The tables of a rescaling, int64; element i has the numbers i modulo the length of a table."""

  multiplier: np.ndarray
  offset: np.ndarray
  shift: np.ndarray
  least: np.ndarray
  most: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
  """An operation of a program: `LOAD`, `RESCALE`, `SIGN`, `ADD`, `SET`, `STORE`, `ENCODE` or `SUM`."""

  op: str
  to: int = 0
  a: int = 0
  b: int = 0
  number: int = 0
  tensor: int | None = None
  scaling: Scaling | None = None


class Walker:
  """Writes the program of a step; an operation has a register of its own until `program` assigns the few there are."""

  def __init__(self, name: str, stored: Callable[[Recorded], int | None]):
    """`stored` gives the tensor from which the step reads, or `None` for what it computes; `name` is of the step."""
    self.name, self.stored = name, stored
    self.ops: list[Op] = []
    self.registers: dict[int, int] = {}  # of what is there, by identity
    self.kept: list[Recorded] = []  # so that identities stay
    self.begins: list[int] = []
    self.count = 0

  def known(self, x: Recorded) -> None:
    """Says that the step begins with a tensor, in the next register."""
    self.begins.append(self._register(x))

  def write(self, op: str, tensor: int, x: Recorded, number: int = 0) -> None:
    """Stores what a tensor holds, by `STORE`, `ENCODE` or `SUM`."""
    register = self.walk(x)
    to = self._register(None) if op == 'ENCODE' else 0
    self.ops.append(Op(op=op, to=to, a=register, number=number, tensor=tensor))

  def walk(self, x: Recorded) -> int:
    """The register that has a tensor, computed where that is needed."""
    if id(x) in self.registers:
      return self.registers[id(x)]
    stored = self.stored(x)
    if stored is None and x.op == 'decoded':
      stored = self.stored(x.operands[0])
    if stored is not None:
      return self._new(x, Op(op='LOAD', tensor=stored))
    if x.op == 'moved' and (before := unmoved(x)) is not x:
      return self.walk(before)
    if x.op in ('rescaled', 'signs'):
      op = 'RESCALE' if x.op == 'rescaled' else 'SIGN'
      return self._new(x, Op(op=op, a=self.walk(x.operands[0]), scaling=_scaling(x)))
    if x.op == 'negated':
      return self._new(x, Op(op='RESCALE', a=self.walk(x.operands[0]), scaling=_negation(x)))
    if x.op == 'added':
      first, second = map(self.walk, x.operands)
      return self._new(x, Op(op='ADD', a=first, b=second))
    if x.op == 'constant':
      return self._new(x, Op(op='SET', number=x.params['number']))
    raise ValueError(f'the step of {self.name} cannot compute what is {x.op}; {c_tables.INSTEAD}')

  def program(self, result: int | None = None) -> tuple[Op, ...]:
    """The operations, with registers that are used again; `result` comes to be in register 0."""
    last = dict.fromkeys(range(self.count), -1)
    for i, op in enumerate(self.ops):
      last.update(dict.fromkeys(_reads(op), i))
    if result is not None:
      last[result] = len(self.ops)
    places = {register: i for i, register in enumerate(self.begins)}
    found = []
    for i, op in enumerate(self.ops):
      a, b = places.get(op.a, 0), places.get(op.b, 0)
      places = {register: place for register, place in places.items() if last[register] > i}
      if op.op not in ('STORE', 'SUM'):
        places[op.to] = next(place for place in range(self.count + 1) if place not in places.values())
        if places[op.to] >= REGISTERS:
          raise ValueError(
            f'{self.name} is followed by sums of more tensors than C has vectors for; {c_tables.INSTEAD}'
          )
      found.append(dataclasses.replace(op, to=places.get(op.to, 0), a=a, b=b))
    if result is not None and places[result]:
      raise ValueError(f'{self.name} pools a sum of several tensors: put a quantizer before it')
    return tuple(found)

  def _new(self, x: Recorded, op: Op) -> int:
    register = self._register(x)
    self.ops.append(dataclasses.replace(op, to=register))
    return register

  def _register(self, x: Recorded | None) -> int:
    if x is not None:
      self.registers[id(x)] = self.count
      self.kept.append(x)
    self.count += 1
    return self.count - 1


def _reads(op: Op) -> tuple[int, ...]:
  """The registers that an operation reads."""
  if op.op in ('LOAD', 'SET'):
    return ()
  return (op.a, op.b) if op.op == 'ADD' else (op.a,)


def _scaling(x: Recorded) -> Scaling:
  """The tables of a rescaling, with the zero within the offset."""
  scaling, shape = x.params['scaling'], x.operands[0].shape
  offset = scaling.offset - scaling.zero * scaling.multiplier
  multiplier, offset, shift = c_tables.table([scaling.multiplier, offset, scaling.shift], shape)
  least, most = c_tables.table([x.params['least'], x.params['most']], shape)
  return Scaling(multiplier=multiplier, offset=offset, shift=shift, least=least, most=most)


def _negation(x: Recorded) -> Scaling:
  sign = c_tables.table([x.params['sign']], x.shape)[0]
  ends = np.iinfo(np.int32)
  one = np.ones(1, np.int64)
  same = np.ones_like(sign)
  return Scaling(multiplier=2 * sign, offset=0 * same, shift=same, least=ends.min * one, most=ends.max * one)


def unmoved(x: Recorded) -> Recorded:
  """What a tensor is a mere reshape of."""
  while x.op == 'moved' and (index := x.params['index'].reshape(-1)).size == math.prod(x.operands[0].shape):
    if (index != np.arange(index.size)).any():
      break
    x = x.operands[0]
  return x
