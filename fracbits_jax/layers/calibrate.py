"""Where the clips start: the values that quantize the float network's activations, and for LSQ its kernels, best."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax.layers import stacks
from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.clip_search import SAMPLES, best_clip, best_range, checked, resized, sample
from fracbits_jax.layers.examples import example_of
from fracbits_jax.layers.linen import watch_layers
from fracbits_jax.layers.operands import with_last_channels
from fracbits_jax.layers.ranges import range_names


def sample_inputs(
  model: nn.Module, variables: Any, batches: Iterable[tuple[jax.Array, ...]], **kwargs: Any
) -> dict[str, np.ndarray]:
  """Values of the inputs of every layer, by the layer's path: `[calls, 4096]`, drawn at random from each call.

  Of a stack of layers, as within a scan, they are `[calls, ..., 4096]`, with the axes of the stack.

  Args:
    model: a network of `QuantConv`, `QuantDense` and their like, without quantization.
    variables: its variables.
    batches: the arguments of its calls.
    **kwargs: for the call, such as `train` and `mutable`: with `train=True, mutable=['batch_stats']` batch norm uses
      the statistics of each batch, as it does when a training goes on from here.
  """

  found: dict[str, list[np.ndarray]] = {}
  sizes: dict[str, tuple[int, ...]] = {}

  def watch(module: nn.Module, x: jax.Array, y: jax.Array) -> None:
    del y
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return  # rows of a table, which nothing quantizes
    name = '/'.join(module.path)
    keep, sizes[name] = found.setdefault(name, []).append, stacks.stack_of_module(module, variables['params'])
    # Also from within nn.remat; within a scan in the order of its layers.
    jax.debug.callback(lambda values: keep(np.array(values)), sample(x), ordered=bool(sizes[name]))

  @jax.jit
  def run(variables, inputs):
    with watch_layers(watch):
      return model.apply(variables, *inputs, **kwargs)

  for inputs in batches:
    run(variables, inputs)
  jax.effects_barrier()
  return {name: np.stack(values).reshape(-1, *sizes[name], SAMPLES) for name, values in found.items()}


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
      quant, x = configs[name], np.asarray(x)
      width = quant.input_bits if quant.input_bits is not None else flat_bits[f'{name}/input']
      stack = x.shape[1:-1]
      widths = np.broadcast_to(np.asarray(width), stack)
      of = lambda i, name=name, quant=quant, x=x, widths=widths: _clip(name, quant, x[(slice(None), *i)], widths[i])
      flat[f'{name}/alpha'] = _each(stack, of)
  return traverse_util.unflatten_dict(flat, sep='/')


def _clip(name: str, quant: Any, x: np.ndarray, width: Any) -> jax.Array:
  """The best clip of one layer, or its range with an offset."""
  choices = quant.allowed_input_bits if quant.input_bits is None else (quant.input_bits,)
  if quant.has_offset:
    x = checked(x, f'inputs of {name}')
    return best_range(x, np.float32(width), choices=choices, criterion=quant.calibration)
  how = dict(signed=quant.signed_input, choices=choices, scheme=quant.scheme, criterion=quant.calibration)
  return _of_layer(f'inputs of {name}', x, width, **how)


def _each(stack: tuple[int, ...], of: Callable[[tuple[int, ...]], Any]) -> jax.Array:
  """What a function gives of each place in a stack, with the axes of the stack in front."""
  found = [jnp.asarray(of(index)) for index in np.ndindex(*stack)]
  return jnp.stack(found).reshape(*stack, *found[0].shape) if stack else found[0]


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
      shape = np.shape(flat[f'{name}/kernel_alpha'])
      if quant.range_kind != 'layer':
        own = (axes or {}).get(name, (kernel.ndim - 1,))
        stack = shape[: -1 if quant.range_kind == 'channel' else -2]
        by_channel[name] = (*_by_channel(kernel, width, own, stack=stack), quant)
      else:
        how = dict(signed=True, choices=quant.choices if fixed is None else (fixed,), scheme=quant.kernel_scheme)
        how |= dict(criterion=quant.calibration)
        mean = _mean_of(width if fixed is None else np.full(shape, fixed))
        of = lambda i, n=name, k=kernel, mean=mean, how=how: _of_layer(f'kernel of {n}', resized(k[i]), mean(i), **how)
        flat[f'{name}/kernel_alpha'] = _each(shape, of)
  for name, ranges in channel_ranges(by_channel).items():
    flat[f'{name}/kernel_alpha'] = jnp.asarray(ranges)
  return traverse_util.unflatten_dict(flat, sep='/')


def _mean_of(widths: Any) -> Callable[[tuple[int, ...]], Any]:
  """The mean bit-width of a kernel by its place in a stack, `()` of one by itself; without its pruned channels."""

  def mean(index: tuple[int, ...]) -> Any:
    own = np.asarray(widths[index] if index else widths)
    return np.mean(own, where=own > 0) if (own > 0).any() else np.float32(0)

  return mean


def _by_channel(
  kernel: np.ndarray, width: Any, axes: tuple[int, ...], *, stack: tuple[int, ...]
) -> tuple[np.ndarray, Any]:
  """The channels `[..., C_out, n]` of a kernel, or of a stack of them, and their bit-widths as `channel_ranges` has it.

  Args:
    kernel: with the axes of the stack in front.
    width: a number, or `[..., C_out]` or `[...]`.
    axes: of the kernel that are output channels.
    stack: its sizes.
  """
  own = tuple(axis - len(stack) for axis in axes)
  last = [np.asarray(with_last_channels(kernel[i], own)) for i in np.ndindex(*stack)]
  rows = np.stack([x.reshape(-1, x.shape[-1]).T for x in last])
  by_layer = bool(stack) and np.ndim(width) == len(stack)
  return rows.reshape(*stack, *rows.shape[1:]), np.asarray(width)[..., None] if by_layer else width


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
    offset = name.endswith('/alpha') and configs[name.removesuffix('/alpha')].has_offset
    of = lambda found, name=name, offset=offset: found[name][..., :1] if offset else found[name]
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
