"""The operands at one place of a program as the configuration of its weight quantizes them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.layers.operands import apply_quantizer, over_channels
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program.plan import Weight, channels_of, summed_of
from fracbits_jax.program.sites import Site
from fracbits_jax.quantize import bitwidths, groups, lsq

# What a weight is quantized with, by name: `kernel`, `input` (bits), `alpha`, `kernel_alpha` (ranges) and
# `kernel_noise`, `input_noise`; what is fixed or not needed is absent. Each has the axes of the stack in front.
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
  """What a quantizer is told of the layer that it belongs to.

  Attributes:
    quant: its configuration.
    path: its name, part by part.
  """

  quant: QuantConfig
  path: tuple[str, ...]


def has_kernel_alpha(weight: Weight, quant: QuantConfig) -> bool:
  """Whether there is a range beside the bits of the second operand."""
  return weight.is_product or quant.scheme == 'lsq'


def has_channel_ranges(weight: Weight, quant: QuantConfig) -> bool:
  """Whether each output channel has a range of its own, as the rows of an embedding have where there are no groups."""
  return weight.rows or (quant.kernel_ranges == 'channel' and not weight.is_product)


def range_shape(weight: Weight, quant: QuantConfig) -> tuple[int, ...]:
  """The shape of the range, or the ranges, of the second operand: `[stack..., G, C_out]` in groups."""
  if quant.group_size is not None and not weight.is_product:
    return (*weight.stack, groups.count(weight.size // max(weight.count, 1), quant.group_size), weight.count)
  return (*weight.stack, *((weight.count,) if has_channel_ranges(weight, quant) else ()))


def bits_shapes(weight: Weight, quant: QuantConfig) -> dict[str, tuple[int, ...]]:
  """The shapes of the learned bit-widths of a weight and its inputs."""
  shapes = {}
  if quant.kernel_bits is None:
    shapes['kernel'] = (*weight.stack, *((weight.count,) if quant.granularity == 'kernel' else ()))
  if quant.learns_input:
    shapes['input'] = weight.stack
  return shapes


def initial_bits(weight: Weight, quant: QuantConfig) -> dict[str, jax.Array]:
  """The bit-widths where they start."""
  allowed = {'kernel': quant.allowed_kernel_bits, 'input': quant.allowed_input_bits}
  return {
    which: jnp.full(shape, np.clip(quant.init_bits, allowed[which][0], allowed[which][-1]), jnp.float32)
    for which, shape in bits_shapes(weight, quant).items()
  }


def draw_noise(weight: Weight, quant: QuantConfig, key: jax.Array) -> dict[str, jax.Array]:
  """Noise that draws each of the learned bit-widths."""
  shapes = bits_shapes(weight, quant) if quant.stochastic and quant.learned else {}
  return {
    f'{which}_noise': bitwidths.draw_noise(jax.random.fold_in(key, i), shape)
    for i, (which, shape) in enumerate(shapes.items())
  }


def quantized_input(
  weight: Weight,
  site: Site,
  quant: QuantConfig,
  variables: Variables,
  x: jax.Array,
  index: tuple[int, ...] | None = None,
) -> jax.Array:
  """The inputs of a site as its configuration quantizes them; `index` as of `quantized_weight`."""
  if quant.weight_only or site.input is None:
    return x
  layer = Layer(quant, tuple(weight.name.split('/')))
  return _of_activation(layer, weight, quant, variables, x, 'input', 'alpha', site.input_stacked, index)


def quantized_weight(
  weight: Weight,
  site: Site,
  quant: QuantConfig,
  variables: Variables,
  w: jax.Array,
  index: tuple[int, ...] | None = None,
) -> jax.Array:
  """The weight of a site, or its second activation, as its configuration quantizes it.

  With an `index`, that of the passes of unrolled loops, each kernel of a stack is quantized by itself, under its name.
  """
  layer = Layer(quant, tuple(weight.name.split('/')))
  if weight.is_product:
    if quant.weight_only:
      return w
    second = dataclasses.replace(
      quant,
      signed_input=site.weight_signed,
      input_bits=quant.kernel_bits,
      input_choices=tuple(b for b in quant.allowed_kernel_bits if b) or None,
    )
    layer = Layer(second, (*weight.name.split('/'), 'second'))
    return _of_activation(layer, weight, second, variables, w, 'kernel', 'kernel_alpha', site.stacked, index)
  axes = channels_of(weight, site)
  assert axes is not None  # or it would be another weight
  summed = None if quant.group_size is None else summed_of(weight, site)

  def one(w: jax.Array, variables: Variables, layer: Layer = layer) -> jax.Array:
    bits, how = _bits(quant, variables, 'kernel', quant.kernel_bits, quant.allowed_kernel_bits)
    if quant.prunes:
      how['kept'] = bits > 0
    alpha = variables.get('kernel_alpha')
    return over_channels(lambda flat: apply_quantizer(layer, 'kernel', flat, bits, alpha, **how), w, axes, summed)

  if index is not None:
    return _one_by_one(one, layer, weight, w, variables, site.stacked, index)
  return _over_stack(one, w, variables, site.stacked)


def _of_activation(
  layer: Layer,
  weight: Weight,
  quant: QuantConfig,
  variables: Variables,
  x: jax.Array,
  which: str,
  clip: str,
  stacked: tuple[int, ...],
  index: tuple[int, ...] | None,
) -> jax.Array:
  def one(x: jax.Array, variables: Variables, layer: Layer = layer) -> jax.Array:
    bits, how = _bits(quant, variables, which, quant.input_bits, quant.allowed_input_bits)
    return apply_quantizer(layer, 'input', x, bits, variables[clip], **how)

  if index is not None:
    return _one_by_one(one, layer, weight, x, variables, stacked, index)
  return _over_stack(one, x, variables, stacked)


def _one_by_one(
  function: Callable[[jax.Array, Variables, Layer], jax.Array],
  layer: Layer,
  weight: Weight,
  x: jax.Array,
  variables: Variables,
  axes: tuple[int, ...],
  index: tuple[int, ...],
) -> jax.Array:
  """`_over_stack` without `jax.vmap`, each entry with the name that it has in the stack."""
  if not axes:
    suffix = layer.path[len(weight.name.split('/')) :]
    return function(x, variables, Layer(layer.quant, (*weight.at(index).split('/'), *suffix)))
  axis, rest = axes[0], tuple(other - (other > axes[0]) for other in axes[1:])
  parts = [
    _one_by_one(
      function,
      layer,
      weight,
      jax.lax.index_in_dim(x, i, axis, keepdims=False),
      {name: value[i] for name, value in variables.items()},
      rest,
      (*index, i),
    )
    for i in range(x.shape[axis])
  ]
  return jnp.stack(parts, axis)


def _bits(
  quant: QuantConfig, variables: Variables, which: str, fixed: int | None, choices: tuple[int, ...]
) -> tuple[Any, dict[str, Any]]:
  """A bit-width, with the choices and the noise that go with it."""
  if fixed is not None:
    return fixed, {'choices': (fixed,)}
  if not quant.learned:
    return variables[which], {'learned': False}
  return variables[which], {'choices': choices, 'noise': variables.get(f'{which}_noise')}


def _over_stack(
  function: Callable[[jax.Array, Variables], jax.Array], x: jax.Array, variables: Variables, axes: tuple[int, ...]
) -> jax.Array:
  """`function(x, variables)` for each entry along some axes of x, which are the leading axes of the variables."""
  if not axes:
    return function(x, variables)
  axis, rest = axes[0], tuple(other - (other > axes[0]) for other in axes[1:])
  over = jax.vmap(lambda x, variables: _over_stack(function, x, variables, rest), in_axes=(axis, 0), out_axes=axis)
  return over(x, variables)


def initial_range(weight: Weight, site: Site, quant: QuantConfig, w: np.ndarray) -> jax.Array:
  """Where the range of a weight starts before calibration: the axes of the stack, and of the channels that have one.

  Args:
    weight, site, quant: the weight, where it is used, and its configuration.
    w: its values, with the axes of its loops in front.
  """
  bits = quant.init_bits if quant.kernel_bits is None else quant.kernel_bits
  if weight.is_product:
    return jnp.full(weight.stack, quant.alpha_init, jnp.float32)
  kernels = kernels_of(weight, site, quant, w)
  each = has_channel_ranges(weight, quant)
  of_kernel = lambda kernel: lsq.initial_range(kernel.T, bits, each=each, group_size=quant.group_size)
  return jnp.stack([of_kernel(kernel) for kernel in kernels]).reshape(range_shape(weight, quant))


def kernels_of(weight: Weight, site: Site, quant: QuantConfig, w: np.ndarray) -> np.ndarray:
  """The kernels of a stack one behind the other, `[stack, C_out, n]`, from its values as a program has them."""
  loops = len(site.stored.loops)
  w = np.moveaxis(w, [loops + axis for axis in site.stacked], range(loops, loops + len(site.stacked)))
  count = math.prod(weight.stack)
  kernels = w.reshape(count, *w.shape[len(weight.stack) :])
  axes = channels_of(weight, site)
  assert axes is not None
  if quant.group_size is None:
    kernels = np.moveaxis(kernels, [1 + axis for axis in axes], range(1, 1 + len(axes)))
  else:
    kernels = np.transpose(kernels, (0, *(1 + axis for axis in (*axes, *summed_of(weight, site)))))
  return kernels.reshape(count, weight.count, math.prod(kernels.shape[1 + len(axes) :]))
