"""Fractional bits in the layers of an NNX model: the same functions as in linen, with a variable type for the bits.

A layer's class is exchanged for one that extends it by quantization, so `nnx.jit`, `nnx.grad`, optimizers and
checkpoints see the model that they know, with `alpha` (a `nnx.Param`) and `Bits` beside its parameters.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from fracbits_jax.layers import calibrate as calibration
from fracbits_jax.layers.examples import random_like
from fracbits_jax.layers.nnx_layers import LAYERS, Bits, Quantized, quantized_class, quantized_layers, watch_layers
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.layers.rules import DEFAULT, EDGE_BITS, Rules, choose_configs
from fracbits_jax.quantize import bitwidths, lsq


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

  The clips of the inputs, and with `lsq` the ranges of the kernels, are those that quantize `inputs` and the kernels as
  they are with the least squared error: give real examples and a trained model, or call `calibrate` later.
  """
  if not isinstance(model, nnx.Module):
    raise ValueError(f'{model!r} is not a network: give a linen or an NNX module')
  for path, layer in list(nnx.iter_modules(model)):
    if isinstance(layer, LAYERS) and not isinstance(layer, Quantized):
      _extend(layer, tuple(map(str, path)))
  lowest = _watch(model, random_like(inputs, jax.random.key(1)), jnp.min, kwargs)
  signed = {path: min(map(float, values)) < 0 for path, values in lowest.items()}
  configs = choose_configs(signed, rules, default, edge_bits, [f'nnx.{layer.__name__}' for layer in LAYERS])
  for layer in quantized_layers(model):
    _declare(layer, configs.get('/'.join(layer.path)))
  calibrate(model, inputs, **kwargs)
  return model


def _extend(layer: Any, path: tuple[str, ...]) -> None:
  """Makes a layer one that can be quantized, and is not yet."""
  layer.__class__ = quantized_class(layer.__class__)
  layer.quant, layer.path = None, path


def _declare(layer: Any, quant: QuantConfig | None) -> None:
  """Gives a layer its configuration and the variables that it needs."""
  layer.quant = quant
  if quant is None:
    return
  if not quant.weight_only:
    layer.alpha = nnx.Param(jnp.float32(quant.alpha_init))
  if quant.learns_input:
    start = np.clip(quant.init_bits, quant.allowed_input_bits[0], quant.allowed_input_bits[-1])
    layer.bits_input = Bits(jnp.float32(start))
  kernel = layer.kernel[...]
  if quant.kernel_bits is None:
    channels = math.prod(kernel.shape[axis] for axis in layer.output_axes(kernel.shape))
    shape = (channels,) if quant.granularity == 'kernel' else ()
    layer.bits_kernel = Bits(
      jnp.full(
        shape, np.clip(quant.init_bits, quant.allowed_kernel_bits[0], quant.allowed_kernel_bits[-1]), jnp.float32
      )
    )
  if quant.scheme == 'lsq':
    bits = layer.bits_kernel[...] if quant.kernel_bits is None else quant.kernel_bits
    layer.kernel_alpha = nnx.Param(lsq.initial_range(kernel, bits))


def calibrate(model: nnx.Module, inputs: Any, **kwargs: Any) -> None:
  """Sets the clips of the inputs and the ranges of `lsq` kernels to those with the least squared error.

  Args:
    model: of `quantize_model`.
    inputs: real examples of what it is called with, an array or a tuple of them.
    **kwargs: for the call.
  """
  found = {'/'.join(layer.path): layer for layer in quantized_layers(model) if layer.quant is not None}
  configs = {path: layer.quant for path, layer in found.items()}
  for layer in found.values():
    layer.quant = None
  try:
    samples = _watch(model, inputs if isinstance(inputs, tuple) else (inputs,), calibration.sample, kwargs)
  finally:
    for path, layer in found.items():
      layer.quant = configs[path]
  names = ('kernel', 'alpha', 'kernel_alpha')
  params = {
    f'{path}/{name}': getattr(layer, name)[...]
    for path, layer in found.items()
    for name in names
    if getattr(layer, name, None) is not None
  }
  params = traverse_util.unflatten_dict(params, sep='/')
  params = calibration.kernel_ranges(params, bits(model), configs)
  stacked = {path: np.concatenate(values) for path, values in samples.items() if path in configs}
  flat = traverse_util.flatten_dict(calibration.clips(params, bits(model), stacked, configs), sep='/')
  for path, layer in found.items():
    for name in names[1:]:
      if f'{path}/{name}' in flat:
        getattr(layer, name)[...] = flat[f'{path}/{name}']


def bits(model: nnx.Module) -> dict[str, Any]:
  """The learned bit-widths as the collection `bits` that costs, policies and penalties take."""
  flat = {}
  for layer in quantized_layers(model):
    for which in ('kernel', 'input'):
      variable = getattr(layer, f'bits_{which}', None)
      if variable is not None:
        flat[(*layer.path, which)] = variable[...]
  return traverse_util.unflatten_dict(flat)


def set_bits(model: nnx.Module, bits: Mapping[str, Any], *, fixed: bool = False) -> None:
  """Sets the bit-widths, such as `Policy.bits()`.

  Args:
    model: of `quantize_model`.
    bits: a collection `bits`.
    fixed: they are integers that stay as they are, so that the model is as fast as one without learned bits.

  Raises:
    ValueError: fixed bits that are not integers from 0 to 16; names the layer.
  """
  flat = traverse_util.flatten_dict(dict(bits))
  values = {}
  for path, value in flat.items():
    try:
      values[path] = bitwidths.as_bits(value, learned=not fixed)
    except ValueError as error:
      raise ValueError(f'{"/".join(path)}: {error}') from None
  for layer in quantized_layers(model):
    if layer.quant is not None:
      for which in ('kernel', 'input'):
        if (*layer.path, which) in flat:
          getattr(layer, f'bits_{which}')[...] = values[(*layer.path, which)]
      layer.quant = dataclasses.replace(layer.quant, learned=not fixed)


@dataclasses.dataclass(frozen=True)
class Functional:
  """An NNX model as linen has it: a function of its variables."""

  graph: nnx.GraphDef

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the model gives with the variables of `functional`; it is not changed."""
    return nnx.merge(self.graph, variables['state'])(*args, **kwargs)


def functional(model: nnx.Module) -> tuple[Functional, dict[str, Any]]:
  """A model as a function, and its variables: its `state`, and its `bits` once more for costs and policies."""
  graph, state = nnx.split(model)
  return Functional(graph), {'state': state, 'bits': bits(model)}


def _watch(model: nnx.Module, inputs: tuple, function: Callable, kwargs: Mapping[str, Any]) -> dict[str, list]:
  """`function(x)` for the inputs of every call of a layer, by path, in the order in which the layers run."""
  graph, state = nnx.split(model)
  shapes = {layer.path: layer.kernel[...].shape for layer in quantized_layers(model)}
  found: dict[str, list] = {}

  def watch(layer: Any, x: jax.Array, y: jax.Array) -> None:
    path = '/'.join(layer.path)
    if layer.kernel[...].shape != shapes[layer.path]:
      raise ValueError(
        f'{path} runs inside nnx.scan or nnx.vmap, where its kernel has fewer axes: such layers cannot be quantized, '
        'so call them one by one'
      )
    keep = found.setdefault(path, []).append  # in the order in which they are traced, that in which they run
    jax.debug.callback(lambda value: keep(np.array(value)), function(x))  # also from within nnx.remat and nnx.jit

  @jax.jit
  def run(state: Any, *args: Any) -> Any:
    with watch_layers(watch):
      return nnx.merge(graph, state)(*args, **kwargs)

  run(state, *inputs)
  jax.effects_barrier()
  return found
