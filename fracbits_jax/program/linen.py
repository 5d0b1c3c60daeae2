"""A linen network that was written without quantization, with fractional bits wherever it multiplies with a weight."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.layers.examples import arguments_of, example_of
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import calibration, collections, network
from fracbits_jax.program.network import Network
from fracbits_jax.program.quantized import QuantizedNetwork
from fracbits_jax.program.rules import Rules
from fracbits_jax.program.trace import Program, Tracer

_OF_APPLY = ('mutable', 'capture_intermediates')  # arguments that `init` does not take


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedModel(QuantizedNetwork):
  """A quantized linen network: `init` and `apply` with the arguments of linen's own.

  Attributes:
    model: the network as it was written.
  """

  model: nn.Module

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The variables of the float network with random parameters, its ranges and its bit-widths.

    Args:
      rngs, *args, **kwargs: as of `nn.Module.init`.
    """
    variables = self.model.init(rngs, *args, **kwargs)
    return self.variables(variables, args, kwargs, calibrated=False, rngs=rngs)

  def variables(
    self,
    variables: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    calibrated: bool,
    rngs: Any = None,
    bits: Any = None,
  ) -> dict[str, Any]:
    """The variables of the float network with ranges, calibrated on these arguments or not, and bit-widths."""
    params, others, kwargs = _arguments(variables, _some(rngs), _changing(variables, kwargs))
    call = (self.network, params, others, args, kwargs)
    if not calibrated:
      return self._with_ranges(variables, calibration.initial_ranges(*call))
    given = collections.given_bits(self.network, bits)
    return self._with_ranges(variables, calibration.best_ranges(*call, given), given)

  def shapes(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, or shapes of arrays, that stand for the variables where values are no matter."""
    variables, _ = _shapes(self.model, args, kwargs)
    return self._with_ranges(variables, calibration.unit_ranges(self.network))

  def _with_ranges(self, variables: Mapping[str, Any], ranges: Any, bits: Any = None) -> dict[str, Any]:
    return {
      **{name: value for name, value in variables.items() if name not in ('params', 'bits')},
      'params': collections.with_ranges(variables.get('params', {}), ranges, self.network.shapes),
      'bits': collections.bits_tree(network.initial_bits(self.network) if bits is None else bits),
    }

  def from_float(
    self, variables: Mapping[str, Any], inputs: Any, *, bits: Any = None, rngs: Any = None, **kwargs: Any
  ) -> dict[str, Any]:
    """`networks.from_float`; `rngs` as of `nn.Module.apply`, for calls that draw."""
    collections.check_parameters(self.network, variables['params'])
    return self.variables(variables, arguments_of(inputs), kwargs, calibrated=True, rngs=rngs, bits=bits)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the network gives.

    Args:
      variables: `params` with the ranges, `bits`, and whatever else the network has.
      *args, **kwargs: as of `nn.Module.apply`; a stream `bits` among `rngs` draws the bit-widths of configurations that
        are stochastic.

    Raises:
      ValueError: bit-widths that are missing or are those of another network, or a call that uses a weight in a way
        that `quantize_model` has not seen.
    """
    rngs = kwargs.pop('rngs', None)
    floats, ranges = collections.without_ranges(self.network, variables.get('params', {}), self.network.shapes)
    params, others, kwargs = _arguments({**variables, 'params': floats}, rngs, kwargs)
    key = rngs.get('bits') if isinstance(rngs, Mapping) else None
    of_weights = collections.of_weights(self.network, ranges, variables.get('bits', {}), key)
    return self.network.run(params, others, args, kwargs, of_weights)

  def program_of(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Network, Program]:
    """The network, and its program for a call with arguments of these shapes."""
    kwargs = dict(kwargs)
    variables, rngs = _shapes(self.model, args, kwargs, kwargs.pop('rngs', None))
    params, others, kwargs = _arguments(variables, rngs, _changing(variables, kwargs))
    return self.network, self.network.tracer.trace(params, others, args, kwargs)[0]


def _arguments(
  variables: Mapping[str, Any], rngs: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
  """Parameters, everything else that is stored or random, and arguments, as the traced function takes them."""
  others = {name: value for name, value in variables.items() if name not in ('params', 'bits')}
  if isinstance(rngs, Mapping):
    rngs = {name: key for name, key in rngs.items() if name not in ('params', 'bits')}
  return variables.get('params', {}), {**others, 'rngs': rngs}, kwargs


def _function(model: nn.Module) -> Any:
  def function(params: Any, others: Any, args: Any, kwargs: Any) -> Any:
    others = dict(others)
    rngs = others.pop('rngs')
    return model.apply({'params': params, **others}, *args, rngs=rngs, **kwargs)

  return function


def quantize_model(
  model: nn.Module,
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None,
  edge_bits: int | None,
  rngs: Any = None,
  **kwargs: Any,
) -> QuantizedModel:
  """`networks.quantize_model` for a linen network."""
  if isinstance(getattr(model, 'quant', None), QuantConfig):
    raise ValueError(
      f'{type(model).__name__} has quantized layers of its own: give it with quant=None, as a float network'
    )
  args = example_of(inputs)
  variables, rngs = _shapes(model, args, kwargs, rngs)
  params, others, kwargs = _arguments(variables, rngs, _changing(variables, kwargs))
  found = network.quantize(
    Tracer(_function(model), type(model).__name__), params, others, args, kwargs, rules, default, edge_bits
  )
  return QuantizedModel(model=model, network=found)


def _shapes(model: nn.Module, args: tuple, kwargs: Mapping[str, Any], rngs: Any = None) -> tuple[Any, Any]:
  """The shapes of the variables that a call makes, and random streams for it."""
  rngs = _some(rngs)
  to_init = {name: value for name, value in kwargs.items() if name not in _OF_APPLY}
  streams = {'params': jax.random.key(0), **rngs} if isinstance(rngs, Mapping) else rngs
  return jax.eval_shape(lambda: model.init(streams, *_made(args), **_made(to_init))), rngs


def _made(shapes: Any) -> Any:
  """Zeros of these shapes."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, shapes)


def _changing(variables: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of a call that may change every collection but the parameters, as those of a training do."""
  return {'mutable': [name for name in variables if name != 'params'] or False, **kwargs}


def _some(rngs: Any) -> Any:
  """Random streams for a call whose numbers do not matter."""
  return jax.random.key(0) if rngs is None else rngs
