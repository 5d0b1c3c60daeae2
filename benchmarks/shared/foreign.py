"""A network that others wrote, and the same quantized, as functions of what is asked here: parameters, bit-widths."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from fracbits_jax import cost, from_float, quantize_model
from fracbits_jax.layers import QuantConfig
from fracbits_jax.layers.examples import is_array
from fracbits_jax.program import networks, nnx_adapter
from fracbits_jax.program.network import Network

EVERYWHERE = QuantConfig(scheme='lsq', choices=range(1, 17), init_bits=8)


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign:
  """A network and one call of it.

  Attributes:
    model: a linen or an NNX module, or a function of parameters and inputs.
    inputs: what it is called with.
    variables: of a linen module its variables, of a function `{'params': ...}`; an NNX module has its own.
    call: keyword arguments of the call.
    apply: further ones, that linen's `apply` alone has.
    rngs: of the call, where it draws.
    batch_axes: as of `cost.trace`.
    silent: bit-widths whose derivative is zero by what the network says, such as a branch that is not taken.
  """

  model: Any
  inputs: tuple[Any, ...]
  variables: Any = None
  call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  apply: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rngs: Any = None
  batch_axes: Any = 0
  silent: tuple[str, ...] = ()

  @property
  def with_rngs(self) -> dict[str, Any]:
    """Keyword arguments of the call, with its random streams where it has any."""
    return {**self.call, **({} if self.rngs is None else {'rngs': self.rngs})}

  def in_float(self) -> tuple[Callable[[Any, Any], Any], dict[str, Any], Any]:
    """The network as a function of its parameters and everything it is called with, and these; parameters by path."""
    arrays, tree = jax.tree.flatten((self.inputs, dict(self.call)))
    given = [x for x in arrays if is_array(x)]

    def called(values: Any) -> Any:
      values = iter(values)
      return jax.tree.unflatten(tree, [next(values) if is_array(x) else x for x in arrays])

    if isinstance(self.model, nnx.Module):
      graph, state, rest = nnx.split(self.model, nnx.Param, ...)
      flat = dict(nnx.to_flat_state(state))
      paths = {'/'.join(map(str, path)): path for path in flat}

      def of_module(params: Mapping[str, Any], values: Any) -> Any:
        state = nnx.from_flat_state([(path, flat[path].replace(params[name])) for name, path in paths.items()])
        inputs, call = called(values)
        return nnx.merge(graph, state, rest, copy=True)(*inputs, **call)

      return of_module, {name: flat[path][...] for name, path in paths.items()}, given
    leaves, structure = jax.tree_util.tree_flatten_with_path(self.variables['params'])
    names = [_name(path) for path, _ in leaves]

    def function(params: Mapping[str, Any], values: Any) -> Any:
      params, (inputs, call) = jax.tree.unflatten(structure, [params[name] for name in names]), called(values)
      if not isinstance(self.model, nn.Module):
        return self.model(params, *inputs, **call)
      rngs = {} if self.rngs is None else {'rngs': self.rngs}
      return self.model.apply({**self.variables, 'params': params}, *inputs, **call, **rngs, **self.apply)

    return function, {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}, given

  def quantized(self, quant: QuantConfig = EVERYWHERE) -> 'Quantized':
    """The network with bit-widths of its own everywhere, calibrated on the inputs; an NNX module is changed."""
    options = dict(default=quant, edge_bits=None)
    if isinstance(self.model, nnx.Module):
      net = quantize_model(self.model, self.inputs, **options, **self.call)
      return Quantized(self, net, None)
    if isinstance(self.model, nn.Module):
      net = quantize_model(self.model, self.inputs, **options, **self.with_rngs)
      return Quantized(self, net, from_float(net, self.variables, self.inputs, **self.with_rngs))
    net = quantize_model(self.model, self.inputs, params=self.variables['params'], **options, **self.call)
    return Quantized(self, net, from_float(net, self.variables, self.inputs, **self.call))


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
  """What `quantize_model` and `from_float` made of a network.

  Attributes:
    foreign: the network.
    net, variables: what they made; `variables` is `None` for NNX.
  """

  foreign: Foreign
  net: Any
  variables: Any

  @property
  def bits(self) -> Any:
    """The bit-widths as they start."""
    return nnx_adapter.bits(self.net) if self.variables is None else self.variables['bits']

  @property
  def network(self) -> Network:
    """The weights and how they are quantized."""
    return self.net.quantized if self.variables is None else self.net.network

  def program(self) -> Any:
    """The program of the call."""
    return networks.program_of(self.net, self.foreign.inputs, self.foreign.call)[1]

  def table(self) -> tuple[cost.Layer, ...]:
    """The layer table."""
    return cost.trace(self.net, self.foreign.inputs, batch_axes=self.foreign.batch_axes, **self.foreign.call)

  def state(self, init_bits: float | None = None) -> Any:
    """What the network computes with beside its bit-widths; with ranges that are best at `init_bits`, where given."""
    network, net = self.foreign, self.net
    if init_bits is None:
      return nnx.split(net)[1] if self.variables is None else self.variables
    configs = nnx_adapter.configs(net) if self.variables is None else net.configs
    others = {name: dataclasses.replace(quant, init_bits=init_bits) for name, quant in configs.items()}
    if self.variables is not None:
      options = network.with_rngs if isinstance(network.model, nn.Module) else network.call
      return from_float(net.clone(others), network.variables, network.inputs, **options)
    nnx_adapter.set_configs(net, others)
    nnx_adapter.calibrate(net, network.inputs, **network.call)
    nnx_adapter.set_configs(net, configs)
    return nnx.split(net)[1]

  def run(self) -> Callable[[Any, Any], Any]:
    """What the network gives, as a function of its state and its bit-widths."""
    inputs = self.foreign.inputs
    if self.variables is not None:
      keywords = {**self.foreign.with_rngs, **self.foreign.apply}
      return lambda state, bits: self.net.apply({**state, 'bits': bits}, *inputs, **keywords)
    graph, _ = nnx.split(self.net)

    def of_module(state: Any, bits: Any) -> Any:
      model = nnx.merge(graph, state, copy=True)
      nnx_adapter.set_bits(model, bits)
      return model(*inputs, **self.foreign.call)

    return of_module


def _name(path: Any) -> str:
  return '/'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)


def random_like(shapes: Any, seed: int = 0) -> Any:
  """Random values for parameters of these shapes: kernels that keep variances, scales near 1, small biases.

  To run a network's own initialization would take longer than all else.
  """
  rng = np.random.default_rng(seed)

  def leaf(path: Any, shape: Any) -> jax.Array:
    name = _name(path[-1:])
    if len(shape.shape) > 1:
      values = rng.normal(size=shape.shape) / math.sqrt(math.prod(shape.shape[:-1]))
    else:
      values = rng.normal(size=shape.shape) * 0.1
      values = np.exp(values) if name in ('scale', 'weight', 'var') else values
    return jnp.asarray(values, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def linen(model: nn.Module, *inputs: Any, **call: Any) -> Foreign:
  """A linen module and a call of it, with random parameters."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **call))
  return Foreign(model, inputs, random_like(nn.meta.unbox(shapes)), call)


def flat(outputs: Any) -> jax.Array:
  """All real numbers among outputs, one behind the other."""
  leaves = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in leaves])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
  """How a quantized network answers beside the float one.

  Attributes:
    errors: by bit-width everywhere, the distance of the outputs as a share of their norm.
    gradients: by the path of the bit-widths, the largest and the smallest |derivative| of a sum of the outputs, at the
      last bit-width.
  """

  errors: dict[float, float]
  gradients: dict[str, tuple[float, float]]

  @property
  def silent(self) -> list[str]:
    """Bit-widths whose derivative is zero or not finite."""
    return [path for path, (most, least) in self.gradients.items() if not (least > 0 and jnp.isfinite(most))]


def answers(quantized: Quantized, expected: jax.Array, widths: tuple[float, ...] = (8, 16, 3.5)) -> Answers:
  """Runs a quantized network at bit-widths, and differentiates it; one program is compiled.

  Args:
    quantized: the network.
    expected: what it gives in float.
    widths: bit-widths everywhere; the derivative is taken at the last one. For 16 bits the ranges are calibrated anew,
      since those of 8 bits cut off what 16 would keep.
  """
  run = quantized.run()
  weights = jax.random.normal(jax.random.key(17), expected.shape)

  def function(bits: Any, state: Any) -> tuple[jax.Array, jax.Array]:
    y = flat(run(state, bits))
    # A sum of squares is the same for all outputs that are normalized, so one with weights beside it.
    return jnp.sum(weights * y) + jnp.sum(y**2), y

  step = jax.jit(jax.value_and_grad(function, has_aux=True))
  states = {width: quantized.state(16 if width == 16 else None) for width in sorted(widths)}
  errors, gradients = {}, None
  for width in widths:
    bits = jax.tree.map(lambda b, width=width: jnp.full_like(b, width), quantized.bits)
    (_, y), gradients = step(bits, states[width])
    errors[width] = float(jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected))
  found = {}
  for path, value in jax.tree_util.tree_leaves_with_path(gradients):
    found[_name(path)] = (float(jnp.abs(value).max()), float(jnp.abs(value).min()))
  return Answers(errors=errors, gradients=found)
