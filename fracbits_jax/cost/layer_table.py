"""The layer table: what a network's costs are computed from, traced by shape once, and the bits that belong to it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.layers import FLOAT_BITS, QuantConfig
from fracbits_jax.program.coverage import Coverage
from fracbits_jax.quantize import bitwidths
from fracbits_jax.quantize import groups as groups_of_weights

Bits = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """One row of the layer table.

  Attributes:
    name: the path of the layer in the network, such as `block1/conv`; its bits are found under the same path.
    macs: multiply-accumulates for one example, M; no integer where the examples of a call share a layer unevenly.
    weights: entries of the kernel, K.
    biases: entries of the bias, at 4 bytes each.
    channels: output channels, C_out.
    kind: `dense`, `pointwise`, `depthwise` or `standard` (any other convolution); `embedding` for a table whose rows
      are looked up, `product` for a product of two activations, the second of which stands for the kernel,
      `identity` for a quantizer of what others read, without a kernel: 0 weights of 0 bits.
    kernel_bits: the kernel's bit-width where it is fixed; `None` where it is learned.
    input_bits: the same for the inputs.
    per_channel: whether a learned kernel has one bit-width per output channel.
    choices: allowed bit-widths of the kernel.
    input_choices: allowed bit-widths of the inputs.
    source: the layer whose pruned channels are missing from the inputs; `None` where none can be.
    stack: the sizes of the stack that the layer is part of, as within a scan; `()` for a layer by itself.
    index: its place there.
    path: where the bits of the stack lie; of a layer by itself `name`.
    input_path: where the bits of the inputs lie: `path`, or that of the row of kind `identity` that quantizes them.
    group_size: how many neighbouring weights of a channel share a range, see `quantize.groups`; `None` for no groups.
    range_bits: of the range of a group.
  """

  name: str
  macs: int | float
  weights: int
  channels: int
  kind: str = 'standard'
  biases: int = 0
  kernel_bits: int | None = None
  input_bits: int | None = None
  per_channel: bool = False
  choices: tuple[int, ...] = tuple(range(1, 9))
  input_choices: tuple[int, ...] = tuple(range(1, 9))
  source: str | None = None
  stack: tuple[int, ...] = ()
  index: tuple[int, ...] = ()
  path: str = ''
  input_path: str = ''
  group_size: int | None = None
  range_bits: int = 16

  def __post_init__(self):
    if not self.path:
      object.__setattr__(self, 'path', self.name)
    if not self.input_path:
      object.__setattr__(self, 'input_path', self.path)

  @property
  def prunes(self) -> bool:
    """Whether output channels can be pruned, by 0 bits."""
    return self.kernel_bits is None and self.per_channel and self.choices[0] == 0

  @property
  def has_kernel(self) -> bool:
    """Whether there is a kernel, or what stands for one."""
    return self.kind != 'identity'

  @property
  def ranges(self) -> int:
    """The ranges that count in the size, those of groups."""
    if self.group_size is None:
      return 0
    return groups_of_weights.count(self.weights // max(self.channels, 1), self.group_size) * self.channels

  @property
  def owns_input(self) -> bool:
    """Whether the bits of the inputs are its own, so that no other row has them."""
    return self.input_path == self.path


class LayerTable(tuple[Layer, ...]):
  """The rows of a network, with how much of it they are.

  Attributes:
    coverage: how much of the network is quantized.
  """

  coverage: Coverage
  _find_memory: Callable[[], Any] | None

  def __new__(
    cls, rows: Iterable[Layer], coverage: Coverage, find_memory: Callable[[], Any] | None = None
  ) -> 'LayerTable':
    table = super().__new__(cls, rows)
    table.coverage, table._find_memory = coverage, find_memory
    return table

  def __getnewargs__(self) -> tuple[Any, ...]:
    return tuple(self), self.coverage, self._find_memory

  @property
  def memory(self) -> Any:
    """What the network stores while it runs, a `memory.Memory`, found when it is asked for; `None` where nothing can.

    Raises:
      ValueError: the network cannot run with integers alone.
    """
    if isinstance(self._memory, str):
      raise ValueError(self._memory)
    return self._memory

  @functools.cached_property
  def _memory(self) -> Any:
    try:
      return None if self._find_memory is None else self._find_memory()
    except ValueError as error:
      return str(error)

  def with_rows(self, rows: Iterable[Layer]) -> 'LayerTable':
    """The table of the same network with other bit-widths in its rows."""
    return LayerTable(rows, self.coverage, self._find_memory and (lambda: self.memory))


def learned(layer: Layer) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
  """The learned bit-widths that are a layer's own: name -> (shape, allowed values)."""
  found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
  if layer.kernel_bits is None:
    found['kernel'] = ((layer.channels,) if layer.per_channel else (), layer.choices)
  if layer.input_bits is None and layer.owns_input:
    found['input'] = ((), layer.input_choices)
  return found


def row(
  module: Any, *, name: str, params: Mapping[str, Any], conv: bool, transposed: bool, x: Any, y: Any, examples: int
) -> Layer:
  """The row of a layer.

  Args:
    module: the layer, for its `quant`, `output_axes` and `feature_group_count`.
    name: its path.
    params: its `kernel` and, if it has one, its `bias`.
    conv: whether it is a convolution, transposed or not.
    transposed: whether each input is spread over outputs, as a transposed convolution does.
    x: its inputs, for their shape.
    y: its outputs.
    examples: how many these are.
  """
  quant: QuantConfig | None = module.quant
  kernel, bias = params['kernel'], params.get('bias')
  channels = math.prod(kernel.shape[axis] for axis in module.output_axes(kernel.shape))
  kind = 'dense'
  if conv:
    depthwise = getattr(module, 'feature_group_count', 1) > 1 and kernel.shape[-2] == 1
    kind = 'depthwise' if depthwise else 'pointwise' if math.prod(kernel.shape[:-2]) == 1 else 'standard'
  # Each output takes every weight of its channel once; where inputs are spread, each input does.
  uses = math.prod(x.shape[:-1]) if transposed else math.prod(y.shape) // channels
  fields = dict(
    name=name,
    macs=per_example(uses * kernel.size, examples),
    weights=kernel.size,
    channels=channels,
    kind=kind,
    biases=0 if bias is None else bias.size,
  )
  return Layer(**fields, **bit_fields(quant))


def identity_row(quant: QuantConfig, *, name: str, channels: int) -> Layer:
  """The row of a quantizer whose outputs several layers read."""
  fields = {**bit_fields(quant), 'kernel_bits': 0, 'per_channel': False}
  return Layer(name=name, macs=0, weights=0, channels=channels, kind='identity', **fields)


def groups(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
  """The rows by the bits of their inputs: those in a group share a bit-width, so that none can be chosen by itself."""
  found: dict[str, list[Layer]] = {}
  for layer in layers:
    found.setdefault(layer.name if layer.owns_input else layer.input_path, []).append(layer)
  return [tuple(group) for group in found.values()]


def bit_fields(quant: QuantConfig | None) -> dict[str, Any]:
  """The fields of a row that say how its layer is quantized; `None` for one that stays float."""
  if quant is None:
    return dict(kernel_bits=FLOAT_BITS, input_bits=FLOAT_BITS)
  return dict(
    kernel_bits=quant.kernel_bits,
    input_bits=quant.counted_input_bits,
    per_channel=quant.granularity == 'kernel',
    choices=quant.allowed_kernel_bits,
    input_choices=quant.allowed_input_bits,
    group_size=quant.group_size,
    range_bits=quant.range_bits,
  )


def per_example(total: int, examples: int) -> int | float:
  """A number of multiply-accumulates for one of several examples, exactly where it is an integer."""
  return total / examples if total % examples else total // examples


def add_row(rows: dict[Any, Layer], row: Layer, key: Any = None) -> None:
  """Adds a row to a table by name, or by another key; a layer that is used twice has one kernel."""
  key = row.name if key is None else key
  macs = row.macs + rows[key].macs if key in rows else row.macs
  rows[key] = dataclasses.replace(row, macs=macs)


def checked_rows(rows: Mapping[str, Layer], model: Any) -> tuple[Layer, ...]:
  """The rows of a table; `ValueError` where there are none."""
  if not rows:
    raise ValueError(
      f'{type(model).__name__} has no QuantConv, QuantDense or other quantized layer, so there is nothing to count: '
      'build it from them, or give it to quantize_model'
    )
  return tuple(rows.values())


def bits_of(bits: Bits, layer: Layer | str, which: str) -> Any:
  """The learned bit-width `which` (`kernel` or `input`) of a layer.

  Args:
    bits: the collection. The layers of a stack lie in one array, or each under its own name as in a policy.
    layer: a row of the layer table, or the name of one that is part of no stack.
    which: `kernel` or `input`.

  Raises:
    ValueError: it is missing.
  """
  name, path, index = (layer, layer, ()) if isinstance(layer, str) else (layer.name, layer.path, layer.index)
  if which == 'input' and not isinstance(layer, str) and not layer.owns_input:
    name = path = layer.input_path
  found = _lookup(bits, path, which)
  if found is not None:
    return found[index] if index else found
  found = _lookup(bits, name, which) if index else None
  if found is None:
    raise ValueError(f'no bits for {name}/{which}: the bits belong to another network, or the table does')
  return found


def whole_stack(bits: Bits, layer: Layer, which: str) -> Any:
  """The learned bit-widths of all layers of a stack in one array, or `None` where each has its own."""
  return _lookup(bits, layer.path, which)


def _lookup(bits: Bits, path: str, which: str) -> Any:
  node: Any = bits
  for key in (*path.split('/'), which):
    if not isinstance(node, Mapping) or key not in node:
      return None
    node = node[key]
  return node


def gates(bits: Bits, layer: Layer) -> Any:
  """min(bits, 1) of the channels that make a layer's inputs `[C]`, 0 for the pruned ones; `None` where none can be."""
  if layer.source is None:
    return None
  return bitwidths.gate(bits_of(bits, layer.source, 'kernel'))


def fill_bits(layers: Sequence[Layer], value: Callable[[Layer, str, tuple[int, ...], tuple[int, ...]], Any]) -> dict:
  """A `bits` collection with `value(layer, which, shape, choices)` for every learned bit-width.

  NumPy float64, so that costs of integer bits are exact; JAX makes float32 of it where it enters a network.
  """
  bits: dict = {}
  for layer in layers:
    for which, (shape, choices) in learned(layer).items():
      node = bits
      for key in layer.path.split('/'):
        node = node.setdefault(key, {})
      filled = np.broadcast_to(np.asarray(value(layer, which, shape, choices), np.float64), shape).copy()
      if layer.stack:
        node.setdefault(which, np.zeros((*layer.stack, *shape)))[layer.index] = filled
      else:
        node[which] = filled
  return bits


def uniform_bits(layers: Sequence[Layer], value: float) -> dict:
  """The collection `bits` with every learned bit-width at `value`."""
  return fill_bits(layers, lambda *_: value)


def least_bits(layers: Sequence[Layer]) -> dict:
  """The collection `bits` that costs least: every bit-width at its least, one channel kept where all can be pruned."""

  def least(layer: Layer, which: str, shape: tuple[int, ...], choices: tuple[int, ...]) -> Any:
    if which == 'input' or not layer.prunes or len(choices) == 1:
      return choices[0]
    return np.where(np.arange(layer.channels) == 0, choices[1], choices[0])

  return fill_bits(layers, least)


def bits_range(layers: Sequence[Layer]) -> tuple[dict, dict]:
  """The collections `bits` with every learned bit-width at its least and at its largest allowed value."""
  least, most = (fill_bits(layers, functools.partial(_end, at)) for at in (0, -1))
  return least, most


def _end(at: int, layer: Layer, which: str, shape: tuple[int, ...], choices: tuple[int, ...]) -> int:
  del layer, which, shape
  return choices[at]
