"""Networks of quantized layers, such as those that come along: as float networks, from one, with fixed bits."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax.layers import calibrate
from fracbits_jax.layers.examples import arguments_of
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.layers.ranges import range_names


def from_float(
  net: nn.Module, variables: Mapping[str, Any], inputs: Any, *, bits: Any = None, **kwargs: Any
) -> dict[str, Any]:
  """`networks.from_float` for a network with a field `quant`.

  Args:
    net: the network.
    variables: the float network's: `params`, and further collections, which are taken as they are.
    inputs: real examples of what it is called with, as for `quantize_model`: the clips, and with `lsq` the ranges of
      the kernels, are those that quantize these inputs and these kernels best, by the layer's
      `QuantConfig.calibration`.
    bits: the collection `bits` that it has, such as `Policy.bits()`; `None` for the bit-widths at which configurations
      start.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: parameters that are missing, are too many or have other shapes; bits of another network.
  """
  inputs = arguments_of(inputs)
  # Shapes alone: of what an initializer gives nothing would be left.
  start = nn.meta.unbox(jax.eval_shape(lambda *args: net.init(jax.random.key(0), *args, **kwargs), *inputs))
  configs = calibrate.quant_configs(net, inputs, **kwargs)
  params = with_parameters(start['params'], nn.meta.unbox(variables['params']), configs)
  bits = _initial_bits(start.get('bits', {}), configs) if bits is None else _given_bits(start.get('bits', {}), bits)
  has_channels = any(quant.range_kind != 'layer' for quant in configs.values())
  axes = calibrate.output_axes(net, inputs, params, **kwargs) if has_channels else {}
  params = calibrate.kernel_ranges(params, bits, configs, axes)
  samples = calibrate.sample_inputs(without_quantization(net), variables, [inputs], **kwargs)
  params = calibrate.clips(params, bits, samples, configs)
  given = traverse_util.flatten_dict(dict(variables['params']))  # as they are, with what says how to partition them
  params = traverse_util.unflatten_dict({**traverse_util.flatten_dict(params), **given})
  return {**variables, 'params': params, 'bits': bits}


def _initial_bits(shapes: Any, configs: Mapping[str, QuantConfig]) -> dict[str, Any]:
  """The collection `bits` where it starts."""
  bits = {}
  for (*path, which), shape in traverse_util.flatten_dict(shapes).items():
    quant = configs['/'.join(path)]
    allowed = quant.allowed_kernel_bits if which == 'kernel' else quant.allowed_input_bits
    bits[(*path, which)] = jnp.full(shape.shape, np.clip(quant.init_bits, allowed[0], allowed[-1]), jnp.float32)
  return traverse_util.unflatten_dict(bits)


def _given_bits(shapes: Any, bits: Any) -> dict[str, Any]:
  """The collection `bits` that is given, in float32; `ValueError` for that of another network."""
  wanted, given = (traverse_util.flatten_dict(dict(tree), sep='/') for tree in (shapes, bits))
  wrong = sorted(wanted.keys() ^ given.keys())
  wrong += sorted(name for name in wanted.keys() & given.keys() if wanted[name].shape != np.shape(given[name]))
  if wrong:
    raise ValueError(f'the bits are those of another network: {", ".join(wrong[:5])} do not fit')
  return traverse_util.unflatten_dict({name: jnp.float32(x) for name, x in given.items()}, sep='/')


def with_parameters(params: Any, given: Any, layers: Iterable[str]) -> Any:
  """The parameters of a quantized network: those of a float one, and ranges of 1.

  Args:
    params: shapes of the quantized network's.
    given: the float network's.
    layers: the paths of the quantized layers.

  Raises:
    ValueError: parameters that are missing, are too many or have other shapes.
  """
  flat, flat_given = (traverse_util.flatten_dict(dict(tree), sep='/') for tree in (params, given))
  new = range_names(layers, flat) - flat_given.keys()
  wrong = sorted((flat.keys() - new) ^ flat_given.keys())
  wrong += sorted(name for name in flat.keys() & flat_given.keys() if flat[name].shape != flat_given[name].shape)
  if wrong:
    raise ValueError(f'the parameters are those of another network: {", ".join(wrong[:5])} do not fit')
  ranges = {name: jnp.ones(flat[name].shape, flat[name].dtype) for name in new}
  return traverse_util.unflatten_dict({**ranges, **flat_given}, sep='/')


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
