"""Fractional bits in an NNX model, wherever its call multiplies with a weight.

The model's class is exchanged for one that extends it and runs its call as a quantized program. So `nnx.jit`,
`nnx.grad`, optimizers and checkpoints see the model that they know, with ranges and `Bits` beside its parameters.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx, traverse_util

from fracbits_jax.layers.examples import arguments_of, example_of
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import calibration, collections, network
from fracbits_jax.program.network import Network
from fracbits_jax.program.rules import DEFAULT, EDGE_BITS, Rules
from fracbits_jax.program.trace import Program, Tracer
from fracbits_jax.quantize import bitwidths

_OF_WEIGHT = ('alpha', 'kernel_alpha', 'bits_kernel', 'bits_input')


class Bits(nnx.Variable):
  """Learned bit-widths: `()`, or `[C_out]` for a weight with one per output channel, behind the axes of a stack."""


class Range(nnx.Param):
  """The range of a weight, `()` or `[C_out]`, or of its inputs, `()` or `[2]`, behind the axes of a stack."""


class Quantized(nnx.Module):
  """Mixin before the class of an NNX model, whose call runs with quantizers.

  Attributes:
    quantized: the network behind the model.
  """

  quantized: Network

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    graph, params, others = _parts(self)
    of_weights = collections.of_weights(self.quantized, _ranges(self), bits(self), None)
    results, changed = self.quantized.run(params, others, (graph, *args), kwargs, of_weights)
    if changed:
      nnx.update(self, _state(changed))
    return results


@functools.cache
def _quantized_class(model: type[nnx.Module]) -> type[Quantized]:
  return type(f'Quantized{model.__name__}', (Quantized, model), {})


def _parts(model: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
  """What a model was written as but for its values, its parameters, and its other variables, each by its path."""
  with _as_written(model):
    graph, state = nnx.split(model)
  params: dict[str, Any] = {}
  others: dict[str, Any] = {}
  for path, variable in nnx.to_flat_state(state):
    (params if isinstance(variable, nnx.Param) else others)['/'.join(map(str, path))] = variable[...]
  return graph, params, others


@contextlib.contextmanager
def _as_written(model: nnx.Module) -> Iterator[None]:
  """The model without ranges and bit-widths, which a transform would map as it maps the module that they lie in."""
  taken = []
  known: Network | None = vars(model).get('quantized')
  for name in known.quantized() if known is not None else ():
    module, prefix = _place(model, name)
    for which in _OF_WEIGHT:
      if isinstance(getattr(module, prefix + which, None), Range | Bits):
        taken.append((vars(module), prefix + which, vars(module).pop(prefix + which)))
  try:
    yield
  finally:
    for attributes, key, variable in taken:
      attributes[key] = variable


def _state(values: Mapping[str, Any]) -> nnx.State:
  """A state from values by path."""
  keys = lambda path: tuple(int(key) if key.isdigit() else key for key in path.split('/'))
  return nnx.State(traverse_util.unflatten_dict({keys(path): value for path, value in values.items()}))


def _function(params: Any, others: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
  """What a model gives, and those of its variables that the call has changed."""
  graph, *args = args
  model = nnx.merge(graph, _state({**params, **others}))
  results = super(Quantized, model).__call__(*args, **kwargs)  # of the class that is extended
  _, params_behind, others_behind = _parts(model)
  before = {**params, **others}
  behind = {**params_behind, **others_behind}
  return results, {path: value for path, value in behind.items() if path in before and value is not before[path]}


def quantize_model(
  model: nnx.Module,
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None = DEFAULT,
  edge_bits: int | None = EDGE_BITS,
  **kwargs: Any,
) -> nnx.Module:
  """`networks.quantize_model` for an NNX model, which is changed in place and returned.

  The clips of the inputs, and with `lsq` the ranges of the weights, are those that quantize `inputs` and the weights as
  they are with the least error: give real examples and a trained model, or call `calibrate` later.
  """
  if isinstance(model, Quantized):
    raise ValueError(f'{type(model).__name__} is quantized already: give the model as it was written')
  own = type(model)
  model.__class__ = _quantized_class(own)
  try:
    graph, params, others = _parts(model)
    tracer = Tracer(_function, own.__name__)
    example = (graph, *example_of(inputs))
    found = network.quantize(tracer, params, others, example, kwargs, rules, default, edge_bits)
  except Exception:
    model.__class__ = own
    raise
  quantized = _checked(model)
  quantized.quantized = found
  _declare(model, found)
  calibrate(model, inputs, **kwargs)
  return model


def _place(model: nnx.Module, name: str) -> tuple[nnx.Module, str]:
  """The module beside whose parameter the variables of a weight lie, and what their names begin with."""
  node: Any = model
  parts = name.split('/')
  for i, part in enumerate(parts):
    inner = node[int(part)] if part.isdigit() else getattr(node, part, None)
    if not isinstance(inner, nnx.Module):
      leaf = i == len(parts) - 1 and isinstance(inner, nnx.Variable)
      return (node, f'{part}_') if leaf else (model, re.sub(r'\W+', '_', name) + '_')
    node = inner
  return node, ''


def _declare(model: nnx.Module, found: Network) -> None:
  """Gives a model the variables that its weights are quantized with."""
  for name, of_weight in network.initial_bits(found).items():
    module, prefix = _place(model, name)
    for which, value in of_weight.items():
      setattr(module, f'{prefix}bits_{which}', Bits(value))


def _variables(model: Quantized) -> Iterator[tuple[str, str, nnx.Variable]]:
  """The ranges and bit-widths of a model: the name of the weight, what they are, and the variable."""
  for name in model.quantized.quantized():
    module, prefix = _place(model, name)
    for which in _OF_WEIGHT:
      variable = getattr(module, prefix + which, None)
      if isinstance(variable, Range | Bits):
        yield name, which, variable


def _ranges(model: Quantized) -> dict[str, dict[str, Any]]:
  """The ranges by the name of the weight."""
  found: dict[str, dict[str, Any]] = {}
  for name, which, variable in _variables(model):
    if isinstance(variable, Range):
      found.setdefault(name, {})[which] = variable[...]
  return found


def calibrate(model: nnx.Module, inputs: Any, **kwargs: Any) -> None:
  """Sets the ranges of inputs and weights to those with the least error at the bit-widths that the model has.

  Args:
    model: of `quantize_model`.
    inputs: real examples of what it is called with, an array or a tuple of them.
    **kwargs: for the call.
  """
  quantized = _checked(model)
  graph, params, others = _parts(quantized)
  own = collections.bits_of_weights(quantized.quantized, bits(quantized))
  ranges = calibration.best_ranges(quantized.quantized, params, others, (graph, *arguments_of(inputs)), kwargs, own)
  for name, of_weight in ranges.items():
    module, prefix = _place(quantized, name)
    for which, value in of_weight.items():
      if hasattr(module, prefix + which):
        getattr(module, prefix + which)[...] = value
      else:
        setattr(module, prefix + which, Range(value))


def _checked(model: Any) -> Quantized:
  if not isinstance(model, Quantized):
    raise ValueError(f'{type(model).__name__} has no bits: give a model that quantize_model has quantized')
  return model


def configs(model: nnx.Module) -> dict[str, QuantConfig]:
  """How each weight is quantized, by its name; those that stay float are absent."""
  return {name: quant for name, (_, quant) in _checked(model).quantized.quantized().items()}


def set_configs(model: nnx.Module, configs: Mapping[str, QuantConfig | None]) -> None:
  """Quantizes with other configurations that need the same variables; weights that are not named stay float."""
  quantized = _checked(model)
  quantized.quantized = quantized.quantized.with_configs(configs)


def bits(model: nnx.Module) -> dict[str, Any]:
  """The learned bit-widths as the collection `bits` that costs, policies and penalties take."""
  found: dict[str, dict[str, Any]] = {}
  for name, which, variable in _variables(_checked(model)):
    if isinstance(variable, Bits):
      found.setdefault(name, {})[which.removeprefix('bits_')] = variable[...]
  return collections.bits_tree(found)


def set_bits(model: nnx.Module, bits: Mapping[str, Any], *, fixed: bool = False) -> None:
  """Sets the bit-widths, such as `Policy.bits()`.

  Args:
    model: of `quantize_model`.
    bits: a collection `bits`.
    fixed: they are integers that stay as they are, so that the model is as fast as one without learned bits.

  Raises:
    ValueError: bits of another network, or fixed bits that are not integers from 0 to 16; names the layer.
  """
  quantized = _checked(model)
  values = collections.bits_of_weights(quantized.quantized, bits)
  for name, which, variable in list(_variables(quantized)):
    if isinstance(variable, Bits):
      try:
        variable[...] = bitwidths.as_bits(values[name][which.removeprefix('bits_')], learned=not fixed)
      except ValueError as error:
        raise ValueError(f'{name}: {error}') from None
  before = configs(quantized)
  after = {name: dataclasses.replace(quant, learned=not fixed) for name, quant in before.items()}
  if after != before:
    set_configs(quantized, after)


@dataclasses.dataclass(frozen=True)
class Functional:
  """An NNX model as linen has it: a function of its variables."""

  graph: nnx.GraphDef

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the model gives with the variables of `functional`; it is not changed."""
    return nnx.merge(self.graph, variables['state'], copy=True)(*args, **kwargs)


def functional(model: nnx.Module) -> tuple[Functional, dict[str, Any]]:
  """A model as a function, and its variables: its `state`, and its `bits` once more for costs and policies."""
  graph, state = nnx.split(model)
  return Functional(graph), {'state': state, 'bits': bits(model)}


def program_of(model: nnx.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Network, Program]:
  """The network behind a model, and its program for a call with arguments of these shapes."""
  quantized = _checked(model)
  graph, params, others = _parts(quantized)
  return quantized.quantized, quantized.quantized.tracer.trace(params, others, (graph, *args), kwargs)[0]


def without_quantization(model: Functional, variables: Mapping[str, Any]) -> tuple[nnx.Module, dict[str, Any]]:
  """The model as it was written, with the values that it has, and those by path.

  Args:
    model, variables: what `functional` gives.
  """
  quantized = _checked(nnx.merge(model.graph, variables['state'], copy=True))
  _, params, others = _parts(quantized)
  for name in quantized.quantized.quantized():
    module, prefix = _place(quantized, name)
    for which in _OF_WEIGHT:
      if isinstance(getattr(module, prefix + which, None), Range | Bits):
        delattr(module, prefix + which)
  del quantized.quantized
  plain: Any = quantized
  plain.__class__ = type(quantized).__mro__[2]
  return plain, {**params, **others}
