"""From a network to its graph.

The network is traced once, for any number of examples. Whatever does not depend on the inputs is computed here and now;
what is left are operations of `jax.lax`, quantizers of inputs, and quantized kernels with their integer codes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fracbits_jax import layers
from fracbits_jax.fast import conv
from fracbits_jax.graph import lowering, ops
from fracbits_jax.graph.calls import Call, call_of, for_any_number, named_results
from fracbits_jax.graph.graph import Graph, Input, Node, without_dead_nodes
from fracbits_jax.graph.grid import Kernel, input_grid, kernel_codes
from fracbits_jax.graph.params import plain_params, size_of
from fracbits_jax.graph.recipes import Recipes
from fracbits_jax.layers import QuantConfig
from fracbits_jax.program import interpreter
from fracbits_jax.program.walk import CALLS, inner_program, modules_around

MOST_PASSES = 256  # of a loop, which is unrolled
_SAME = {'name', 'stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'device_put'}
_OUTER = {'shard_map', 'run_state'}  # calls that are more than their program

_quantize_p = core.Primitive('quantize')
_kernel_p = core.Primitive('kernel')
for _primitive in (_quantize_p, _kernel_p):
  _primitive.def_abstract_eval(lambda x, *rest, **params: x)


def applied(model: Any) -> Callable[..., Any]:
  """A network as a function of its variables and of what it is called with."""
  return model.apply if hasattr(model, 'apply') else model


def check_integers(bits: Any) -> None:
  """Raises `ValueError` where a bit-width of the collection `bits` is no integer."""
  for path, value in jax.tree_util.tree_leaves_with_path(bits):
    known = np.asarray(value)
    if (known != np.round(known)).any():
      name = '/'.join(str(getattr(key, 'key', key)) for key in path)
      raise ValueError(f'{name} has fractional bits: export after policy.discretize, or a run that has finished')


def capture(
  model: Any,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  batch_axes: Any = 0,
  call: Call | None = None,
  brief: bool = False,
  **kwargs: Any,
) -> Graph:
  """Traces a network whose bit-widths are integers.

  Args:
    model: a linen module, with `QuantConv` and `QuantDense`; what `quantize_model` made, of an NNX model what
      `nnx_adapter.functional` makes of that; or anything else with `apply(variables, *inputs, **kwargs)`.
    variables: its collections `params`, `bits`, and others.
    inputs: an example of what it is called with, as for `example_of`.
    batch_axes: as for `calls.call_of`.
    call: what `call_of` gives of inputs and keyword arguments, where it is known.
    brief: whether large constants that follow from a few numbers, such as masks and tables of positions, stay the
      operations that make them, see `recipes`, instead of arrays.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: one sentence: fractional bits, pruned channels that are still there, or an operation that cannot be
      exported.
  """
  check_integers(variables.get('bits', {}))
  call = call_of(model, inputs, kwargs, batch_axes) if call is None else call
  graph, note = for_any_number(call, lambda number: _captured(model, variables, call, number, brief=brief))
  return dataclasses.replace(graph, note=note)


def outline(model: Any, variables: Any, inputs: Any, *, batch_axes: Any = 0, **kwargs: Any) -> Graph:
  """The graph of a network as far as it follows from shapes: each real constant is 1, and kernels have no codes.

  Nothing of the network is computed, so that fractional bits and channels that can be pruned are no matter.

  Args:
    model, inputs, batch_axes, **kwargs: as for `capture`.
    variables: the shapes of its collections.
  """
  ones = lambda x: np.broadcast_to(np.ones((), x.dtype), x.shape)
  call = call_of(model, inputs, kwargs, batch_axes)
  given = jax.tree.map(ones, variables)
  return for_any_number(call, lambda number: _captured(model, given, call, number, of_shapes=True))[0]


def _captured(
  model: Any, variables: Mapping[str, Any], call: Call, number: Any, *, of_shapes: bool = False, brief: bool = False
) -> Graph:
  def replacement(module: Any, which: str, x: jax.Array, bits: Any, alpha: Any, kept: Any = None) -> jax.Array:
    name = '/'.join(module.path)
    operands = [jnp.asarray(bits, jnp.float32), *(() if alpha is None else (alpha,))]
    if which == 'input':
      return _quantize_p.bind(x, *operands, layer=name, quant=module.quant)
    if kept is not None:
      operands.append(kept)
    settings = {'layer': name, 'quant': module.quant, 'has_alpha': alpha is not None}
    return _kernel_p.bind(x, *operands, **settings)

  def network(*arrays: jax.Array) -> Any:
    args, kwargs = call.with_arrays(arrays)
    return applied(model)(variables, *args, **kwargs)

  shapes = call.shapes(number)
  with (
    layers.replace_quantizers(replacement),
    conv.always_general(),
    interpreter.unrolled_loops(MOST_PASSES),
  ):
    closed, results = jax.make_jaxpr(network, return_shape=True)(*shapes)
  reader = _Reader(call.names, of_shapes, brief)
  inputs = [
    Input(name=name, shape=tuple(size_of(size) for size in x.shape), dtype=jnp.dtype(x.dtype).name)
    for name, x in zip(call.names, shapes, strict=True)
  ]
  with jax.ensure_compile_time_eval():  # also within a program that is traced
    outputs = reader.read(closed.jaxpr, closed.consts, [x.name for x in inputs], '')
  if not outputs:
    raise ValueError(f'{type(model).__name__} gives no arrays: export a network that gives some')
  graph = Graph(
    nodes=tuple(reader.nodes),
    inputs=tuple(inputs),
    outputs=tuple(reader.name(output) for output in outputs),
    output_names=named_results(results),
  )
  return without_dead_nodes(graph)


class _Reader:
  """Reads a jaxpr into nodes; what is known already is an array, what is not is the name of a value.

  With `of_shapes` real numbers that are known are ones, see `outline`; with `brief` large ones are computed if they can
  be, see `recipes`.
  """

  def __init__(self, inputs: Sequence[str], of_shapes: bool, brief: bool):
    self.nodes: list[Node] = []
    self._count = 0  # of those that are not known
    self._of_shapes = of_shapes
    self._recipes = Recipes() if brief else None
    self._taken = set(inputs)
    self._kernels: dict[Any, str] = {}

  def name(self, value: Any) -> str:
    """The name of a value; a known one becomes a node."""
    value = self._brief(value)
    return value if isinstance(value, str) else self._node('constant', (value,), value, {})

  def _brief(self, value: Any) -> Any:
    """A value that an operation takes: as it is, or the name of one that is computed."""
    if self._recipes is None or isinstance(value, str):
      return value
    return self._recipes.written(value, self._computed)

  def _node(self, op: str, inputs: Sequence[Any], aval: Any, params: Mapping[str, Any], place: str = '') -> str:
    self._count += 1
    return self._add(f'{op}_{self._count - 1}', op, [self._brief(x) for x in inputs], aval, params, place)

  def _computed(self, op: str, inputs: Sequence[Any], array: Any, params: Mapping[str, Any]) -> str:
    """A node of a known array, whose name moves no other's: those of both ways to capture are the same."""
    return self._add(f'{op}_known_{len(self.nodes) - self._count}', op, inputs, array, params)

  def _add(
    self, name: str, op: str, inputs: Sequence[Any], aval: Any, params: Mapping[str, Any], place: str = ''
  ) -> str:
    while name in self._taken:
      name += '_'
    shape = tuple(size_of(size) for size in aval.shape)
    dtype = jnp.dtype(aval.dtype).name
    self.nodes.append(
      Node(op=op, inputs=tuple(inputs), output=name, shape=shape, dtype=dtype, params=params, place=place)
    )
    return name

  def read(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], place: str) -> list[Any]:
    """The values of a jaxpr's outputs."""
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def get(atom: Any) -> Any:
      if not isinstance(atom, core.Literal):
        return known[atom]
      aval: Any = atom.aval
      return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
      results = self._equation(equation, [get(atom) for atom in equation.invars], place)
      known.update(zip(equation.outvars, results, strict=True))
    return [get(atom) for atom in jaxpr.outvars]

  def _equation(self, equation: Any, values: list[Any], place: str) -> list[Any]:
    op, params = equation.primitive.name, equation.params
    place = modules_around(place, str(equation.source_info.name_stack))
    if op in CALLS and op not in _OUTER:
      return self.read(*inner_program(equation), values, place)
    if op in ('quantize', 'kernel'):
      return [getattr(self, f'_{op}')(equation.outvars[0].aval, values, place, **params)]
    if op in _SAME:
      return values
    if op == 'cond' and not isinstance(values[0], str):
      branches = params['branches']
      branch = branches[int(np.clip(values[0], 0, len(branches) - 1))]
      return self.read(branch.jaxpr, branch.consts, values[1:], place)
    if op == 'dim_as_value':
      size = size_of(params['dim'])
      return [self._node(op, (), equation.outvars[0].aval, {'shape': (size,)}, place) if size < 0 else np.int32(size)]
    of_batch = any(size_of(size) < 0 for v in equation.outvars for size in v.aval.shape)
    known = not any(isinstance(value, str) for value in values)
    if known and not of_batch and not _has_quantizers(equation):
      if self._of_shapes and all(jnp.issubdtype(out.aval.dtype, jnp.floating) for out in equation.outvars):
        return [np.broadcast_to(np.ones((), out.aval.dtype), out.aval.shape) for out in equation.outvars]
      results = [_array(x) for x in interpreter.bind(equation, [jnp.asarray(value) for value in values])]
      if self._recipes is not None:
        self._recipes.note(equation, values, results)
      return results
    simpler = lowering.simpler(equation, values, MOST_PASSES)
    if simpler is not None:
      shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
      closed = jax.make_jaxpr(simpler)(*shapes)
      return self.read(closed.jaxpr, closed.consts, values, place)
    if op == 'gather' and (window := self._window(equation, values)) is not None:
      return [window]
    name = op.replace('-', '_')
    if name in ops.SEVERAL:
      plain = dict(plain_params(params))
      return [
        self._node(name, values, out.aval, {**plain, 'index': i}, place) for i, out in enumerate(equation.outvars)
      ]
    if name not in ops.OPS or len(equation.outvars) > 1:
      raise ValueError(_refusal(equation, place))
    return [self._node(name, values, equation.outvars[0].aval, dict(plain_params(params)), place)]

  def _window(self, equation: Any, values: list[Any]) -> str | None:
    """A gather of one window at a known place, such as `x[:, 0]`, as the slice that it is; `None` for others."""
    x, indices = values
    operand, sizes = equation.invars[0].aval, equation.params['slice_sizes']
    numbers = equation.params['dimension_numbers']
    if isinstance(indices, str) or np.ndim(indices) != 1:
      return None
    at = dict(zip(numbers.start_index_map, np.asarray(indices).tolist(), strict=True))
    for axis, start in at.items():
      if size_of(operand.shape[axis]) < 0 or not 0 <= start <= operand.shape[axis] - sizes[axis]:
        return None
    starts = tuple(at.get(axis, 0) for axis in range(len(sizes)))
    limits = tuple(size_of(start + size) for start, size in zip(starts, sizes, strict=True))
    params = {'start_indices': starts, 'limit_indices': limits, 'strides': None}
    window = self._node('slice', (x,), jax.ShapeDtypeStruct(sizes, operand.dtype), params)
    dimensions = {'dimensions': tuple(numbers.collapsed_slice_dims)}
    return (
      self._node('squeeze', (window,), equation.outvars[0].aval, dimensions) if any(dimensions.values()) else window
    )

  def _quantize(self, aval: Any, values: list[Any], place: str, *, layer: str, quant: QuantConfig) -> Any:
    x, bits, alpha = values
    for value in (bits, alpha):
      if isinstance(value, str):
        raise ValueError(f'{layer} has bits or a clip that depend on the input: only stablehlo can have them')
    grid = input_grid(quant, int(bits), alpha)
    return self._node('quantize', (self.name(x),), aval, {'layer': layer, 'grid': grid}, place)

  def _kernel(
    self, aval: Any, values: list[Any], place: str, *, layer: str, quant: QuantConfig, has_alpha: bool
  ) -> Any:
    if any(isinstance(value, str) for value in values):
      raise ValueError(f'{layer} has a kernel that depends on the input: only stablehlo can have it')
    if len(values) > 2 + has_alpha and not self._of_shapes:
      raise ValueError(f'{layer} has channels that can be pruned: take them away with compact.compact, then export')
    whole = [] if self._of_shapes else [np.asarray(values[0]).astype(np.float32), *map(np.asarray, values[1:])]
    key = (layer, quant, *(_digest(array) for array in whole))
    if key not in self._kernels:  # the same in each pass of a loop, and at each place that uses it
      codes: dict[str, Kernel] = {} if self._of_shapes else {'kernel': kernel_codes(quant, *whole)}
      of_codes = jax.ShapeDtypeStruct(aval.shape, np.float32)
      self._kernels[key] = self._node('kernel', (), of_codes, {'layer': layer, **codes}, place)
    found = self._kernels[key]
    if aval.dtype == np.float32:
      return found
    dtype = jnp.dtype(aval.dtype).name
    return self._node('convert_element_type', (found,), aval, {'new_dtype': dtype}, place)


def _refusal(equation: Any, place: str) -> str:
  op = equation.primitive.name
  what = f'the operation {op!r}{f" in {place}" if place else ""}'
  if op == 'scan':
    what += f', a loop of {equation.params["length"]:,} passes where at most {MOST_PASSES} are unrolled,'
  if op == 'while':
    what += ', a loop whose length depends on the inputs,'
  return f'{what} cannot be exported as packed, qonnx or onnx: export with --format stablehlo, which takes all of them'


def _has_quantizers(equation: Any) -> bool:
  """Whether an equation holds quantizers, which are read and never run."""
  found = equation.primitive.name in ('quantize', 'kernel')
  inner = [getattr(x, 'jaxpr', x) for x in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns'))]
  return found or any(_has_quantizers(e) for jaxpr in inner for e in getattr(jaxpr, 'eqns', ()))


def _array(x: Any) -> Any:
  """A known value: a NumPy array, but for random keys."""
  return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)


def _digest(array: np.ndarray) -> tuple:
  return array.shape, array.dtype.str, hashlib.sha1(np.ascontiguousarray(array).tobytes()).hexdigest()
