"""A network as a graph of a few operations: what every export begins with.

The network is traced once, for any number of images. Whatever does not depend on the input is computed here and now;
what is left are operations of `jax.lax`, quantizers of inputs, and quantized kernels with their integer codes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fracbits_jax import layers
from fracbits_jax.export import ops
from fracbits_jax.export.grid import Kernel, input_grid, kernel_codes
from fracbits_jax.fast import conv
from fracbits_jax.layers import QuantConfig

_INLINE = {'jit', 'pjit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call', 'remat', 'checkpoint'}
_CONTROL = {'scan', 'while', 'cond', 'platform_index'}

_quantize_p = core.Primitive('quantize')
_kernel_p = core.Primitive('kernel')
for _primitive in (_quantize_p, _kernel_p):
  _primitive.def_abstract_eval(lambda x, *rest, **params: x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
  """One operation.

  Attributes:
    op: `quantize`, `kernel`, or the name of an operation of `jax.lax`, see `ops.OPS`.
    inputs: names of values, or arrays.
    output: name of the value that it makes.
    shape: of that value; -k stands for k times the number of images.
    dtype: of that value, as NumPy names it.
    params: what the operation takes beside its inputs: numbers, strings and tuples of them, with -k as in `shape`. Of
      `quantize` they are `layer` (its name) and `grid` (a `Grid`), of `kernel` `layer` and `kernel` (a `Kernel`).
  """

  op: str
  inputs: tuple[Any, ...]
  output: str
  shape: tuple[int, ...]
  dtype: str
  params: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
  """A network.

  Attributes:
    nodes: the operations, each behind those that it needs.
    input: name of the input.
    input_shape: its shape, -1 for the number of images.
    input_dtype: its dtype, as NumPy names it.
    output: name of the output.
  """

  nodes: tuple[Node, ...]
  input: str
  input_shape: tuple[int, ...]
  input_dtype: str
  output: str

  def consumers(self) -> dict[str, list[Node]]:
    """The nodes that read each value."""
    found: dict[str, list[Node]] = {}
    for node in self.nodes:
      for name in dict.fromkeys(x for x in node.inputs if isinstance(x, str)):
        found.setdefault(name, []).append(node)
    return found

  def producers(self) -> dict[str, Node]:
    """The node that makes each value; the input has none."""
    return {node.output: node for node in self.nodes}


def capture(model: Any, variables: Mapping[str, Any], inputs: Any, **kwargs: Any) -> Graph:
  """Traces a network whose bit-widths are integers.

  Args:
    model: a linen module called as `model(inputs, **kwargs)`, with `QuantConv`, `QuantDense` or layers that
      `quantize_model` has quantized; or what `nnx_adapter.functional` makes of an NNX model.
    variables: its collections `params`, `bits`, and others.
    inputs: an example, or a `jax.ShapeDtypeStruct`, whose leading axis counts the images.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: one sentence: fractional bits, pruned channels that are still there, or an operation that cannot be
      exported.
  """
  _check_integers(variables.get('bits', {}))
  number, *rest = jax.export.symbolic_shape('n' + ''.join(f', {size}' for size in inputs.shape[1:]))
  example = jax.ShapeDtypeStruct((number, *rest), inputs.dtype)

  def replacement(module: Any, which: str, x: jax.Array, bits: Any, alpha: Any, kept: Any = None) -> jax.Array:
    name = '/'.join(module.path)
    operands = [jnp.asarray(bits, jnp.float32), *(() if alpha is None else (alpha,))]
    if which == 'input':
      return _quantize_p.bind(x, *operands, layer=name, quant=module.quant)
    if kept is not None:
      operands.append(kept)
    settings = {'layer': name, 'quant': module.quant, 'has_alpha': alpha is not None}
    return _kernel_p.bind(x, *operands, **settings)

  with layers.replace_quantizers(replacement), conv.always_general():
    closed = jax.make_jaxpr(lambda x: model.apply(variables, x, **kwargs))(example)
  if len(closed.out_avals) != 1:
    raise ValueError(f'{type(model).__name__} gives {len(closed.out_avals)} arrays: export a network that gives one')
  reader = _Reader()
  (output,) = reader.read(closed.jaxpr, closed.consts, ['input'])
  shape = (-1, *inputs.shape[1:])
  graph = Graph(
    nodes=tuple(reader.nodes),
    input='input',
    input_shape=shape,
    input_dtype=jnp.dtype(inputs.dtype).name,
    output=reader.name(output),
  )
  return _without_dead_nodes(graph)


def evaluate(
  graph: Graph, inputs: jax.Array | np.ndarray, keep: Sequence[str] = ()
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """What a graph gives in floating point, and the values named in `keep`; it may be jitted."""
  values = {graph.input: jnp.asarray(inputs)}
  read = lambda x: values[x] if isinstance(x, str) else jnp.asarray(x)
  for node in graph.nodes:
    values[node.output] = ops.apply(node.op, node.params, [read(x) for x in node.inputs], len(inputs))
  return values[graph.output], {name: values[name] for name in keep}


def _check_integers(bits: Any) -> None:
  for path, value in jax.tree_util.tree_leaves_with_path(bits):
    if (np.asarray(value) != np.round(value)).any():
      name = '/'.join(str(key.key) for key in path)
      raise ValueError(f'{name} has fractional bits: export after policy.discretize, or a run that has finished')


class _Reader:
  """Reads a jaxpr into nodes; what is known already is a NumPy array, what is not is the name of a value."""

  def __init__(self):
    self.nodes: list[Node] = []

  def name(self, value: Any) -> str:
    """The name of a value; a known one becomes a node."""
    if isinstance(value, str):
      return value
    return self._node('constant', (value,), value, {})

  def _node(self, op: str, inputs: Sequence[Any], aval: Any, params: Mapping[str, Any]) -> str:
    name = f'{op}_{len(self.nodes)}'
    shape = tuple(_size(size) for size in aval.shape)
    dtype = np.dtype(aval.dtype).name
    self.nodes.append(Node(op=op, inputs=tuple(inputs), output=name, shape=shape, dtype=dtype, params=params))
    return name

  def read(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The values of a jaxpr's outputs."""
    known = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def get(atom: Any) -> Any:
      if not isinstance(atom, core.Literal):
        return known[atom]
      aval: Any = atom.aval
      return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
      results = self._equation(equation, [get(atom) for atom in equation.invars])
      known.update(zip(equation.outvars, results, strict=True))
    return [get(atom) for atom in jaxpr.outvars]

  def _equation(self, equation: Any, values: list[Any]) -> list[Any]:
    op, params = equation.primitive.name, equation.params
    if op in _INLINE:
      inner = next(params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in params)
      jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, 'consts') else (inner, ())
      return self.read(jaxpr, consts, values)
    aval = equation.outvars[0].aval
    if op in ('quantize', 'kernel'):
      return [getattr(self, f'_{op}')(aval, values, **params)]
    if op in ('name', 'stop_gradient', 'copy', 'copy_p', 'optimization_barrier'):
      return values
    of_batch = any(_size(size) < 0 for v in equation.outvars for size in v.aval.shape)
    if not of_batch and not any(isinstance(value, str) for value in values):
      results = equation.primitive.bind(*map(jnp.asarray, values), **params)
      return [np.asarray(x) for x in results] if equation.primitive.multiple_results else [np.asarray(results)]
    if op == 'gather' and (window := self._window(equation, values)) is not None:
      return [window]
    if op not in ops.OPS or len(equation.outvars) > 1:
      raise ValueError(f'the network has an operation {op!r} that cannot be exported: only stablehlo takes all of them')
    return [self._node(op, values, aval, dict(_plain_params(params)))]

  def _window(self, equation: Any, values: list[Any]) -> str | None:
    """A gather of one window at a known place, such as `x[:, 0]`, as the slice that it is; `None` for others."""
    x, indices = values
    operand, sizes = equation.invars[0].aval, equation.params['slice_sizes']
    numbers = equation.params['dimension_numbers']
    if isinstance(indices, str) or np.ndim(indices) != 1:
      return None
    at = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    for axis, start in at.items():
      if _size(operand.shape[axis]) < 0 or not 0 <= start <= operand.shape[axis] - sizes[axis]:
        return None
    starts = tuple(at.get(axis, 0) for axis in range(len(sizes)))
    limits = tuple(_size(start + size) for start, size in zip(starts, sizes, strict=True))
    params = {'start_indices': starts, 'limit_indices': limits, 'strides': None}
    window = self._node('slice', (x,), jax.ShapeDtypeStruct(sizes, operand.dtype), params)
    dimensions = {'dimensions': tuple(numbers.collapsed_slice_dims)}
    return (
      self._node('squeeze', (window,), equation.outvars[0].aval, dimensions) if any(dimensions.values()) else window
    )

  def _quantize(self, aval: Any, values: list[Any], *, layer: str, quant: QuantConfig) -> Any:
    x, bits, alpha = values
    for value in (bits, alpha):
      if isinstance(value, str):
        raise ValueError(f'{layer} has bits or a clip that depend on the input, which cannot be exported')
    grid = input_grid(quant, int(bits), float(alpha))
    return self._node('quantize', (self.name(x),), aval, {'layer': layer, 'grid': grid})

  def _kernel(self, aval: Any, values: list[Any], *, layer: str, quant: QuantConfig, has_alpha: bool) -> Any:
    if any(isinstance(value, str) for value in values):
      raise ValueError(f'{layer} has a kernel that depends on the input, which cannot be exported')
    if len(values) > 2 + has_alpha:
      raise ValueError(f'{layer} has channels that can be pruned: take them away with compact.compact, then export')
    kernel: Kernel = kernel_codes(quant, *values)
    return self._node('kernel', (), aval, {'layer': layer, 'kernel': kernel})


def _size(size: Any) -> int:
  """A dimension as an integer; k times the number of images as -k."""
  if isinstance(size, int | np.integer):
    return int(size)
  once, twice = (int(size._evaluate({'n': count})) for count in (1, 2))
  if twice != 2 * once:
    raise ValueError(f'an array has a side of {size} for n images: only multiples of n can be exported')
  return -once


def _plain_params(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for key, value in params.items():
    try:
      plain = _plain(value)
    except TypeError:
      continue  # shardings, precisions and the like: nothing that an exported graph depends on
    if plain is not None:
      yield key, plain


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, bool | float | str):
    return value
  if isinstance(value, jax.lax.GatherScatterMode):
    return value.name.lower()
  if isinstance(value, tuple) and hasattr(value, '_asdict'):
    return {key: _plain(entry) for key, entry in value._asdict().items()}
  if isinstance(value, tuple | list):
    return tuple(_plain(entry) for entry in value)
  if isinstance(value, np.dtype | type) or (hasattr(value, 'dtype') and not hasattr(value, 'shape')):
    return jnp.dtype(value).name
  if isinstance(value, int | np.integer) or type(value).__module__.endswith('shape_poly'):
    return _size(value)
  if dataclasses.is_dataclass(value):
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  raise TypeError(value)


def _without_dead_nodes(graph: Graph) -> Graph:
  needed, kept = {graph.output}, []
  for node in reversed(graph.nodes):
    if node.output in needed:
      kept.append(node)
      needed.update(x for x in node.inputs if isinstance(x, str))
  return dataclasses.replace(graph, nodes=tuple(reversed(kept)))
