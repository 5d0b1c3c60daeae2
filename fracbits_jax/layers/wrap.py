"""Networks of quantized layers, such as those that come along: as float networks, from one, with fixed bits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from fracbits_jax.layers import calibrate
from fracbits_jax.layers.examples import arguments_of


def from_float(net: nn.Module, variables: Mapping[str, Any], inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """`networks.from_float` for a network with a field `quant`.

  Args:
    net: the network.
    variables: the float network's: `params`, and further collections, which are taken as they are.
    inputs: real examples of what it is called with, as for `quantize_model`: the clips, and with `lsq` the ranges of
      the kernels, are those that quantize these inputs and these kernels best, by the layer's
      `QuantConfig.calibration`.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: parameters that are missing, are too many or have other shapes.
  """
  inputs = arguments_of(inputs)
  start = nn.meta.unbox(jax.jit(lambda *args: net.init(jax.random.key(0), *args, **kwargs))(*inputs))
  params = _with_parameters(start['params'], nn.meta.unbox(variables['params']))
  configs = calibrate.quant_configs(net, inputs, **kwargs)
  params = calibrate.kernel_ranges(params, start.get('bits', {}), configs)
  samples = calibrate.sample_inputs(without_quantization(net), variables, [inputs], **kwargs)
  params = calibrate.clips(params, start.get('bits', {}), samples, configs)
  given = traverse_util.flatten_dict(dict(variables['params']))  # as they are, with what says how to partition them
  params = traverse_util.unflatten_dict({**traverse_util.flatten_dict(params), **given})
  return {**variables, 'params': params, 'bits': start.get('bits', {})}


def _with_parameters(params: Any, given: Any) -> Any:
  """The parameters of a quantized network with those of a float one."""
  flat, flat_given = (traverse_util.flatten_dict(dict(tree), sep='/') for tree in (params, given))
  new = {name for name in flat if name.endswith('alpha')} - flat_given.keys()
  wrong = sorted((flat.keys() - new) ^ flat_given.keys())
  wrong += sorted(name for name in flat.keys() & flat_given.keys() if flat[name].shape != flat_given[name].shape)
  if wrong:
    raise ValueError(f'the parameters are those of another network: {", ".join(wrong[:5])} do not fit')
  return traverse_util.unflatten_dict({**flat, **flat_given}, sep='/')


def without_quantization(net: Any) -> Any:
  """The float network of a quantized one, with the same parameters less the ranges."""
  return net.clone(quant=None) if isinstance(net, nn.Module) else net.without_quantization()


def with_fixed_bits(net: Any) -> Any:
  """The network whose collection `bits` holds integers, fixed after a search: as fast as one without learned bits.

  Bits that are no integers from 0 to 16 are refused when the network is called; within a program, where their values
  are not known, all that they quantize is not a number.

  Args:
    net: a linen module with a field `quant`, or what `quantize_model` made.
  """
  if not isinstance(net, nn.Module):
    return net.with_fixed_bits()
  return net.clone(quant=net.quant and dataclasses.replace(net.quant, learned=False))
