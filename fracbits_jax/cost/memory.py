"""RAM: what is stored at once while a network runs, each tensor at its bits, in kB of 10^3 bytes.

A device runs the steps of `graph.schedule` one after the other. Stored are images at 8 bits, the inputs of layers at
theirs, and what has no quantizer at 32 bits. With E_i elements of b_i bits in tensor i, what is live in step t is

    m_t = sum over the tensors i that are live in t of E_i b_i / 8    bytes

and the network needs max m_t of it, if the tensors can be placed without gaps. Numbers of NumPy give the size of the
one block that a plan of all places comes to, each tensor rounded up to bytes: what generated C code declares. JAX's
give a smooth maximum of the m_t, which has a gradient.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax.cost.layer_table import Bits, Layer, bits_of, learned
from fracbits_jax.graph import arena, capture
from fracbits_jax.graph import schedule as schedules
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph
from fracbits_jax.program.functions import QuantizedFunction
from fracbits_jax.program.linen import QuantizedModel
from fracbits_jax.quantize import bitwidths

POWER = 100  # of the smooth maximum
_PLANS = 4096  # that are remembered

Slot = tuple[str, str]  # a layer's path, and `kernel` or `input`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A tensor that is stored while a network runs.

  Attributes:
    name: of the value in the network's graph.
    elements: how many numbers it has for one example, where no channel is pruned.
    bits: of each: a number, or the path of the row of the layer table with those of its inputs.
    first: the number of the step that writes it.
    last: that of the last step that reads it.
    source: the prunable layer that makes its channels; `None` where none can be pruned.
  """

  name: str
  elements: int
  bits: int | str
  first: int
  last: int
  source: str | None = None


class Memory:
  """What a network stores, found from its shapes once.

  Attributes:
    tensors: all that is stored.
    live: which of them in which step, `[steps, tensors]`; only steps of which no other has all of it as well.
  """

  def __init__(self, tensors: Iterable[Tensor]):
    self.tensors = tuple(tensors)
    steps = max(t.last for t in self.tensors) + 1
    spans = {tuple(t.first <= step <= t.last for t in self.tensors) for step in range(steps)}
    rows = np.array(sorted(spans, reverse=True))
    inside = (rows[:, None] <= rows[None]).all(-1).sum(1) > 1  # each is within itself
    self.live: np.ndarray = rows[~inside]
    self._place = functools.lru_cache(_PLANS)(self._placed)

  def _placed(self, sizes: tuple[int, ...]) -> int:
    return arena.place(sizes, [t.first for t in self.tensors], [t.last for t in self.tensors])[1]

  def rows(self, layers: Sequence[Layer]) -> dict[str, Layer]:
    """The rows of a layer table by name; `ValueError` where one is missing, so that it is another network's."""
    found = {layer.name: layer for layer in layers}
    wanted = {name for t in self.tensors for name in (t.bits, t.source) if isinstance(name, str)}
    if wanted - found.keys():
      raise ValueError(
        f'the memory of a network is counted on all of its layers, and {sorted(wanted - found.keys())[0]} is missing'
      )
    return found

  def bits(self, bits: Bits, layers: Sequence[Layer]) -> list[Any]:
    """What each tensor takes, in bits."""
    rows = self.rows(layers)
    prunable = {t.source for t in self.tensors if t.source is not None and rows[t.source].prunes}
    kept: dict[str | None, Any] = {
      source: bitwidths.gate(bits_of(bits, source, 'kernel')).mean() for source in prunable
    }
    return [t.elements * _width(t, rows, bits) * kept.get(t.source, 1) for t in self.tensors]

  def sizes(self, bits: Bits, layers: Sequence[Layer]) -> tuple[int, ...]:
    """The same in whole bytes, of NumPy's numbers."""
    return tuple(math.ceil(round(float(x) / 8, 6)) for x in self.bits(bits, layers))

  def block(self, sizes: tuple[int, ...]) -> int:
    """The bytes of the block in which tensors of these sizes have their places."""
    return self._place(sizes)

  def slots(self, layers: Sequence[Layer]) -> list[frozenset[Slot]]:
    """The learned bit-widths on which each tensor depends."""
    rows = self.rows(layers)
    found = []
    for t in self.tensors:
      slots: set[Slot] = {(t.bits, 'input')} if isinstance(t.bits, str) and 'input' in learned(rows[t.bits]) else set()
      if t.source is not None and rows[t.source].prunes:
        slots.add((t.source, 'kernel'))
      found.append(frozenset(slots))
    return found


def _width(tensor: Tensor, rows: Mapping[str, Layer], bits: Bits) -> Any:
  if isinstance(tensor.bits, int):
    return tensor.bits
  row = rows[tensor.bits]
  return bits_of(bits, row, 'input') if row.input_bits is None else row.input_bits


def memory_of(layers: Sequence[Layer]) -> Memory:
  """What the network of a layer table stores; `ValueError` for mere rows, and where it is not known."""
  found = getattr(layers, 'memory', None)
  if found is None:
    raise ValueError('memory is counted on the layer table that cost.trace gives of a network, not on rows of it')
  return found


def peak_memory(bits: Bits, layers: Sequence[Layer]) -> Any:
  """The RAM that a network takes while it runs, in kB of 10^3 bytes, without the stack of the program.

      m_t as above;    (sum_t m_t^100)^(1/100) >= max_t m_t    of JAX's numbers

  The smooth maximum is the log-sum-exp of 100 log m_t, by 100: steps within a hundredth of the largest have a share of
  the gradient. It is above the largest by less than 100th of the logarithm of the number of steps, 5% with 100 of them.
  It rounds nothing up and knows no gaps, so that the true size can be above it as well; discretization holds that.

  Args:
    bits: the collection `bits`; kernels count where their channels can be pruned, as what they make is smaller then.
    layers: the layer table of `trace`.

  Raises:
    ValueError: if bits are missing, `layers` is no table of `trace`, or the network has no meaning in integers.
  """
  memory = memory_of(layers)
  amounts = memory.bits(bits, layers)
  if not any(isinstance(x, jax.Array) for x in amounts):
    return memory.block(memory.sizes(bits, layers)) / 1e3
  m = jnp.asarray(memory.live, jnp.float32) @ jnp.stack([jnp.asarray(x, jnp.float32) / 8e3 for x in amounts])
  largest = jax.lax.stop_gradient(jnp.max(m))  # of which the value does not depend
  return largest * jnp.sum((m / largest) ** POWER) ** (1 / POWER)


def shares(bits: Bits, layers: Sequence[Layer]) -> dict[str, float]:
  """The part of the largest m_t that the inputs of each layer take, by name; images and the like are nobody's."""
  memory = memory_of(layers)
  sizes = np.asarray(memory.sizes(bits, layers), np.float64)
  at = memory.live[np.argmax(memory.live @ sizes)]
  found = dict.fromkeys((layer.name for layer in layers), 0.0)
  for tensor, size, live in zip(memory.tensors, sizes, at, strict=True):
    if live and isinstance(tensor.bits, str):
      found[tensor.bits] += float(size / (at @ sizes))
  return found


def of_model(model: Any, inputs: Any, layers: Sequence[Layer], batch_axes: Any, kwargs: Mapping[str, Any]) -> Memory:
  """What a network stores; arguments as for `tracing.trace`, and its rows.

  Raises:
    ValueError: one sentence: the network has operations that no graph has, or that mean nothing in integers.
  """
  grouped = next((layer for layer in layers if layer.group_size is not None), None)
  if grouped is not None:
    raise ValueError(
      f'the memory of {type(model).__name__} is not known, as it cannot run with integers alone: {grouped.name} has '
      'ranges by group'
    )
  try:
    graph = schedules.codes_before_pools(fold_affine(_graph(model, inputs, batch_axes, kwargs)))
    buffers = schedules.schedule(graph).buffers
  except ValueError as error:
    raise ValueError(
      f'the memory of {type(model).__name__} is not known, as it cannot run with integers alone: {error}'
    ) from None
  sources = _Sources(graph, layers)
  tensors = []
  for b in buffers:
    value = b.name if b.kind != 'operand' else sources.before(b.name)
    tensors.append(
      Tensor(name=b.name, elements=b.elements, bits=b.bits, first=b.first, last=b.last, source=sources.of(value))
    )
  memory = Memory(tensors)
  memory.rows(layers)
  return memory


def _graph(model: Any, inputs: tuple[Any, ...], batch_axes: Any, kwargs: Mapping[str, Any]) -> Graph:
  if isinstance(model, QuantizedModel | QuantizedFunction):
    variables: Any = model.shapes(inputs, kwargs)
  elif isinstance(model, nn.Module):
    variables = jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *inputs)
  else:
    from fracbits_jax.program import nnx_adapter

    model, variables = nnx_adapter.functional(model)
  return capture.outline(model, nn.meta.unbox(variables), inputs, batch_axes=batch_axes, **kwargs)


class _Sources:
  """The prunable layers that make the channels of the values of a graph."""

  def __init__(self, graph: Graph, layers: Sequence[Layer]):
    self._producers, self._known = graph.producers(), schedules.constants(graph)
    self._rows = {layer.name: layer for layer in layers}
    self._prunable = {layer.source for layer in layers if layer.source is not None}
    self._found: dict[str, str | None] = {}

  def before(self, name: str) -> str:
    """The value that a product multiplies."""
    return schedules.operands(self._producers[name], self._known)[0]

  def of(self, name: str) -> str | None:
    """The layer that makes the channels of a value, if that can prune them."""
    if name not in self._found:
      self._found[name] = self._of(name)
    return self._found[name]

  def _of(self, name: str) -> str | None:
    node = self._producers.get(name)
    if node is None:
      return None
    if node.op in schedules.PRODUCTS:
      row = self._rows.get(self._layer(node.inputs))
      if row is not None and row.kind == 'depthwise':
        return row.source
      return row.name if row is not None and row.name in self._prunable else None
    found = {self.of(x) for x in schedules.operands(node, self._known)}
    return found.pop() if len(found) == 1 else None

  def _layer(self, inputs: Sequence[Any]) -> str:
    """The layer of a product's kernel."""
    for x in inputs:
      while isinstance(x, str) and x in self._known:
        node = self._producers[x]
        if node.op == 'kernel':
          return node.params['layer']
        x = node.inputs[0]
    return ''
