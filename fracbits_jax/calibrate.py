"""Where the clips start: the values that quantize the float network's activations, and for LSQ its kernels, best."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import lsq, quantize
from fracbits_jax.layer_table import example_of
from fracbits_jax.layers import watch_layers

_SAMPLES = 4096  # values of a layer's inputs, of each batch
_CANDIDATES = 100


def sample(x: jax.Array) -> jax.Array:
  """4096 values of an array, with repetitions; the same positions for the same shape."""
  # At random, since evenly spaced positions would all lie in the same few channels.
  positions = np.random.default_rng(0).integers(x.size, size=_SAMPLES)
  return x[np.unravel_index(positions, x.shape)]


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


@functools.partial(jax.jit, static_argnames=('signed', 'choices', 'scheme'))
def best_clip(
  x: jax.Array, bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str = 'original'
) -> jax.Array:
  """The clip that quantizes `x` with the least squared error.

  Args:
    x: sample of a layer's inputs, or of a kernel, any shape.
    bits: their bit-width, `()`, fractional or not.
    signed: whether the range is two-sided.
    choices: allowed bit-widths.
    scheme: `lsq` for two's complement levels where the range is two-sided.

  Returns:
    The best of 100 candidates, evenly spaced up to max |x|; 1 where x is 0 throughout.
  """
  x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x))
  quantizer = lsq.activation if scheme == 'lsq' else quantize.activation
  candidates = largest * jnp.arange(1, _CANDIDATES + 1) / _CANDIDATES

  def error(alpha):
    return jnp.mean((quantizer(x, bits, alpha, signed=signed, choices=choices) - x) ** 2)

  return jnp.where(largest > 0, candidates[jnp.argmin(jax.lax.map(error, candidates))], 1.0)


def clips(params: Any, bits: Any, samples: dict[str, np.ndarray], configs: dict[str, Any]) -> Any:
  """`params` with every `alpha` replaced by the best clip for its layer's samples.

  Args:
    params: parameters of the quantized network.
    bits: its collection `bits`.
    samples: inputs of each layer of the float network, by path.
    configs: `QuantConfig` of each layer, by path.
  """
  flat, flat_bits = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, bits))
  for name, x in samples.items():
    if f'{name}/alpha' in flat:
      quant = configs[name]
      width = quant.input_bits if quant.input_bits is not None else flat_bits[f'{name}/input']
      choices = quant.allowed_input_bits if quant.input_bits is None else (quant.input_bits,)
      how = dict(signed=quant.signed_input, choices=choices, scheme=quant.scheme)
      flat[f'{name}/alpha'] = best_clip(x, jnp.float32(width), **how)
  return traverse_util.unflatten_dict(flat, sep='/')


def kernel_ranges(params: Any, bits: Any, configs: dict[str, Any]) -> Any:
  """`params` with every `kernel_alpha` replaced by the best range for its kernel; arguments as `clips`."""
  flat, flat_bits = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, bits))
  for name, quant in configs.items():
    if f'{name}/kernel_alpha' in flat:
      fixed = quant.kernel_bits
      width = flat_bits[f'{name}/kernel'].mean() if fixed is None else fixed
      kernel = np.asarray(flat[f'{name}/kernel']).reshape(-1)
      x = kernel[np.random.default_rng(0).integers(kernel.size, size=_SAMPLES)]
      choices = quant.choices if fixed is None else (fixed,)
      flat[f'{name}/kernel_alpha'] = best_clip(x, jnp.float32(width), signed=True, choices=choices, scheme='lsq')
  return traverse_util.unflatten_dict(flat, sep='/')


def quant_configs(model: nn.Module, inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """The `QuantConfig` of each quantized layer, by path; shapes alone are traced. Arguments as `cost.trace`."""
  configs = {}
  with watch_layers(lambda module, x, y: configs.update({'/'.join(module.path): module.quant})):
    jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example_of(inputs))
  return {name: quant for name, quant in configs.items() if quant is not None}
