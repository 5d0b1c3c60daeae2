"""Fractional bits in the layers of an NNX model: the same functions as in linen, with a variable type for the bits.

A layer's class is exchanged for one that extends it by quantization, so `nnx.jit`, `nnx.grad`, optimizers and
checkpoints see the model that they know, with `alpha` (a `nnx.Param`) and `Bits` beside its parameters.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from fracbits_jax import bitwidths, layer_table, layers, lsq, wrap
from fracbits_jax import calibrate as calibration
from fracbits_jax.layers import QuantConfig

_LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
_watchers: list[Callable[[Any, jax.Array, jax.Array], None]] = []


class Bits(nnx.Variable):
  """A learned bit-width: `()`, or `[C_out]` for a kernel with one for each output channel."""


class Quantized(nnx.Module):
  """Mixin before an NNX layer, whose inputs and kernel it quantizes where the layer brings them to one dtype.

  Attributes:
    quant: how the layer is quantized; `None` leaves it as it is.
    path: of the layer in the model.
    alpha, kernel_alpha: the clip of the inputs, and with the scheme `lsq` the range of the kernel, `()`.
    bits_kernel, bits_input: the learned bit-widths; `None` where they are fixed.
  """

  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    y = super().__call__(inputs, *args, **kwargs)
    for seen in _watchers:
      seen(self, inputs, y)
    return y

  @property
  def promote_dtype(self) -> Callable[..., Any]:
    """The layer's own function of that name, behind the quantizers."""
    return vars(self)['promote_dtype'] if self.quant is None else self._quantized_operands

  @promote_dtype.setter
  def promote_dtype(self, function: Callable[..., Any]) -> None:
    vars(self)['promote_dtype'] = function

  def _quantized_operands(self, operands: tuple, **kwargs: Any) -> tuple:
    inputs, kernel, *rest = operands
    if not self.quant.weight_only:
      inputs = self._quantize('input', inputs, self.alpha[...])
    alpha = None if self.quant.scheme != 'lsq' else self.kernel_alpha[...]
    axes = self.output_axes(kernel.shape)
    kernel = layers.over_channels(functools.partial(self._quantize, 'kernel', alpha=alpha), kernel, axes)
    return vars(self)['promote_dtype']((inputs, kernel, *rest), **kwargs)

  def _quantize(self, which: str, x: jax.Array, alpha: jax.Array | None) -> jax.Array:
    quant = self.quant
    fixed = quant.kernel_bits if which == 'kernel' else quant.input_bits
    choices = quant.choices if which == 'kernel' else quant.allowed_input_bits
    how: dict[str, Any] = {'choices': choices} if quant.learned else {'learned': False}
    bits = fixed
    if fixed is None:
      bits = (self.bits_kernel if which == 'kernel' else self.bits_input)[...]
    else:
      how = {'choices': (fixed,)}
    return layers.apply_quantizer(self, which, x, bits, alpha, **how)

  def output_axes(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the kernel that are output channels, together C_out of them."""
    if isinstance(self, nnx.LinearGeneral):
      batch, features = len(self.batch_axis), len(self.out_features)
      return (*range(batch), *range(len(kernel_shape) - features, len(kernel_shape)))
    if isinstance(self, nnx.Einsum):
      return layers.einsum_output_axes(self.einsum_str, len(kernel_shape))
    if isinstance(self, nnx.ConvTranspose) and self.transpose_kernel:
      return (len(kernel_shape) - 2,)
    return (len(kernel_shape) - 1,)


@functools.cache
def quantized_class(layer: type[nnx.Module]) -> type[nnx.Module]:
  """The class `layer` with quantization."""
  return type(f'Quantized{layer.__name__}', (Quantized, layer), {})


def quantize_model(
  model: nnx.Module,
  inputs: Any,
  rules: wrap.Rules = (),
  *,
  default: QuantConfig | None = wrap.DEFAULT,
  edge_bits: int | None = wrap.EDGE_BITS,
  **kwargs: Any,
) -> nnx.Module:
  """`wrap.quantize_model` for an NNX model, which is changed in place and returned.

  The clips of the inputs, and with `lsq` the ranges of the kernels, are those that quantize `inputs` and the kernels as
  they are with the least squared error: give real examples and a trained model, or call `calibrate` later.
  """
  if not isinstance(model, nnx.Module):
    raise ValueError(f'{model!r} is not a network: give a linen or an NNX module')
  for path, layer in list(nnx.iter_modules(model)):
    if isinstance(layer, _LAYERS) and not isinstance(layer, Quantized):
      layer.__class__ = quantized_class(type(layer))
      layer.quant, layer.path = None, tuple(map(str, path))
  lowest = _watch(model, wrap.random_like(inputs, jax.random.key(1)), jnp.min, kwargs)
  signed = {path: min(map(float, values)) < 0 for path, values in lowest.items()}
  configs = wrap.choose_configs(signed, rules, default, edge_bits)
  for layer in quantized_layers(model):
    _declare(layer, configs.get('/'.join(layer.path)))
  calibrate(model, inputs, **kwargs)
  return model


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
      jnp.full(shape, np.clip(quant.init_bits, quant.choices[0], quant.choices[-1]), jnp.float32)
    )
  if quant.scheme == 'lsq':
    bits = layer.bits_kernel[...] if quant.kernel_bits is None else quant.kernel_bits
    layer.kernel_alpha = nnx.Param(lsq.initial_range(kernel, bits))


def quantized_layers(model: nnx.Module) -> list[Any]:
  """The layers that can be quantized, whether they are or not."""
  return [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, Quantized)]


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


def trace(model: nnx.Module, inputs: Any, **kwargs: Any) -> tuple[layer_table.Layer, ...]:
  """The layer table of a model; arguments and errors as `cost.trace`."""
  example, rows = layer_table.example_of(inputs), {}

  def record(layer: Any, x: jax.Array, y: jax.Array) -> None:
    row = layer_table.row(
      layer,
      name='/'.join(layer.path),
      params={'kernel': layer.kernel[...]} | ({} if layer.bias is None else {'bias': layer.bias[...]}),
      conv=isinstance(layer, nnx.Conv | nnx.ConvTranspose),
      transposed=isinstance(layer, nnx.ConvTranspose),
      x=x,
      y=y,
      examples=layer_table.examples_in(example),
    )
    layer_table.add_row(rows, row)

  graph, state = nnx.split(model)
  with _watching(record):
    jax.eval_shape(lambda state, *args: nnx.merge(graph, state)(*args, **kwargs), state, *example)
  return layer_table.checked_rows(rows, model)


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
    with _watching(watch):
      return nnx.merge(graph, state)(*args, **kwargs)

  run(state, *inputs)
  jax.effects_barrier()
  return found


@contextlib.contextmanager
def _watching(seen: Callable[[Any, jax.Array, jax.Array], None]) -> Iterator[None]:
  _watchers.append(seen)
  try:
    yield
  finally:
    _watchers.remove(seen)
