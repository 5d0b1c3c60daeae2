"""A plain function of parameters and inputs, as Haiku, Equinox and one's own code have it, with fractional bits."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fracbits_jax.layers.examples import arguments_of, example_of, is_array
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import calibration, collections, network
from fracbits_jax.program.network import Network
from fracbits_jax.program.quantized import QuantizedNetwork
from fracbits_jax.program.rules import Rules
from fracbits_jax.program.trace import Program, Tracer


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedFunction(QuantizedNetwork):
  """A quantized function: a pair of `init` and `apply`.

  Its variables are `params` and `bits`. Where the function's parameters are nested dictionaries, `params` are these,
  with the ranges among them; parameters of any other structure are `params['model']`, with the ranges beside it.

  Attributes:
    function: `function(params, *inputs, **kwargs)`.
    example: shapes of what it is called with: parameters, inputs, keywords.
    is_nested: whether the parameters are nested dictionaries.
  """

  function: Callable[..., Any]
  example: tuple[Any, tuple, Mapping[str, Any]]
  is_nested: bool

  def __iter__(self) -> Iterator[Callable[..., Any]]:
    return iter((self.init, self.apply))

  def init(self, params: Any) -> dict[str, Any]:
    """Variables with these parameters, ranges that are not calibrated, and bit-widths where they start."""
    _, args, kwargs = self.example
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if is_array(x) else x, tree)
    return self._variables(params, calibration.initial_ranges(self.network, params, {}, zeros(args), zeros(kwargs)))

  def from_float(self, variables: Mapping[str, Any], inputs: Any, *, bits: Any = None, **kwargs: Any) -> dict[str, Any]:
    """`networks.from_float`; the variables are `{'params': ...}`."""
    params = variables['params']
    collections.check_parameters(self.network, params)
    given = collections.given_bits(self.network, bits)
    ranges = calibration.best_ranges(self.network, params, {}, arguments_of(inputs), kwargs, given)
    return self._variables(params, ranges, given)

  def shapes(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, or shapes of arrays, that stand for the variables where values are no matter."""
    del args, kwargs
    return self._variables(self.example[0], calibration.unit_ranges(self.network))

  def _variables(self, params: Any, ranges: calibration.Ranges, bits: Any = None) -> dict[str, Any]:
    params = params if self.is_nested else {'model': params}
    return {
      'params': collections.with_ranges(params, ranges, self._parameters()),
      'bits': collections.bits_tree(network.initial_bits(self.network) if bits is None else bits),
    }

  def apply(self, variables: Mapping[str, Any], *args: Any, rngs: Any = None, **kwargs: Any) -> Any:
    """What the function gives for inputs; a key `bits` among `rngs` draws the bit-widths of stochastic ones.

    Raises:
      ValueError: as `linen.QuantizedModel.apply`.
    """
    params, ranges = collections.without_ranges(self.network, variables['params'], self._parameters())
    params = params if self.is_nested else params['model']
    key = rngs.get('bits') if isinstance(rngs, Mapping) else None
    of_weights = collections.of_weights(self.network, ranges, variables.get('bits', {}), key)
    return self.network.run(params, {}, args, kwargs, of_weights)

  def _parameters(self) -> set[str]:
    """The paths at which parameters and not modules lie, as far as ranges lie beside them."""
    return set(self.network.shapes) if self.is_nested else set()

  def program_of(self, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Network, Program]:
    """The network, and its program for a call with arguments of these shapes."""
    return self.network, self.network.tracer.trace(self.example[0], {}, args, kwargs)[0]


def quantize_model(
  function: Callable[..., Any],
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None,
  edge_bits: int | None,
  params: Any = None,
  **kwargs: Any,
) -> QuantizedFunction:
  """`networks.quantize_model` for `function(params, *inputs, **kwargs)`; `params` are arrays or their shapes."""
  if params is None:
    raise ValueError(
      f'{getattr(function, "__name__", function)!r} is a function, and its parameters are not known: give them, or '
      'their shapes, as params=...; a linen or an NNX module needs none'
    )
  shape_of = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) if is_array(x) else x
  example = (jax.tree.map(shape_of, params), example_of(inputs), kwargs)
  tracer = Tracer(lambda params, others, args, kwargs: function(params, *args, **kwargs))
  found = network.quantize(tracer, example[0], {}, example[1], kwargs, rules, default, edge_bits)
  return QuantizedFunction(function=function, network=found, example=example, is_nested=_is_nested(params))


def _is_nested(tree: Any) -> bool:
  """Whether a tree consists of dictionaries with names as keys, down to its arrays."""
  if not isinstance(tree, Mapping):
    return is_array(tree)
  return all(isinstance(key, str) and _is_nested(value) for key, value in tree.items())
