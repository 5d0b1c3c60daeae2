"""In which order a network runs on a device, and which of its tensors are stored meanwhile.

A *step* computes tensors element by element: a convolution or a matrix product, or something that reads its operands
from memory: a pool, a move of elements, a concatenation, a sum of what is stored. Whatever follows element by element
(batch norms, ReLUs, quantizers, residual sums) is computed in the step itself, so that an accumulator is never stored
unless another step reads it. Two products that are added are one step. Products run in the order of the network, the
other steps when they are first needed.

Stored are the inputs of the network at 8 bits, codes at the bit-width of their quantizer, what else is read by another
step at 32 bits, the sums of a mean over the image at 64, and the outputs at 32.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fracbits_jax.graph import arena
from fracbits_jax.graph.fold import as_affine
from fracbits_jax.graph.graph import Graph, Node

PRODUCTS = ('conv_general_dilated', 'dot_general')
_LAYOUT = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'slice', 'rev', 'broadcast_in_dim', 'pad', 'gather')
_POOLS = ('reduce_sum', 'reduce_max', 'reduce_window_sum', 'reduce_window_max')
_INPUT_BITS, _STORED_BITS, _SUM_BITS = 8, 32, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Buffer:
  """A tensor that is stored.

  Attributes:
    name: of the value of the graph that it holds; of `operand` and `sums` that of the node that reads it.
    kind: `input`; `codes`; `raw`, integers of 32 bits; `operand`, those that a product reads; `sums` of 64 bits, one
      for each channel; `output`.
    elements: how many numbers it has, for one example.
    bits: of each: a number, or the name of the layer whose input quantizer makes the codes.
    first: the number of the step that writes it.
    last: that of the last step that reads it.
  """

  name: str
  kind: str
  elements: int
  bits: int | str
  first: int
  last: int

  def size(self, bits: Mapping[str, int]) -> int:
    """Its bytes, given the bit-widths of inputs by layer."""
    return -(-self.elements * (bits[self.bits] if isinstance(self.bits, str) else self.bits) // 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """What runs as a whole.

  Attributes:
    roots: the nodes that it begins with: two products that are added, or one node.
    writes: the buffers that it makes, as indices.
    reads: those that it reads.
  """

  roots: tuple[Node, ...]
  writes: tuple[int, ...]
  reads: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The order in which a network runs: its steps and the tensors that are stored."""

  steps: tuple[Step, ...]
  buffers: tuple[Buffer, ...]

  def sizes(self, bits: Mapping[str, int]) -> list[int]:
    """The bytes of each buffer, given the bit-widths of inputs by layer."""
    return [buffer.size(bits) for buffer in self.buffers]

  def place(self, bits: Mapping[str, int]) -> tuple[list[int], int]:
    """Where the buffers lie in the one block of memory, and its size in bytes."""
    first, last = [b.first for b in self.buffers], [b.last for b in self.buffers]
    return arena.place(self.sizes(bits), first, last)


def codes_before_pools(graph: Graph) -> Graph:
  """The same network with each quantizer behind a max pool before it, as the largest code is that of the largest."""
  consumers, producers = graph.consumers(), graph.producers()
  moved: dict[str, list[Node]] = {}
  for node in graph.nodes:
    pool = producers.get(node.inputs[0]) if node.op == 'quantize' else None
    if pool is None or pool.op not in ('reduce_window_max', 'reduce_max') or len(consumers[pool.output]) > 1:
      continue
    if pool.output in graph.outputs or not isinstance(pool.inputs[0], str):
      continue
    shape = graph.shapes()[pool.inputs[0]]
    codes = dataclasses.replace(node, inputs=pool.inputs, output=f'{node.output}_codes', shape=shape)
    moved[node.output] = [codes, dataclasses.replace(pool, inputs=(codes.output,), output=node.output)]
    moved[pool.output] = []
  nodes = [new for node in graph.nodes for new in moved.get(node.output, [node])]
  return dataclasses.replace(graph, nodes=tuple(nodes))


def schedule(graph: Graph) -> Schedule:
  """The steps of a network and what is stored between them; `codes_before_pools` first saves memory.

  Raises:
    ValueError: an operation that has no place in a program of integers, by name.
  """
  return _Scheduler(graph).run()


def constants(graph: Graph) -> set[str]:
  """The values that are known without inputs: kernels, and kernels whose elements are moved."""
  found: set[str] = set()
  for node in graph.nodes:
    moved = node.op in _LAYOUT and isinstance(node.inputs[0], str) and not operands(node, found)
    if node.op == 'kernel' or moved:
      found.add(node.output)
  return found


def operands(node: Node, known: set[str]) -> list[str]:
  """The values that a node takes which are not known."""
  return [x for x in node.inputs if isinstance(x, str) and x not in known]


def is_elementwise(node: Node, graph: Graph) -> bool:
  """Whether a node of one value gives for each element what follows from that element, in the same order."""
  if node.op in ('quantize', 'neg', 'convert_element_type', 'max', 'min', 'clamp', 'reshape', 'squeeze', 'expand_dims'):
    return True
  if as_affine(node) is not None:
    return True
  before = graph.shapes()[node.inputs[0]] if isinstance(node.inputs[0], str) else ()
  if node.op == 'broadcast_in_dim':
    return math.prod(node.shape) == math.prod(before)
  if node.op == 'slice':
    return node.shape == before
  return node.op == 'pad' and not any(any(config) for config in node.params['padding_config'])


class _Scheduler:
  """Finds the steps; each is known by the node that it begins with, its root.

  Attributes:
    within: for a value the root in whose step it is computed; `None` where it is read from what is stored as codes.
    base: for a value the one that it follows from element by element: an input, codes, or what a root or a sum gives.
    needs: for a root those that have to have run before it.
    joined: the root in whose step another product runs as well.
  """

  def __init__(self, graph: Graph):
    self.graph, self.known = graph, constants(graph)
    self.producers, self.consumers, self.shapes = graph.producers(), graph.consumers(), graph.shapes()
    inputs = [x.name for x in graph.inputs]
    self.within: dict[str, str | None] = dict.fromkeys(inputs)
    self.base = {name: name for name in inputs}
    self.needs: dict[str, list[str]] = {}
    self.joined: dict[str, str] = {}
    self.buffers: dict[str, tuple[str, str, int | str, str | None]] = {}  # key: value, kind, bits, root that writes it
    self.reads: dict[str, list[str]] = {}  # root: keys

  def run(self) -> Schedule:
    for x in self.graph.inputs:
      self.buffers[x.name] = (x.name, 'input', _INPUT_BITS, None)
    for node in self.graph.nodes:
      if node.output not in self.known:
        self._place(node)
    for name in self.graph.outputs:
      root = self.within[name]
      if root is None:
        raise ValueError(f'{name} is codes of a quantizer: give the network an output behind a layer')
      self.buffers[f'output {name}'] = (name, 'output', _STORED_BITS, root)
    order: list[str] = []
    for root in [r for r in self.needs if self.producers[r].op in PRODUCTS] + list(self.needs):
      self._emit(self.joined.get(root, root), order)
    return self._finished(order)

  def _emit(self, root: str, order: list[str]) -> None:
    if root not in order:
      for before in self.needs[root]:
        self._emit(self.joined.get(before, before), order)
      order.append(root)

  def _finished(self, order: Sequence[str]) -> Schedule:
    at = {root: i for i, root in enumerate(order)}
    partners = {other: root for root, other in self.joined.items()}
    read = {root: [*self.reads[root], *(self.reads[partners[root]] if root in partners else ())] for root in order}
    keys = list(self.buffers)
    buffers = []
    for key in keys:
      value, kind, bits, root = self.buffers[key]
      last = max([at[r] for r in order if key in read[r]], default=at[root] if root else 0)
      elements = self._elements(value)
      buffers.append(
        Buffer(
          name=key.split()[-1],
          kind=kind,
          elements=elements,
          bits=bits,
          first=at[root] if root else 0,
          last=len(order) - 1 if kind == 'output' else last,
        )
      )
    number = {key: i for i, key in enumerate(keys)}
    steps = [
      Step(
        roots=tuple(self.producers[name] for name in (root, partners.get(root)) if name),
        writes=tuple(number[key] for key in keys if self.buffers[key][3] == root),
        reads=tuple(number[key] for key in dict.fromkeys(read[root])),
      )
      for root in order
    ]
    return Schedule(steps=tuple(steps), buffers=tuple(buffers))

  def _elements(self, name: str) -> int:
    return abs(math.prod(self.shapes[name]))

  def _place(self, node: Node) -> None:
    """Finds in which step a node is computed, and what has to be stored for it."""
    names, out = operands(node, self.known), node.output
    if len(names) == 1 and is_elementwise(node, self.graph):
      root = self.within[names[0]]
      if node.op != 'quantize':
        self.within[out], self.base[out] = root, self.base[names[0]]
        return
      if root is None:
        root = self._new_root(node)
        self._read(root, names[0])
      self.within[out], self.base[out] = None, out
      self.buffers[out] = (out, 'codes', node.params['layer'], root)
      return
    if node.op in ('add', 'sub') and len(names) == 2:
      self.within[out] = self._sum(node, names)
    elif node.op in (*PRODUCTS, *_LAYOUT, *_POOLS, 'concatenate') and (len(names) == 1 or node.op == 'concatenate'):
      self.within[out] = self._new_root(node)
      for name in names:
        self._operand(node, name)
    else:
      what = 'multiplies two activations' if node.op in PRODUCTS else 'has no meaning in integers'
      raise ValueError(f'{out} ({node.op} in {node.place or "the network"}) {what}')
    self.base[out] = out

  def _new_root(self, node: Node) -> str:
    self.needs[node.output], self.reads[node.output] = [], []
    return node.output

  def _sum(self, node: Node, names: Sequence[str]) -> str:
    """The root in whose step a sum is computed: a product, the last one that can, or its own."""
    own = [root for name in names if (root := self.within[name]) is not None]
    places = list(self.needs)
    for root in sorted(set(own), key=lambda r: (self.producers[r].op in PRODUCTS, places.index(r)), reverse=True):
      others = [name for name in names if self.within[name] != root]
      if all(self._joins(name, root) or not self._depends(name, root) for name in others):
        for name in others:
          if self._joins(name, root):
            partner = self.within[name]
            assert partner is not None
            self.joined[partner] = root
            self.needs[root] += self.needs[partner]
          else:
            self._read(root, name)
        return root
    root = self._new_root(node)
    for name in names:
      self._read(root, name)
    return root

  def _joins(self, name: str, root: str) -> bool:
    """Whether the product of a summand can run in the step of another: nothing else reads it."""
    own, base = self.within[name], self.base[name]
    if own is None or base != own or {self.producers[own].op, self.producers[root].op} - set(PRODUCTS):
      return False
    if {own, root} & {*self.joined, *self.joined.values()} or self.shapes[own] != self.shapes[root]:
      return False
    chain = [name]
    while chain[-1] != base:
      chain += operands(self.producers[chain[-1]], self.known)
    if any(len(self.consumers[x]) > 1 or x in self.graph.outputs for x in chain):
      return False
    return not any(self._reaches(before, root) for before in self.needs[own])

  def _depends(self, name: str, root: str) -> bool:
    """Whether a value can only be read after a root has run."""
    writer = self.within[name] or self.buffers[self.base[name]][3]
    return writer is not None and self._reaches(writer, root)

  def _reaches(self, start: str, root: str) -> bool:
    start = self.joined.get(start, start)
    return start == root or any(self._reaches(before, root) for before in self.needs[start])

  def _operand(self, node: Node, name: str) -> None:
    """Stores what a root reads."""
    root, within = node.output, self.within[name]
    if within is not None and node.op == 'reduce_sum' and self._sums_all(node, name):
      self.buffers[f'sums {root}'] = (root, 'sums', _SUM_BITS, within)
      self._note(root, f'sums {root}', within)
    elif within is not None and node.op in PRODUCTS and self._stored(self.base[name])[1] == 'raw':
      self.buffers[f'operand {root}'] = (name, 'operand', _STORED_BITS, within)
      self._note(root, f'operand {root}', within)
    else:
      self._read(root, name)

  def _sums_all(self, node: Node, name: str) -> bool:
    """Whether a node adds whatever a channel has."""
    rank = len(self.shapes[name])
    return sorted(node.params['axes']) == list(range(1, rank - 1))

  def _read(self, root: str, name: str) -> None:
    """Lets a root read the base of a value."""
    base = self.base[name]
    if base not in self.buffers:
      self.buffers[base] = self._stored(base)
    self._note(root, base, self.buffers[base][3])

  def _note(self, root: str, key: str, writer: str | None) -> None:
    self.reads[root].append(key)
    if writer is not None:
      self.needs[root].append(writer)

  def _stored(self, base: str) -> tuple[str, str, int | str, str | None]:
    """How a value is stored: codes that are moved, or of which the largest are taken, stay codes."""
    if base in self.buffers:
      return self.buffers[base]
    node = self.producers[base]
    if node.op in ('reduce_window_max', 'reduce_max', *_LAYOUT):
      name = operands(node, self.known)[0]
      before = self.base[name]
      moves_codes = before == name and before in self.buffers and self.buffers[before][1] == 'codes'
      if moves_codes and (node.op not in ('pad', 'gather') or not self._has_two_sides(before)):
        return base, 'codes', self.buffers[before][2], base
    return base, 'raw', _STORED_BITS, self.within[base]

  def _has_two_sides(self, name: str) -> bool:
    """Whether 0 may be no code: the codes are those of signed inputs."""
    while (node := self.producers[name]).op != 'quantize':
      name = operands(node, self.known)[0]
    return node.params['grid'].signed
