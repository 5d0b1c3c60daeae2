"""From a network to what its C code runs: steps with the tables of `c/fracbits.h`, as Python objects.

The steps and the tensors that are stored are those of `graph.schedule`; what is done to integers between them is what
integer inference records, followed back from each tensor that a step writes to what the step reads.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fracbits_jax.export import c_tables, integer
from fracbits_jax.export.arithmetic import Recorded
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.schedule import Buffer, Schedule, Step, codes_before_pools, schedule

TAPS, REGISTERS = 25, 6  # as in fracbits.h
_NARROW = 8  # bits of codes that the fast loops of products take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A stored tensor: its place, and what its codes stand for."""

  offset: int
  bits: int
  times: int = 1
  shift: int = 0


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
  """A convolution, or a dense layer as one of 1 x 1; fields as in `fracbits.h`."""

  layer: str
  kind: str
  tensor: int
  weights: bytes
  rows: tuple[int, ...]
  size: tuple[int, int, int]
  kernel: tuple[int, int]
  strides: tuple[int, int]
  dilation: tuple[int, int]
  padding: tuple[int, int]
  groups: int
  out: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A step: what it begins with, its program, and the sums that it sets to 0 before.

  Attributes:
    name: of the nodes that it begins with.
    kind: `products`, `pool`, `sums`, `move`, `concatenation` or `elements`.
    what: the fields of that, as in `fracbits.h`; of `products` a list of `Product`.
    program: what follows.
    sums: the tensor of sums, and how many.
  """

  name: str
  kind: str
  what: Any
  program: tuple[Op, ...]
  sums: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """An output of the network: integers, each 2^digits times the real number."""

  name: str
  tensor: int
  elements: int
  digits: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What the C code runs."""

  steps: tuple[Run, ...]
  tensors: tuple[Tensor, ...]
  names: tuple[str, ...]  # what each tensor holds
  arena: int
  inputs: tuple[tuple[str, int, int], ...]  # name, tensor, elements
  outputs: tuple[Output, ...]

  def named_tensors(self) -> Iterator[tuple[Tensor, str]]:
    """The tensors, each with what it holds."""
    return zip(self.tensors, self.names, strict=True)

  @property
  def weight_bytes(self) -> int:
    """Bytes of all kernels."""
    return sum(len(p.weights) for run in self.steps if run.kind == 'products' for p in run.what)

  @property
  def table_bytes(self) -> int:
    """Bytes of all rescalings."""
    found = {id(op.scaling): op.scaling for run in self.steps for op in run.program if op.scaling is not None}
    return sum(13 * len(s.multiplier) + 8 * len(s.least) for s in found.values())


def integer_graph(graph: Graph) -> Graph:
  """The graph that the C code runs: constants folded, quantizers before max pools."""
  return codes_before_pools(fold_affine(graph))


def program_of(graph: Graph) -> Program:
  """What the C code of a network runs, `graph` being one of `integer_graph`.

  Raises:
    ValueError: something that has no meaning in integers, or none in C, by name.
  """
  return _Builder(graph, integer.record(graph), schedule(graph)).program()


class _Builder:
  """Builds the steps; tensors are known by their index among the buffers of the schedule."""

  def __init__(self, graph: Graph, recording: integer.Recording, plan: Schedule):
    self.graph, self.recording, self.plan = graph, recording, plan
    self.producers = graph.producers()
    self.quantizers = {n.params['layer']: n.params['grid'] for n in graph.nodes if n.op == 'quantize'}
    bits = {layer: grid.bits for layer, grid in self.quantizers.items()}
    offsets, self.arena = plan.place(bits)
    self.tensors = [self._tensor(b, offset, bits) for b, offset in zip(plan.buffers, offsets, strict=True)]
    self.held: dict[int, int] = {}  # what is stored, by identity, and in which buffer
    for i, buffer in enumerate(plan.buffers):
      self.held.setdefault(id(self._held(buffer)), i)

  def program(self) -> Program:
    steps = tuple(self._run(i, step) for i, step in enumerate(self.plan.steps))
    buffers = list(enumerate(self.plan.buffers))
    return Program(
      steps=steps,
      tensors=tuple(self.tensors),
      names=tuple(f'{b.kind} {b.name}, {b.elements} elements' for b in self.plan.buffers),
      arena=self.arena,
      inputs=tuple((b.name, i, b.elements) for i, b in buffers if b.kind == 'input'),
      outputs=tuple(
        Output(name=b.name, tensor=i, elements=b.elements, digits=self.recording.digits[b.name])
        for i, b in buffers
        if b.kind == 'output'
      ),
    )

  def _tensor(self, buffer: Buffer, offset: int, bits: dict[str, int]) -> Tensor:
    width = buffer.bits if isinstance(buffer.bits, int) else bits[buffer.bits]
    times, shift = 1, 0
    if buffer.kind == 'codes' and isinstance(buffer.bits, str):
      zero = self.quantizers[buffer.bits].zero
      times = 2 if zero % 1 else 1
      shift = round(times * zero)
    return Tensor(offset=offset, bits=width, times=times, shift=shift)

  def _held(self, buffer: Buffer) -> Recorded:
    """What a buffer holds."""
    if buffer.kind == 'codes' and buffer.name in self.recording.codes:
      return self.recording.codes[buffer.name]
    if buffer.kind == 'output':
      return self.recording.outputs[buffer.name]
    held = self.recording.integers[buffer.name]
    return held.operands[0] if buffer.kind in ('operand', 'sums') else held

  # Programs: what is written, followed back to what is read.

  def _run(self, number: int, step: Step) -> Run:
    walker = _Walker(self, number)
    roots = [self.recording.integers[node.output] for node in step.roots]
    first = step.roots[0]
    name = ', '.join(node.output for node in step.roots)
    what: Any
    if all(root.op == 'multiplied' for root in roots):
      kind, what = 'products', [self._product(root, node) for root, node in zip(roots, step.roots, strict=True)]
      for root in roots:
        walker.known(root)
    elif roots[0].op in ('summed', 'largest'):
      kind, what = self._pool(roots[0], first)
      walker.known(roots[0])
    elif roots[0].op == 'moved':
      kind, what = 'move', self._move(roots[0])
      walker.known(roots[0])
    elif roots[0].op == 'concatenated':
      kind, what = 'concatenation', self._concatenation(roots[0])
      walker.known(roots[0])
    else:
      kind, what = 'elements', int(np.prod(roots[0].shape))
    sums = None
    for i in step.writes:
      buffer = self.plan.buffers[i]
      if buffer.kind == 'sums':
        sums = (i, buffer.elements)
      walker.write(i, self._held(buffer))
    return Run(name=name, kind=kind, what=what, program=walker.program(name), sums=sums)

  def stored(self, x: Recorded, step: int) -> int | None:
    """The buffer from which a step reads a tensor; `None` for what it computes."""
    i = self.held.get(id(x))
    return None if i is None or (self.plan.buffers[i].first == step and x.op != 'input') else i

  def source(self, x: Recorded) -> int:
    """The buffer whose integers are a tensor; elements that stay where they are make no difference."""
    while id(x) not in self.held:
      if x.op != 'decoded' and _unmoved(x) is x:
        raise ValueError(f'a product or a move reads numbers that are {x.op} before: put a quantizer right before it')
      x = x.operands[0]
    return self.held[id(x)]

  def _product(self, root: Recorded, node: Node) -> Product:
    of_kernel = c_tables.kernel_node(node, self.producers)
    layer, bits = of_kernel.params['layer'], np.unique(of_kernel.params['kernel'].bits).tolist()
    source = self.source(root.operands[0])
    shape_of = c_tables.dense if node.op == 'dot_general' else c_tables.convolution
    rows, fields = shape_of(node, root, layer)
    forms, weights = c_tables.packed_rows(rows, bits, layer)
    narrow = self.tensors[source].bits <= _NARROW and max(form & 31 for form in forms) <= _NARROW
    depthwise = 1 < fields['groups'] == fields['size'][2] == fields['out'][2]
    kind = 'GENERAL'
    if narrow:
      kind = 'DEPTHWISE' if depthwise and math.prod(fields['kernel']) <= TAPS else 'CONV'
    rows_differ = len(set(forms)) > 1
    return Product(
      layer=layer,
      kind=kind,
      tensor=source,
      weights=weights,
      rows=tuple(forms if rows_differ else forms[:1]),
      **fields,
    )

  def _pool(self, root: Recorded, node: Node) -> tuple[str, Any]:
    shift = root.params.get('shift', 0)
    sums = [i for i, b in enumerate(self.plan.buffers) if b.kind == 'sums' and b.name == node.output]
    if sums:
      return 'sums', {'tensor': sums[0], 'channels': math.prod(root.shape), 'shift': shift}
    window = c_tables.window(node, root.operands[0].shape)
    before = _Walker(self, -1)
    register = before.walk(root.operands[0])
    return 'pool', {
      **window,
      'before': before.program(node.output, register),
      'is_max': root.op == 'largest',
      'shift': shift,
    }

  def _move(self, root: Recorded) -> dict[str, Any]:
    return {'tensor': self.source(root.operands[0]), **c_tables.moves(root.params['index'])}

  def _concatenation(self, root: Recorded) -> dict[str, Any]:
    axis = root.params['axis']
    parts = [(self.source(x), math.prod(x.shape[axis:])) for x in root.operands]
    return {'parts': parts, 'outer': math.prod(root.shape[:axis])}


class _Walker:
  """Writes the program of a step; an operation has a register of its own until `program` assigns the few there are."""

  def __init__(self, builder: _Builder, step: int):
    self.builder, self.step = builder, step
    self.ops: list[Op] = []
    self.registers: dict[int, int] = {}  # of what is there, by identity
    self.kept: list[Recorded] = []  # so that identities stay
    self.begins: list[int] = []
    self.count = 0

  def known(self, x: Recorded) -> None:
    """Says that the step begins with a tensor, in the next register."""
    self.begins.append(self._register(x))

  def write(self, i: int, x: Recorded) -> None:
    """Stores a tensor in a buffer."""
    buffer, tensor = self.builder.plan.buffers[i], self.builder.tensors[i]
    if tensor.bits == 0:
      return
    register = self.walk(x)
    if buffer.kind == 'sums':
      self.ops.append(Op(op='SUM', a=register, number=buffer.elements, tensor=i))
    elif buffer.kind == 'codes' and buffer.name not in self.builder.recording.codes:
      self.ops.append(Op(op='ENCODE', to=self._register(None), a=register, tensor=i))
    else:
      self.ops.append(Op(op='STORE', a=register, tensor=i))

  def walk(self, x: Recorded) -> int:
    """The register that has a tensor, computed where that is needed."""
    if id(x) in self.registers:
      return self.registers[id(x)]
    stored = self.builder.stored(x, self.step)
    if stored is None and x.op == 'decoded':
      stored = self.builder.stored(x.operands[0], self.step)
    if stored is not None:
      return self._new(x, Op(op='LOAD', tensor=stored))
    if x.op == 'moved' and (before := _unmoved(x)) is not x:
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
    raise ValueError(f'a step of {self.builder.plan.steps[self.step].roots[0].output} cannot compute what is {x.op}')

  def program(self, name: str, result: int | None = None) -> tuple[Op, ...]:
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
          raise ValueError(f'{name} is followed by sums of so many tensors that C has too few vectors for them')
      found.append(dataclasses.replace(op, to=places.get(op.to, 0), a=a, b=b))
    if result is not None and places[result]:
      raise ValueError(f'{name} pools a sum of several tensors: put a quantizer before it')
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


def _unmoved(x: Recorded) -> Recorded:
  """What a tensor is a mere reshape of."""
  while x.op == 'moved' and (index := x.params['index'].reshape(-1)).size == math.prod(x.operands[0].shape):
    if (index != np.arange(index.size)).any():
      break
    x = x.operands[0]
  return x
