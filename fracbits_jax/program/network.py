"""A network as a function whose program is run with quantizers before every product with a weight."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from fracbits_jax.fast import conv
from fracbits_jax.layers.linen import OUTPUTS
from fracbits_jax.layers.operands import is_replaced
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import operands
from fracbits_jax.program.interpreter import Interpreter, bind
from fracbits_jax.program.plan import Weight, name_weights
from fracbits_jax.program.rules import Rules, choose_configs, left_by_rule
from fracbits_jax.program.sites import Site
from fracbits_jax.program.trace import Program, Tracer

_OF_TYPES = ('preferred_element_type', 'out_sharding')  # that a convolution has by itself


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A function of (parameters, other variables, arguments) whose weights are quantized where they are used.

  Attributes:
    tracer: gives the function's program for the arguments of a call.
    weights: by name, in the order in which they are used.
    names: the name of each weight by its key.
    configs: how each weight is quantized, by name; `None` for one that stays float.
    program: of the call that it was quantized for.
    left_by_rule: the names of weights that a rule leaves float.
  """

  tracer: Tracer
  weights: Mapping[str, Weight]
  names: Mapping[tuple, str]
  configs: Mapping[str, QuantConfig | None]
  program: Program
  left_by_rule: frozenset[str] = frozenset()
  # Compiled programs, for calls outside of one.
  _runs: dict[Hashable, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

  @property
  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the float network's parameters, by their path."""
    return self.program.shapes

  def quantized(self) -> dict[str, tuple[Weight, QuantConfig]]:
    """The weights that are quantized, with their configurations."""
    found = {}
    for name, weight in self.weights.items():
      quant = self.configs[name]
      if quant is not None:
        found[name] = (weight, quant)
    return found

  def with_configs(self, configs: Mapping[str, QuantConfig | None]) -> 'Network':
    """The network with other configurations; weights that are not named stay float."""
    return dataclasses.replace(self, configs={name: configs.get(name) for name in self.weights})

  def name_of(self, program: Program, site: Site) -> str:
    """The name of the weight that a program uses at a site.

    Raises:
      ValueError: a weight that was not used in the call that the network was quantized for.
    """
    key = program.keys[site.path]
    if key in self.names:
      return self.names[key]
    if site.kind == 'product':
      return f'{site.scope}/product'.strip('/') + ' of another call'  # which stays float
    raise ValueError(
      f'{", ".join(sorted(site.stored.params))} is used in another way than in the call that quantize_model saw: give '
      'it the arguments of this call, such as its method, or call the network as it was called there'
    )

  def run(self, params: Any, others: Any, args: Any, kwargs: Any, variables: Mapping[str, Mapping[str, Any]]) -> Any:
    """What the function gives with quantized weights and inputs.

    Args:
      params, others, args, kwargs: of the function.
      variables: what each weight is quantized with, by name; see `operands.Variables`.
    """
    program, arrays = self.tracer.trace(params, others, args, kwargs)
    run = functools.partial(self._run, program)
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((arrays, variables)))
    if not (traced or is_replaced()):
      run = self.compiled(program, run)
    return jax.tree.unflatten(program.tree, run(arrays, variables))

  def compiled(self, key: Hashable, run: Callable[..., Any]) -> Any:
    """`run`, compiled: the same for the same key, a program and what is done with it."""
    if key not in self._runs:
      self._runs[key] = jax.jit(run)
    return self._runs[key]

  def _run(self, program: Program, arrays: list[Any], variables: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    def prepare(site: Site, value: Any, of_weight: Mapping[str, Any]) -> Any:
      name = self.name_of(program, site)
      quant = self.configs.get(name)
      if quant is None:
        return None
      return operands.quantized_weight(self.weights[name], site, quant, of_weight, value, interpreter.index(site))

    def at_site(
      site: Site, equation: Any, values: list[Any], of_weight: Mapping[str, Any], ready: Any
    ) -> tuple[list[Any], None]:
      name = self.name_of(program, site)
      quant = self.configs.get(name)
      if quant is None:
        return bind(equation, values), None
      weight, values, index = self.weights[name], list(values), interpreter.index(site)
      if site.input is not None:
        values[site.input] = operands.quantized_input(weight, site, quant, of_weight, values[site.input], index)
      value = values[site.weight]
      if ready is None:
        ready = operands.quantized_weight(weight, site, quant, of_weight, value, index)
      values[site.weight] = ready
      results = _multiply(equation, values)
      return [checkpoint_name(y, OUTPUTS) for y in results] if site.input is not None else results, None

    interpreter = Interpreter(program.sites, functools.partial(self.name_of, program), at_site, prepare=prepare)
    return interpreter.run(program.closed.jaxpr, program.closed.consts, arrays, variables)[0]


def _multiply(equation: Any, values: list[Any]) -> list[Any]:
  """What an equation gives for other operands; convolutions by the path that is fast."""
  params = equation.params
  if equation.primitive.name != 'conv_general_dilated' or params['batch_group_count'] != 1:
    return bind(equation, values)
  if params['preferred_element_type'] not in (None, values[0].dtype):
    return bind(equation, values)
  settings = {name: value for name, value in params.items() if name not in ('batch_group_count', *_OF_TYPES)}
  return [conv.conv_general_dilated(*values, **settings)]


def quantize(
  tracer: Tracer,
  params: Any,
  others: Any,
  args: Any,
  kwargs: Any,
  rules: Rules,
  default: QuantConfig | None,
  edge_bits: int | None,
) -> Network:
  """A network that is quantized by rules; the arguments are those of an example call, arrays or their shapes."""
  program, _ = tracer.trace(params, others, args, kwargs)
  weights = name_weights(program.groups, {path: math.prod(shape) for path, shape in program.shapes.items()})
  configs = choose_configs(list(weights.values()), rules, default, edge_bits)
  return Network(
    tracer=tracer,
    weights={weight.name: weight for weight in weights.values()},
    names={key: weight.name for key, weight in weights.items()},
    configs=configs,
    program=program,
    left_by_rule=left_by_rule(list(weights.values()), rules),
  )


def drawn_noise(network: Network, key: jax.Array | None) -> dict[str, dict[str, jax.Array]]:
  """Noise for the learned bit-widths that are drawn, by the name of the weight."""
  if key is None:
    return {}
  found = {}
  for i, (name, (weight, quant)) in enumerate(network.quantized().items()):
    noise = operands.draw_noise(weight, quant, jax.random.fold_in(key, i))
    if noise:
      found[name] = noise
  return found


def initial_bits(network: Network) -> dict[str, dict[str, jax.Array]]:
  """The learned bit-widths where they start, by the name of the weight."""
  found = {name: operands.initial_bits(*pair) for name, pair in network.quantized().items()}
  return {name: bits for name, bits in found.items() if bits}
