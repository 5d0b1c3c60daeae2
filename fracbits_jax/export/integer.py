"""Inference with integers: what a program on a device without floating point computes.

A value is a tensor of integers with, for each channel, a scale, an offset and limits that make its real numbers:

    real = clip(scale integer + offset, low, high)

Convolutions and dense layers multiply and accumulate integers in 32 bits. What follows them only changes scale, offset
and limits: kernel and input scales, SAT's factor, batch norm, bias, ReLU; max pools take the largest integer; reshapes,
slices, pads and concatenations move integers together with the numbers of their channels. All of that is exact. When
the next layer's codes are made, each channel is rescaled once, see `rescale`:

    code = clip((multiplier (integer - zero) + offset) / 2^shift, 0, 2^bits - 1),    rounded half to even

Where tensors of different scales are added, and where numbers behind a ReLU are averaged, they are first rescaled in
the same way to fixed-point numbers of 28 bits and a sign, each channel with a power of two of its own. They stop where
nothing depends on them any more, beyond the clips of the layers that they reach, see `needed`. Ranges are known from
the kernels, so nothing overflows; and it is known how far a real number can be from that of the network. Where that is
more than 2^-10 of a step of a layer's codes, the network is refused. The codes are therefore those of the network in
exact arithmetic, unless that is within 2^-10 of a step of the middle between two codes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from fracbits_jax.export import grouped, lookups, rescale
from fracbits_jax.export.arithmetic import Recorded
from fracbits_jax.export.needed import EVERYTHING, Interval, needed, of_operands
from fracbits_jax.export.pools import pooled
from fracbits_jax.export.products import multiply_accumulate, product_of_codes
from fracbits_jax.export.values import (
  Value,
  affine,
  concatenated,
  limited,
  moved,
  moved_kernel,
  of_codes,
  of_kernel,
  sized,
  value,
)
from fracbits_jax.graph import ops
from fracbits_jax.graph.fold import as_affine
from fracbits_jax.graph.graph import Graph, Input, Node
from fracbits_jax.graph.grid import Grid

_LAYOUT = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'slice', 'rev', 'broadcast_in_dim')
_LOGIT_ERROR = 2.0**-20  # of the largest real number there can be where it is used as one


def inference(
  graph: Graph, *, integer_inputs: bool = True, keep: Sequence[str] = (), fixed_outputs: bool = False
) -> Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]:
  """A compiled function of inputs: what a graph gives when its layers compute with integers.

  Args:
    graph: of `packed.read` or `capture`.
    integer_inputs: whether inputs are integers from 0 to 255, such as images, which the first layer takes as they are;
      where they are real numbers, `quantize` nodes make codes of them in floating point first.
    keep: names of values to return as well: codes of `quantize` nodes, real numbers of others.
    fixed_outputs: whether outputs are int32 instead, 2^digits times the real numbers, as `recording.record` has them.

  Returns:
    `function(inputs, given={})`, which gives the output in real numbers, float32, or a tuple of several, and the values
    that are kept. Inputs are as for `graph.evaluate`. `given` are codes, by the names of `quantize` nodes, from which
    the network goes on instead of those that it computes.
    Raises `ValueError` for accumulators beyond 32 bits, and inputs that are not what `integer_inputs` says.
  """
  interpreter = Interpreter(graph, integer_inputs, fixed_outputs)
  compiled = jax.jit(lambda inputs, given: interpreter(inputs, tuple(keep), given))

  def run(inputs: Any, given: Mapping[str, Any] = FrozenDict()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    arrays = {name: np.asarray(x) for name, x in graph.given(inputs).items()}
    for x in graph.inputs:
      array = arrays[x.name]
      if integer_inputs and is_image(x) and ((array != np.round(array)) | (array < 0) | (array > 255)).any():
        raise ValueError('the inputs are not integers from 0 to 255: give images as they are, or integer_inputs=False')
    with jax.enable_x64(True):
      return jax.tree.map(np.asarray, compiled(arrays, dict(given)))

  return run


def float_operations(graph: Graph, *, integer_inputs: bool = True) -> tuple[str, ...]:
  """The names of the nodes that `inference` computes in floating point, as they have no meaning in integers here."""
  interpreter = Interpreter(graph, integer_inputs)
  shapes = {x.name: jax.ShapeDtypeStruct(tuple(map(abs, x.shape)), x.dtype) for x in graph.inputs}
  with jax.enable_x64(True):
    jax.eval_shape(lambda xs: interpreter(xs, (), {}), shapes)
  return tuple(interpreter.in_float)


class Interpreter:
  """Computes a graph; values are `Value`, or arrays where they are real numbers.

  A first pass finds what values can be, without computing them; from that follows where they may stop.
  """

  def __init__(self, graph: Graph, integer_inputs: bool, fixed_outputs: bool = False):
    grouped.refuse(graph, 'integer inference')
    self.graph, self.integer_inputs, self.fixed_outputs = graph, integer_inputs, fixed_outputs
    self.in_float: list[str] = []

  def __call__(self, inputs: Any, keep: Sequence[str], given: dict[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
    inputs = self.graph.given(inputs)
    count = self.graph.count(inputs)
    first = Pass(self.graph, self.integer_inputs, count)
    shapes = {name: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype) for name, x in inputs.items()}
    jax.eval_shape(lambda xs: first(xs, {})[1], shapes)
    quantizers = {node.output for node in self.graph.nodes if node.op == 'quantize'}
    outside = [name for name in keep if name not in quantizers]
    stops = needed(self.graph, first.intervals, first.shapes, outside)
    second = Pass(self.graph, self.integer_inputs, count, first.intervals, stops)
    values, codes = second(inputs, given)
    self.in_float = second.in_float
    real = lambda name: second.real(values[name], name)
    given_out = (lambda name: second.fixed(values[name], name)[0]) if self.fixed_outputs else real
    outputs = self.graph.result({name: given_out(name) for name in self.graph.outputs})
    return outputs, {name: codes[name] if name in codes else real(name) for name in keep}


class Pass:
  """One pass over a graph; without `stops` it only finds intervals, and no number is too coarse for it."""

  def __init__(
    self,
    graph: Graph,
    integer_inputs: bool,
    count: int,
    intervals: Mapping[str, Interval] = FrozenDict(),
    stops: Mapping[str, Interval] | None = None,
  ):
    self.graph, self.integer_inputs, self.count = graph, integer_inputs, count
    self.shapes = graph.shapes()
    self.intervals, self.stops = dict(intervals), stops
    self.in_float: list[str] = []

  def __call__(
    self, inputs: Mapping[str, Any], given: Mapping[str, Any]
  ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """All values, and the codes of the quantizers."""
    values: dict[str, Any] = {}
    for x in self.graph.inputs:
      values[x.name] = inputs[x.name]
      if isinstance(values[x.name], Recorded):
        values[x.name] = value(values[x.name], 0.0, 255.0, 1.0)
        continue
      values[x.name] = jnp.asarray(values[x.name])
      if self.integer_inputs and is_image(x):
        values[x.name] = value(values[x.name].astype(jnp.int32), 0.0, 255.0, 1.0)
      elif _is_real(x.dtype):
        values[x.name] = values[x.name].astype(jnp.float32)
    codes: dict[str, jax.Array] = {}
    for node in self.graph.nodes:
      operands = [values[x] if isinstance(x, str) else x for x in node.inputs]
      if node.op == 'kernel':
        found: Any = of_kernel(node.params['kernel'])
      elif node.op == 'quantize':
        grid: Grid = node.params['grid']
        codes[node.output] = self._codes(operands[0], node)
        computed = codes[node.output]
        found = of_codes(jnp.asarray(given[node.output], jnp.int32) if node.output in given else computed, grid)
      else:
        found = self._computed(node, operands)
      values[node.output] = found
      if isinstance(found, Value):
        self.intervals.setdefault(node.output, found.interval())
    return values, codes

  def real(self, x: Any, name: str) -> Any:
    """Real numbers; raises `ValueError` where they are too coarse."""
    self.check_error(x, name)
    return _real(x)

  def fixed(self, x: Any, name: str) -> tuple[Any, int]:
    """An output as integers, 2^digits times the real numbers, and the digits."""
    self.check_error(x, name)
    if not isinstance(x, Value):
      raise ValueError(f'{name} has no meaning in integers')
    digits = rescale.digits(x.largest().max())
    return rescale.fixed(x, digits).integers, int(digits)

  def check_error(self, x: Any, name: str) -> None:
    """Raises `ValueError` where real numbers are too coarse."""
    if self.stops is not None and isinstance(x, Value) and x.error.max() > _LOGIT_ERROR * x.largest().max():
      raise ValueError(
        f'{name} is known to {x.error.max() / x.largest().max():.2g} of its largest value, and {_LOGIT_ERROR:.2g} is '
        'needed: quantize the inputs of the layers before it, so that they multiply codes'
      )

  def _codes(self, x: Any, node: Node) -> jax.Array:
    grid: Grid = node.params['grid']
    if not isinstance(x, Value):
      return grid.codes(grid.quantize(x))
    tolerance = rescale.TOLERANCE if self.stops is not None else math.inf
    return rescale.codes(x, grid, node.params['layer'], tolerance)

  def _computed(self, node: Node, operands: list[Any]) -> Any:
    found = self._in_integers(node, operands)
    if found is not None:
      return found
    if any(isinstance(x, Value) and isinstance(x.integers, Recorded) for x in operands):
      where = f' in {node.place}' if node.place else ''
      raise ValueError(
        f'{node.output} ({node.op}{where}) has no meaning in integers: export the network as onnx or stablehlo, or '
        'leave that operation out'
      )
    if _is_real(node.dtype) or any(isinstance(x, Value) for x in operands):
      self.in_float.append(node.output)
    names = [x if isinstance(x, str) else '' for x in node.inputs]
    reals = [jnp.asarray(self.real(x, name)) for x, name in zip(operands, names, strict=True)]
    return ops.apply(node.op, node.params, reals, self.count).astype(node.dtype)

  def _in_integers(self, node: Node, operands: list[Any]) -> Value | None:
    """What a node gives in integers, or `None`."""
    ints = [x for x in operands if isinstance(x, Value)]
    if not ints:
      return None
    x, constant = ints[0], as_affine(node)
    if constant is not None:
      return affine(x, *constant[1:])
    if node.op == 'concatenate':
      shapes = [self.shapes[name] for name in node.inputs if isinstance(name, str)]
      return concatenated(ints, shapes, node.params['dimension']) if len(ints) == len(operands) else None
    if len(ints) == 2 and len(operands) == 2:
      return self._of_two(node, *ints)
    if node.op == 'gather' and x is operands[0] and isinstance(x.integers, np.ndarray) and len(ints) == 1:
      return lookups.looked_up(node, x, operands[1])
    if len(ints) == 1 and isinstance(x.integers, np.ndarray):
      return moved_kernel(node, x) if node.op in _LAYOUT else None
    if len(ints) == 1:
      return self._of_one(node, x, operands)
    return None

  def _of_two(self, node: Node, first: Value, second: Value) -> Value | None:
    if node.op == 'dot_general' and not any(isinstance(x.integers, np.ndarray) for x in (first, second)):
      return product_of_codes(node, first, second, self.shapes[node.inputs[0]])
    if node.op in ('conv_general_dilated', 'dot_general'):
      return multiply_accumulate(node, first, second, self.count, self._layer(node))
    if (
      node.op not in ('add', 'sub') or isinstance(first.integers, np.ndarray) or isinstance(second.integers, np.ndarray)
    ):
      return None
    ends = self._ends(node)
    if node.op == 'sub':
      second, ends = affine(second, np.float64(-1), np.float64(0)), [ends[0], (-ends[1][1], -ends[1][0])]
    return rescale.added(first, second, ends)

  def _of_one(self, node: Node, x: Value, operands: list[Any]) -> Value | None:
    """What a node gives of one value and constants."""
    limits = _limits(node)
    if limits is not None:
      return limited(x, **limits)
    if node.op == 'neg':
      return affine(x, np.float64(-1), np.float64(0))
    if node.op == 'convert_element_type':
      return x if np.issubdtype(np.dtype(node.dtype), np.floating) else None
    if node.op in ('reduce_sum', 'reduce_window_sum', 'reduce_max', 'reduce_window_max'):
      (ends,) = self._ends(node)
      return pooled(node, x, self.shapes[node.inputs[0]], ends)
    if node.op in _LAYOUT or _pads_zeros(node) or self._gathers(node, operands):
      rest = [np.asarray(y, np.int32) for y in operands[1:]]
      move = lambda array, count: ops.apply(node.op, node.params, [array, *rest], count)
      return moved(x, move, self.shapes[node.inputs[0]], node.shape, self.count)
    return None

  def _layer(self, node: Node) -> str:
    """The name of the layer whose kernel a product has."""
    producers = {before.output: before for before in self.graph.nodes if before.op in ('kernel', *_LAYOUT)}
    for name in node.inputs:
      while name in producers:
        before = producers[name]
        if before.op == 'kernel':
          return before.params['layer']
        name = before.inputs[0]
    return node.output

  def _ends(self, node: Node) -> list[Interval]:
    """Where the operands of a node may stop."""
    if self.stops is None:
      return [EVERYTHING] * len(node.inputs)
    return of_operands(node, self.stops.get(node.output, EVERYTHING), self.intervals, self.shapes)

  def _gathers(self, node: Node, operands: list[Any]) -> bool:
    """Whether a node takes elements from places that are known and exist."""
    if node.op != 'gather' or not isinstance(operands[0], Value) or isinstance(node.inputs[1], str):
      return False
    shape = sized(self.shapes[node.inputs[0]], 1)
    with jax.ensure_compile_time_eval():
      places = jnp.arange(1, 1 + math.prod(shape), dtype=jnp.int32).reshape(shape)
      return bool((ops.apply('gather', node.params, [places, jnp.asarray(operands[1])], 1) > 0).all())


def _is_real(dtype: str) -> bool:
  return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))


def is_image(x: Input) -> bool:
  """Whether an input can be an image; integers of other types are places in a table, and booleans masks."""
  return x.dtype == 'uint8' or _is_real(x.dtype)


def _real(x: Any) -> Any:
  return x.real() if isinstance(x, Value) else x


def _limits(node: Node) -> dict[str, np.ndarray] | None:
  """The limits that a node gives its value, or `None`."""
  constants = [np.asarray(x, np.float64) for x in node.inputs if not isinstance(x, str)]
  if node.op in ('max', 'min') and len(constants) == 1:
    return {'low' if node.op == 'max' else 'high': constants[0]}
  if node.op == 'clamp' and len(constants) == 2 and isinstance(node.inputs[1], str):
    return {'low': np.minimum(*constants), 'high': constants[1]}
  return None


def _pads_zeros(node: Node) -> bool:
  return node.op == 'pad' and not isinstance(node.inputs[1], str) and not np.asarray(node.inputs[1]).any()
