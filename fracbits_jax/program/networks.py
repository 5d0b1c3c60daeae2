"""Networks that others wrote, with fractional bits wherever they multiply with a weight."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from fracbits_jax.layers import wrap
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program import coverage, functions, linen
from fracbits_jax.program.network import Network
from fracbits_jax.program.rules import DEFAULT, EDGE_BITS, Rules
from fracbits_jax.program.trace import Program

_LOG = logging.getLogger('fracbits_jax')


def quantize_model(
  model: Any,
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None = DEFAULT,
  edge_bits: int | None = EDGE_BITS,
  **kwargs: Any,
) -> Any:
  """A network as it is, with fractional bit-widths wherever it multiplies with a weight.

  The network's program is traced, and every product of which one operand is computed from parameters alone, whatever
  class or library wrote it, gets a quantizer before both of its operands; every look-up in a table of parameters gets
  one before the table. What is quantized takes the configuration of the first rule whose pattern matches its whole
  name; the rest takes `default`. The first and the last weight, and the inputs of the first, have `edge_bits` unless
  the configuration fixes other ones. Inputs that can be negative, by the operations that make them, are quantized on a
  range with two sides.

  What is quantized and what is not is logged in one line, at the level `INFO`, and is what `str` gives of the result;
  `cost.trace(..., strict=True)` refuses weights that are left out.

  A weight is named after the module that holds its parameter, or after the parameter where the module has several; the
  layers of a scan, and the kernels that one batched product has, are `layers/0/...`, `layers/1/...`. A product of two
  activations, such as those of attention, is quantized where a rule's pattern says `product`.

  The default is the scheme `lsq`, whose ranges are learned. The others map every kernel to [-1, 1] and are for layers
  that have a batch norm behind them.

  Args:
    model: a linen module; an NNX module, which is changed in place; or a function `model(params, *inputs)`, whose
      parameters are given as `params=...`, arrays or their shapes.
    inputs: an example of what it is called with, arrays or their shapes, or a tuple of several.
    rules: pairs of a regular expression and a configuration, or `None` for weights that stay float.
    default: for weights that no rule matches.
    edge_bits: of the first and the last weight, or `None` to treat them as all others.
    **kwargs: for the call, such as `train=False` or linen's `method`.

  Returns:
    For linen an object with `init` and `apply` that take linen's arguments, for NNX the module, for a function a
    `functions.QuantizedFunction`, a pair of `init` and `apply`. Parameters keep their names and shapes; ranges and the
    collection `bits` are added.

  Raises:
    ValueError: a rule that matches no weight, with the names there are; a network without weights.
  """
  quantized = _quantizer_of(model)(model, inputs, rules, default=default, edge_bits=edge_bits, **kwargs)
  network = quantized.quantized if hasattr(quantized, 'quantized') else quantized.network
  _LOG.info('%s', coverage.measure(network, network.program))
  return quantized


def _quantizer_of(model: Any) -> Callable[..., Any]:
  """The function that quantizes networks of this kind."""
  if isinstance(model, nn.Module):
    return linen.quantize_model
  from flax import nnx

  if isinstance(model, nnx.Module):
    from fracbits_jax.program import nnx_adapter

    return nnx_adapter.quantize_model
  if callable(model):
    return functions.quantize_model
  raise ValueError(f'{model!r} is not a network: give a linen or an NNX module, or a function of parameters and inputs')


def from_float(
  net: Any, variables: Mapping[str, Any], inputs: Any, *, bits: Any = None, **kwargs: Any
) -> dict[str, Any]:
  """Variables of a quantized network that starts from a float one.

  Args:
    net: of `quantize_model`, or a network with a field `quant`.
    variables: the float network's: `params`, and further collections, which are taken as they are.
    inputs: real examples of what it is called with, as for `quantize_model`: the clips, and with `lsq` the ranges of
      the weights, are those that quantize these inputs and these weights best, by `QuantConfig.calibration`.
    bits: the collection `bits` that it has, and at which ranges are the best, such as `Policy.bits()`; `None` for the
      bit-widths at which configurations start.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: parameters that are missing, are too many or have other shapes; bits of another network.
  """
  if isinstance(net, nn.Module):
    return wrap.from_float(net, variables, inputs, bits=bits, **kwargs)
  return net.from_float(variables, inputs, bits=bits, **kwargs)


def program_of(net: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Network, Program]:
  """The quantized network behind what `quantize_model` made, and its program for a call.

  Raises:
    ValueError: it was made by something else.
  """
  if hasattr(net, 'program_of'):
    return net.program_of(args, kwargs)
  from flax import nnx

  if isinstance(net, nnx.Module):
    from fracbits_jax.program import nnx_adapter

    return nnx_adapter.program_of(net, args, kwargs)
  raise ValueError(
    f'{type(net).__name__} has no quantized layers, so there is nothing to count: build it from QuantConv and '
    'QuantDense, or give it to quantize_model'
  )
