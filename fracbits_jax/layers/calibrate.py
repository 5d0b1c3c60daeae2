"""Where the clips start: the values that quantize the float network's activations, and for LSQ its kernels, best.

What best means is a criterion of `quant_config.CALIBRATIONS`, a mean over all values. The squared error follows one
value among thousands that is large enough, and gives up all others for it. In the absolute error such a value weighs
little, and `trimmed` leaves it out: the squared error without the thousandth of the values that is largest.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import quantize
from fracbits_jax.layers.examples import example_of
from fracbits_jax.layers.linen import watch_layers
from fracbits_jax.layers.quant_config import check_calibration
from fracbits_jax.quantize import bitwidths, lsq
from fracbits_jax.quantize.unit import SMALLEST

_SAMPLES = 4096  # values of a layer's inputs, of each batch
_CANDIDATES = 100  # up to the largest value, and as many beyond it
_EXACT = 128  # candidates of which levels are the largest value
_NOT_FINITE = 'there are values that are not finite: no clip quantizes them; mend the network or its inputs'


def sample(x: jax.Array) -> jax.Array:
  """4096 values of an array; the same positions for the same shape. Of nothing it is 0 throughout.

  Of a smaller array they are all of its values, as often as one another, so that its largest is among them.
  """
  if not x.size:
    return jnp.zeros(_SAMPLES, x.dtype)
  return x.reshape(-1)[_positions(x.size)]


def _positions(size: int) -> np.ndarray:
  """Where the values of a sample lie: at random, since evenly spaced ones would all lie in the same few channels."""
  rng = np.random.default_rng(0)
  return rng.integers(size, size=_SAMPLES) if size > _SAMPLES else np.resize(rng.permutation(size), _SAMPLES)


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


def best_clip(
  x: jax.Array | np.ndarray,
  bits: jax.Array,
  *,
  signed: bool,
  choices: tuple[int, ...],
  scheme: str = 'original',
  criterion: str = 'squares',
) -> jax.Array:
  """The clip that quantizes `x` with the least error.

  Args:
    x: sample of a layer's inputs, or of a kernel, any shape and scale.
    bits: their bit-width, `()`, fractional or not.
    signed: whether the range is two-sided.
    choices: allowed bit-widths.
    scheme: `lsq` for two's complement levels where the range is two-sided.
    criterion: of `quant_config.CALIBRATIONS`: the mean of the squared errors, of the absolute ones, or of the squared
      ones without the thousandth of x that is largest.

  Returns:
    The best of the candidates: 100 evenly spaced up to max |x|, as many beyond it, and those of which a level is
    max |x| itself, so that a grid on which all of x lies is found. With other criteria than squares 200 more, up to
    twice what 99 in 100 values are below, since an outlier spreads the others. 1 where x is 0 throughout.

  Raises:
    ValueError: values that are not finite, or an unknown criterion.
  """
  x = jnp.asarray(x)
  if not isinstance(x, jax.core.Tracer) and not jnp.isfinite(x).all():
    raise ValueError(_NOT_FINITE)
  how = dict(signed=signed, choices=choices, scheme=scheme, criterion=check_calibration(criterion))
  return _best_clip(x, jnp.float32(bits), **how) if x.size else jnp.float32(1)


@functools.partial(jax.jit, static_argnames=('signed', 'choices', 'scheme', 'criterion'))
def _best_clip(
  x: jax.Array, bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str, criterion: str
) -> jax.Array:
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x))
  found = largest >= SMALLEST
  x = x / jnp.where(found, largest, 1)  # or squares of very large and very small values would not be there
  quantizer = lsq.activation if scheme == 'lsq' else quantize.activation
  distance = jnp.abs if criterion == 'absolute' else jnp.square
  bulk, most = jnp.quantile(jnp.abs(x), jnp.array([0.99, 0.999]))
  counts = jnp.abs(x) <= most if criterion == 'trimmed' else jnp.ones_like(x, bool)

  def error(alpha):
    return jnp.mean(distance(quantizer(x, bits, alpha, signed=signed, choices=choices) - x), where=counts)

  evenly = jnp.arange(1, 2 * _CANDIDATES + 1) / _CANDIDATES
  parts = [evenly, _exact(bits, signed=signed, choices=choices, scheme=scheme)]
  if criterion != 'squares':
    parts.append(jnp.where(bulk > 0, bulk, 1) * evenly)
  candidates = jnp.concatenate(parts)
  best = candidates[jnp.argmin(jax.lax.map(error, candidates))]
  return jnp.where(found, jnp.minimum(best * largest, jnp.finfo(jnp.float32).max), 1.0)


@functools.partial(jax.jit, static_argnames=('signed', 'choices', 'scheme', 'criterion'))
def best_clips(
  x: jax.Array, bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str, criterion: str
) -> jax.Array:
  """`best_clip` for several samples `[n, values]` at once, with a bit-width each, `[n]`: `[n]`."""
  how = dict(signed=signed, choices=choices, scheme=scheme, criterion=criterion)
  return jax.vmap(functools.partial(_best_clip, **how))(x, bits)


def checked(x: np.ndarray, what: str) -> np.ndarray:
  """The sample; raises `ValueError`, with what it is of, where a value is not finite."""
  if not np.isfinite(x).all():
    raise ValueError(f'{what}: {_NOT_FINITE}')
  return x


def _exact(bits: jax.Array, *, signed: bool, choices: tuple[int, ...], scheme: str) -> jax.Array:
  """Clips of which a level is 1, those of the lower neighbour of `bits`: `[128]`, the last ones repeated.

  With n steps up to the clip they are n / k for a level of k steps. Below n / 2, or n / 3 where the levels are odd, a
  finer grid has the same levels, so that they go up to 2, or 3.
  """
  low, high, fraction = bitwidths.neighbours(bits, choices)
  low = jnp.where(fraction == 1, high, low)
  power, step = bitwidths.power_of_two(low), 1
  if scheme == 'lsq' and signed:
    steps = jnp.where(low <= 1, 2, power / 2)  # at 1 bit the levels are half the clip and its negative
  else:
    steps, step = jnp.maximum(power - 1, 1), 2 if signed else 1
  return steps / jnp.maximum(steps - step * jnp.arange(_EXACT), jnp.ceil(steps / (step + 1)))


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
      how = dict(signed=quant.signed_input, choices=choices, scheme=quant.scheme, criterion=quant.calibration)
      flat[f'{name}/alpha'] = _of_layer(f'inputs of {name}', x, width, **how)
  return traverse_util.unflatten_dict(flat, sep='/')


def kernel_ranges(params: Any, bits: Any, configs: dict[str, Any]) -> Any:
  """`params` with every `kernel_alpha` replaced by the best range for its kernel; arguments as `clips`."""
  flat, flat_bits = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, bits))
  for name, quant in configs.items():
    if f'{name}/kernel_alpha' in flat:
      fixed = quant.kernel_bits
      width = np.mean(flat_bits[f'{name}/kernel']) if fixed is None else fixed
      how = dict(signed=True, choices=quant.choices if fixed is None else (fixed,), scheme='lsq')
      x = resized(np.asarray(flat[f'{name}/kernel']))
      flat[f'{name}/kernel_alpha'] = _of_layer(f'kernel of {name}', x, width, **how, criterion=quant.calibration)
  return traverse_util.unflatten_dict(flat, sep='/')


def at_other_bits(params: Any, before: Any, after: Any, samples: dict[str, np.ndarray], configs: dict[str, Any]) -> Any:
  """`params` with every clip and range multiplied by the ratio of the best ones at the bits `after` and `before`.

  Args:
    params: parameters of the quantized network, trained at the bits `before`.
    before: a collection `bits`.
    after: another one.
    samples: inputs of each layer, by path, as for `clips`.
    configs: `QuantConfig` of each layer, by path.
  """

  def best(bits: Any) -> dict[str, Any]:
    found = clips(kernel_ranges(params, bits, configs), bits, samples, configs)
    return traverse_util.flatten_dict(found, sep='/')

  old, new = best(before), best(after)
  flat = traverse_util.flatten_dict(params, sep='/')
  flat |= {name: value * new[name] / old[name] for name, value in flat.items() if name.endswith('alpha')}
  return traverse_util.unflatten_dict(flat, sep='/')


def _of_layer(what: str, x: np.ndarray, bits: Any, **how: Any) -> jax.Array:
  """`best_clip`, whose errors say of what."""
  try:
    return best_clip(x, bits, **how)
  except ValueError as error:
    raise ValueError(f'{what}: {error}') from None


def resized(kernel: np.ndarray) -> np.ndarray:
  """4096 entries of an array, all of them as often as one another where there are fewer; zeros where there are none."""
  flat = kernel.reshape(-1)
  return flat[_positions(flat.size)] if flat.size else np.zeros(_SAMPLES, np.float32)


def quant_configs(model: nn.Module, inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """The `QuantConfig` of each quantized layer, by path; shapes alone are traced. Arguments as `cost.trace`."""
  configs = {}
  with watch_layers(lambda module, x, y: configs.update({'/'.join(module.path): module.quant})):
    jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example_of(inputs))
  return {name: quant for name, quant in configs.items() if quant is not None}
