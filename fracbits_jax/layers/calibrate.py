"""Where the clips start: the values that quantize the float network's activations, and for LSQ its kernels, best."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.clip_search import best_clip, best_range, checked, resized, sample
from fracbits_jax.layers.examples import example_of
from fracbits_jax.layers.linen import watch_layers
from fracbits_jax.layers.operands import with_last_channels
from fracbits_jax.layers.ranges import range_names


def sample_inputs(
  model: nn.Module, variables: Any, batches: Iterable[tuple[jax.Array, ...]], **kwargs: Any
) -> dict[str, np.ndarray]:
  """Values of the inputs of every layer, by the layer's path: `[calls, 4096]`, drawn at random from each call.

  Args:
    model: a network of `QuantConv`, `QuantDense` and their like, without quantization.
    variables: its variables.
    batches: the arguments of its calls.
    **kwargs: for the call, such as `train` and `mutable`: with `train=True, mutable=['batch_stats']` batch norm uses
      the statistics of each batch, as it does when a training goes on from here.
  """

  found: dict[str, list[np.ndarray]] = {}

  def watch(module: nn.Module, x: jax.Array, y: jax.Array) -> None:
    del y
    keep = found.setdefault('/'.join(module.path), []).append
    jax.debug.callback(lambda values: keep(np.array(values)), sample(x))  # also from within nn.remat

  @jax.jit
  def run(variables, inputs):
    with watch_layers(watch):
      return model.apply(variables, *inputs, **kwargs)

  for inputs in batches:
    run(variables, inputs)
  jax.effects_barrier()
  return {name: np.stack(values) for name, values in found.items()}


def clips(params: Any, bits: Any, samples: dict[str, np.ndarray], configs: dict[str, Any]) -> Any:
  """`params` with every `alpha` replaced by the best clip for its layer's samples, by the layer's own criterion.

  Args:
    params: parameters of the quantized network.
    bits: its collection `bits`.
    samples: inputs of each layer of the float network, by path.
    configs: `QuantConfig` of each layer, by path.

  Raises:
    ValueError: samples, or kernels, that are not finite; names the layer.
  """
  flat, flat_bits = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, bits))
  for name, x in samples.items():
    if f'{name}/alpha' in flat:
      quant = configs[name]
      width = quant.input_bits if quant.input_bits is not None else flat_bits[f'{name}/input']
      choices = quant.allowed_input_bits if quant.input_bits is None else (quant.input_bits,)
      if quant.has_offset:
        x = checked(np.asarray(x), f'inputs of {name}')
        found = best_range(x, np.float32(width), choices=choices, criterion=quant.calibration)
        flat[f'{name}/alpha'] = found
        continue
      how = dict(signed=quant.signed_input, choices=choices, scheme=quant.scheme, criterion=quant.calibration)
      flat[f'{name}/alpha'] = _of_layer(f'inputs of {name}', x, width, **how)
  return traverse_util.unflatten_dict(flat, sep='/')


def kernel_ranges(
  params: Any, bits: Any, configs: dict[str, Any], axes: Mapping[str, tuple[int, ...]] | None = None
) -> Any:
  """`params` with every `kernel_alpha` replaced by the best range, or ranges, for its kernel.

  Args:
    params, bits, configs: as for `clips`.
    axes: the axes of kernels that are output channels, by path, where they are others than the last one; see
      `output_axes`.
  """
  flat, flat_bits = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, bits))
  by_channel = {}
  for name, quant in configs.items():
    if f'{name}/kernel_alpha' in flat:
      fixed = quant.kernel_bits
      width, kernel = flat_bits[f'{name}/kernel'] if fixed is None else fixed, np.asarray(flat[f'{name}/kernel'])
      if quant.range_kind != 'layer':
        kernel = np.asarray(with_last_channels(kernel, (axes or {}).get(name, (kernel.ndim - 1,))))
        by_channel[name] = (kernel.reshape(-1, kernel.shape[-1]).T, width, quant)
      else:
        how = dict(signed=True, choices=quant.choices if fixed is None else (fixed,), scheme=quant.kernel_scheme)
        found = _of_layer(f'kernel of {name}', resized(kernel), np.mean(width), **how, criterion=quant.calibration)
        flat[f'{name}/kernel_alpha'] = found
  for name, ranges in channel_ranges(by_channel).items():
    flat[f'{name}/kernel_alpha'] = jnp.asarray(ranges)
  return traverse_util.unflatten_dict(flat, sep='/')


def at_other_bits(
  params: Any,
  before: Any,
  after: Any,
  samples: dict[str, np.ndarray],
  configs: dict[str, Any],
  axes: Mapping[str, tuple[int, ...]] | None = None,
) -> Any:
  """`params` with every clip and range multiplied by the ratio of the best ones at the bits `after` and `before`.

  Args:
    params: parameters of the quantized network, trained at the bits `before`.
    before: a collection `bits`.
    after: another one.
    samples: inputs of each layer, by path, as for `clips`.
    configs: `QuantConfig` of each layer, by path.
    axes: as for `kernel_ranges`.
  """

  def best(bits: Any) -> dict[str, Any]:
    found = clips(kernel_ranges(params, bits, configs, axes), bits, samples, configs)
    return traverse_util.flatten_dict(found, sep='/')

  old, new = best(before), best(after)
  flat = traverse_util.flatten_dict(params, sep='/')
  for name in range_names(configs, flat):
    # Of a range and its middle both follow the range.
    of = lambda found, name=name: found[name][0] if name.endswith('/alpha') and found[name].ndim else found[name]
    flat[name] = flat[name] * of(new) / of(old)
  return traverse_util.unflatten_dict(flat, sep='/')


def _of_layer(what: str, x: np.ndarray, bits: Any, **how: Any) -> jax.Array:
  """`best_clip`, whose errors say of what."""
  try:
    return best_clip(x, bits, **how)
  except ValueError as error:
    raise ValueError(f'{what}: {error}') from None


def quant_configs(model: nn.Module, inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """The `QuantConfig` of each quantized layer, by path; shapes alone are traced. Arguments as `cost.trace`."""
  found = {name: module.quant for name, module in _modules(model, inputs, kwargs).items()}
  return {name: quant for name, quant in found.items() if quant is not None}


def output_axes(model: nn.Module, inputs: Any, params: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
  """The axes of each layer's kernel that are its output channels, by path; arguments as `quant_configs`."""
  flat = traverse_util.flatten_dict(params, sep='/')
  modules = _modules(model, inputs, kwargs)
  return {
    name: module.output_axes(np.shape(flat[f'{name}/kernel']))
    for name, module in modules.items()
    if f'{name}/kernel' in flat
  }


def _modules(model: nn.Module, inputs: Any, kwargs: Any) -> dict[str, Any]:
  """Each quantized layer by path, as a module on its own."""
  found: dict[str, Any] = {}
  with watch_layers(lambda module, x, y: found.update({'/'.join(module.path): module.clone(parent=None)})):
    jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example_of(inputs))
  return found
