"""From a network to what its C code runs: steps with the tables of `c/fracbits.h`, as Python objects.

The steps and the tensors that are stored are those of `graph.schedule`; what is done to integers between them is what
integer inference records, followed back from each tensor that a step writes to what the step reads.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fracbits_jax.export import c_tables, recording
from fracbits_jax.export.arithmetic import Recorded
from fracbits_jax.export.c_vectors import Op, Walker, unmoved
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.schedule import Buffer, Schedule, Step, codes_before_pools, schedule

TAPS = 25  # the largest window that the depthwise loop takes, as in fracbits.h
_NARROW = 8  # bits of codes that the fast loops of products take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A stored tensor: its place, and what its codes stand for."""

  offset: int
  bits: int
  times: int = 1
  shift: int = 0


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
  return _Builder(graph, recording.record(graph), schedule(graph)).program()


class _Builder:
  """Builds the steps; tensors are known by their index among the buffers of the schedule."""

  def __init__(self, graph: Graph, recording: recording.Recording, plan: Schedule):
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
    walker = Walker(', '.join(node.output for node in step.roots), lambda x: self.stored(x, number))
    roots = [self.recording.integers[node.output] for node in step.roots]
    first = step.roots[0]
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
        walker.write('SUM', i, self._held(buffer), buffer.elements)
      elif self.tensors[i].bits:
        is_moved = buffer.kind == 'codes' and buffer.name not in self.recording.codes
        walker.write('ENCODE' if is_moved else 'STORE', i, self._held(buffer))
    return Run(name=walker.name, kind=kind, what=what, program=walker.program(), sums=sums)

  def stored(self, x: Recorded, step: int) -> int | None:
    """The buffer from which a step reads a tensor; `None` for what it computes."""
    i = self.held.get(id(x))
    return None if i is None or (self.plan.buffers[i].first == step and x.op != 'input') else i

  def source(self, x: Recorded) -> int:
    """The buffer whose integers are a tensor; elements that stay where they are make no difference."""
    while id(x) not in self.held:
      if x.op != 'decoded' and unmoved(x) is x:
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
    before = Walker(node.output, lambda x: self.stored(x, -1))
    register = before.walk(root.operands[0])
    return 'pool', {
      **window,
      'before': before.program(register),
      'is_max': root.op == 'largest',
      'shift': shift,
    }

  def _move(self, root: Recorded) -> dict[str, Any]:
    return {'tensor': self.source(root.operands[0]), **c_tables.moves(root.params['index'])}

  def _concatenation(self, root: Recorded) -> dict[str, Any]:
    axis = root.params['axis']
    parts = [(self.source(x), math.prod(x.shape[axis:])) for x in root.operands]
    return {'parts': parts, 'outer': math.prod(root.shape[:axis])}
