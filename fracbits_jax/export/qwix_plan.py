"""Which rules and which integers of Qwix a network is: found from its graph, refused where Qwix has none."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from fracbits_jax.export import qwix_types
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.program import signs
from fracbits_jax.program.stored import Value

_LAYOUT = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'convert_element_type')
_PRODUCTS = ('dot_general', 'conv_general_dilated')
_PIXELS = 255  # the largest


Rule = Mapping[str, str | int | None]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
  """A kernel as Qwix has it.

  Attributes:
    qvalue: its levels in the shape of the parameter, int8.
    scale: of the rank of it, float32, with the sizes of the parameter or 1; of groups with their number along an axis.
    qtype: of the levels.
    bits: that they take.
  """

  qvalue: np.ndarray
  scale: np.ndarray
  qtype: str
  bits: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
  """A network for Qwix.

  Attributes:
    rules: the arguments of each `QuantizationRule`, names, types and the `tile_size` of groups.
    kernels: the quantized parameters by path.
    floats: by path the values of parameters that are quantized here and stay float there.
  """

  rules: tuple[Rule, ...]
  kernels: Mapping[str, Quantized]
  floats: Mapping[str, np.ndarray]


def plan(graph: Graph, params: Mapping[str, Any], *, images: bool) -> Plan:
  """The rules and kernels of a network.

  Args:
    graph: of the network.
    params: the parameters of the float network by path, `stem/kernel`.
    images: whether the inputs are integers from 0 to 255.

  Raises:
    ValueError: one sentence that names a layer: Qwix has no types, no operation or no place for it.
  """
  reader = _Reader(graph, params, images)
  rules: dict[str, Rule] = {}
  kernels: dict[str, Quantized] = {}
  floats: dict[str, np.ndarray] = {}
  for node in graph.nodes:
    if node.op == 'kernel':
      path, rule, found = reader.layer(node)
      if path in kernels or path in floats:
        raise ValueError(f'{node.params["layer"]} uses a parameter that another layer has quantized: leave it float')
      if rule is None:
        floats[path] = found
        continue
      module = path.rpartition('/')[0]
      if module in rules:
        raise ValueError(f'{module or "the network"} has two quantized weights, and Qwix one rule for a module')
      rules[module], kernels[path] = {'module_path': re.escape(module), **rule}, found
    elif node.op == 'quantize':
      reader.check_read_by_layer(node)
  if not kernels:
    raise ValueError(
      'no layer of the network has integers that Qwix multiplies: quantize inputs too, weight_only=False'
    )
  return Plan(rules=tuple(rules.values()), kernels=kernels, floats=floats)


class _Reader:
  """What is known of a graph, looked up for one layer after the other."""

  def __init__(self, graph: Graph, params: Mapping[str, Any], images: bool):
    self.graph, self.params, self.images = graph, params, images
    self.consumers, self.producers = graph.consumers(), graph.producers()
    self.nonnegative = _nonnegative(graph, images)

  def layer(self, node: Node) -> tuple[str, Rule | None, Any]:
    """The parameter of a kernel, the types of its rule, and the kernel; without a rule its values."""
    name, kernel = node.params['layer'], node.params['kernel']
    uses = list(self._uses(node.output))
    products = {id(product): product for product, _, _ in uses if product.op in _PRODUCTS}
    moves = uses[0][2]
    integers, scale, bits = qwix_types.levels(name, kernel)
    path = self._parameter(name, _laid_out(integers, moves))
    if not products:  # rows that are looked up
      return path, None, _laid_out(kernel.value, moves)
    found = [self._input(name, product) for product in products.values()]
    if len(products) < len(uses) and found == [None]:  # a head that is the table of embeddings
      return path, None, _laid_out(kernel.value, moves)
    if len(products) < len(uses) or any(place != 1 for _, place, _ in uses):
      raise ValueError(
        f'the kernel of {name} is the first operand of a product, or of more than products, and Qwix takes it as the '
        'second alone: leave it float'
      )
    if any(other != found[0] for other in found):
      raise ValueError(f'{name} is used for inputs with several ranges, and Qwix has one for a module: leave it float')
    is_conv = any(product.op == 'conv_general_dilated' for product in products.values())
    taken = found[0]
    if is_conv and taken is None:
      self._check_reads_network_inputs(name, next(iter(products.values())))
      return path, None, _laid_out(kernel.value, moves)
    # XLA on the CPU multiplies int8 with int4, and not all of int4 with int4.
    wide = is_conv or (bits <= 4 and taken is not None and qwix_types.is_narrow(taken.qtype))
    qtype = 'int8' if wide else f'int{bits}'
    quantized = Quantized(
      qvalue=_laid_out(integers, moves),
      scale=_scale(name, kernel, scale, moves),
      qtype=qtype,
      bits=bits,
    )
    tiles = {} if not _is_grouped(kernel) else {'tile_size': kernel.group_size}
    if taken is None:
      return path, {'weight_qtype': qtype, 'act_qtype': None, **tiles}, quantized
    # Qwix wants the two types of a convolution to be the same; its levels are int8 in either case.
    weight_qtype = taken.qtype if is_conv else qtype
    rule = {'weight_qtype': weight_qtype, 'act_qtype': taken.qtype, 'act_calibration_method': taken.method}
    rule |= tiles
    return path, rule, quantized

  def check_read_by_layer(self, node: Node) -> None:
    """Raises `ValueError` where a quantized value is read by other than a product with the layer's kernel."""
    name = node.params['layer']
    for product, _, _ in self._uses(node.output):
      other = self._source(product.inputs[1]) if product.op in _PRODUCTS else None
      if other is not None and other.op == 'kernel' and other.params['layer'] == name:
        continue
      if other is not None and other.op == 'quantize':
        raise ValueError(
          f'{name} multiplies two activations with ranges of their own, and Qwix has one range for both: leave the '
          'product float'
        )
      raise ValueError(
        f'{name} gives quantized values to what is no layer, and Qwix quantizes in products alone: train with '
        '--config.quant.quantize_residuals=False'
      )

  def _uses(self, name: str, moves: tuple[Node, ...] = ()) -> Iterator[tuple[Node, int, tuple[Node, ...]]]:
    """Who reads a value behind operations that only lay it out: the node, which operand it is, those operations."""
    for node in self.consumers.get(name, []):
      if node.op in _LAYOUT:
        yield from self._uses(node.output, (*moves, node))
      else:
        for place, operand in enumerate(node.inputs):
          if isinstance(operand, str) and operand == name:
            yield node, place, moves

  def _source(self, name: Any) -> Node | None:
    """The node that a value comes from, before it was laid out; `None` for an input or a constant."""
    node = self.producers.get(name) if isinstance(name, str) else None
    while node is not None and node.op in _LAYOUT:
      node = self.producers.get(node.inputs[0])
    return node

  def _parameter(self, name: str, integers: np.ndarray) -> str:
    """The path of the parameter that a layer quantizes as it is."""
    inside = [path for path in self.params if path == name or path.rpartition('/')[0] == name]
    same = [path for path in inside if np.shape(self.params[path]) == integers.shape]
    # A level has the sign of the weight.
    found = [path for path in same if (np.sign(np.asarray(self.params[path], np.float64)) * integers >= 0).all()]
    if len(found) != 1:
      raise ValueError(
        f'{name} is no parameter as it is, but computed from some, a part of a stack or used elsewhere, and Qwix takes '
        'parameters as they are: leave it float, by a rule of quantize_model'
      )
    return found[0]

  def _input(self, name: str, product: Node) -> qwix_types.Range | None:
    """The range of a product's inputs; `None` where they stay real numbers."""
    source, is_conv = self._source(product.inputs[0]), product.op == 'conv_general_dilated'
    if source is None or source.op != 'quantize':
      ends = _image_ends(self, product.inputs[0]) if is_conv and self.images else None
      return None if ends is None else qwix_types.of_images(*ends)
    nonnegative = source.inputs[0] in self.nonnegative
    return qwix_types.of_inputs(name, source.params['grid'], nonnegative=nonnegative, is_conv=is_conv)

  def _check_reads_network_inputs(self, name: str, product: Node) -> None:
    """Raises `ValueError` for a convolution of real inputs, but for one of the network's own."""
    seen, left = set(), [product.inputs[0]]
    while left:
      node = self.producers.get(left.pop())
      if node is None or node.output in seen:
        continue
      if node.op in _PRODUCTS:
        raise ValueError(
          f'{name} convolves inputs that are not quantized, and Qwix convolves two quantized operands alone: train '
          'with --config.quant.weight_only=False'
        )
      seen.add(node.output)
      left += [x for x in node.inputs if isinstance(x, str)]


def _laid_out(array: np.ndarray, moves: tuple[Node, ...]) -> np.ndarray:
  """An array of a kernel's shape, laid out as the kernel is before its product."""
  for node in moves:
    if node.op != 'convert_element_type':
      array = np.asarray(ops.apply(node.op, node.params, [array], 1))
  return np.asarray(array)


def _is_grouped(kernel: Kernel) -> bool:
  """Whether a channel has several ranges."""
  return kernel.group_size is not None and kernel.group_size < math.prod(kernel.codes.shape[:-1])


def _scale(name: str, kernel: Kernel, scale: np.ndarray, moves: tuple[Node, ...]) -> np.ndarray:
  """The scale of a kernel, laid out as the kernel is before its product, with one entry for each group of weights."""
  laid_out = _laid_out(np.broadcast_to(scale, kernel.codes.shape), moves)
  if not _is_grouped(kernel):
    return _compressed(laid_out)
  contracted, size = kernel.codes.shape[0], kernel.group_size
  if kernel.codes.ndim != 2 or contracted % size:
    raise ValueError(
      f'the kernel of {name} has groups of {size} weights, and Qwix has whole ones along one axis, of {contracted} '
      'here: train with a quant.group_size that divides it, or with kernel_ranges=channel'
    )
  place = _laid_out(np.broadcast_to(np.arange(contracted)[:, None], kernel.codes.shape), moves)
  axis = int(place[0, -1] > 0)  # along which the weights of a channel lie
  return np.take(laid_out, np.arange(0, contracted, size), axis=axis)


def _compressed(scale: np.ndarray) -> np.ndarray:
  """An array with one entry along the axes along which it does not change."""
  for axis in range(scale.ndim):
    first = np.take(scale, [0], axis)
    if (scale == first).all():
      scale = first
  return scale


def _image_ends(reader: _Reader, name: Any) -> tuple[float, float] | None:
  """What 0 and 255 of the network's images have become, where 0 is one of the values between; `None` otherwise."""
  steps = []
  while (node := reader.producers.get(name)) is not None:
    constant = [x for x in node.inputs if not isinstance(x, str)]
    if node.op in _LAYOUT:
      name = node.inputs[0]
    elif node.op in ('sub', 'add', 'mul', 'div') and len(constant) == 1 and isinstance(node.inputs[0], str):
      values = np.unique(np.asarray(constant[0], np.float64))
      if len(values) != 1:
        return None
      steps.append((node.op, float(values[0])))
      name = node.inputs[0]
    else:
      return None
  ends = np.array([0.0, _PIXELS])
  for op, value in reversed(steps):
    ends = {'sub': ends - value, 'add': ends + value, 'mul': ends * value, 'div': ends / (value or np.nan)}[op]
  low, high = ends.tolist()
  if not low <= 0 <= high or low >= high:
    return None
  zero = -low / (high - low) * _PIXELS
  return (low, high) if abs(zero - round(zero)) < 1e-6 else None


def _nonnegative(graph: Graph, images: bool) -> set[str]:
  """The values of a graph that have no negative entry, by the operations that make them."""
  found = {x.name for x in graph.inputs if images or np.dtype(x.dtype).kind in 'bu'}
  for node in graph.nodes:
    if node.op == 'kernel':
      continue
    if node.op == 'quantize':
      if not node.params['grid'].signed:
        found.add(node.output)
      continue
    operands = [Value(None, x in found if isinstance(x, str) else signs.known(x)) for x in node.inputs]
    out = SimpleNamespace(aval=SimpleNamespace(dtype=np.dtype(node.dtype)))
    equation = SimpleNamespace(
      primitive=SimpleNamespace(name=node.op), params=node.params, outvars=[out], invars=list(node.inputs)
    )
    if signs.result(equation, operands):
      found.add(node.output)
  return found
