"""Flax layers with fractional bit-widths: `nn.Conv` and `nn.Dense` plus `quant=QuantConfig(...)`; and one that does
nothing but quantize.

A quantized layer owns, beside the parameters of the layer it extends:

* `params/alpha`: the clip of its inputs, `()`, or `[2]` for a range and its middle;
* `params/kernel_alpha`: with the scheme `lsq`, the range of its kernel, `()`, `[C_out]` or, in groups, `[G, C_out]`;
* `bits/kernel`: the bit-width of its kernel, `()` or `[C_out]`;
* `bits/input`: the bit-width of its inputs, `()`.

Whatever the configuration fixes is absent from the collection `bits`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from fracbits_jax.fast import conv
from fracbits_jax.layers.operands import (
  apply_quantizer,
  einsum_output_axes,
  over_channels,
  ranges_of_weights,
  with_last_channels,
)
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.quantize import bitwidths, lsq

OUTPUTS = 'layer_outputs'  # what `jax.checkpoint`'s policies know the outputs of these layers by
DISTANCES = 'distances'  # the collection, where it is mutable, of the squared distances of kernels from their levels


class Quantized(nn.Module):
  """Mixin before a linen layer: the layer sees quantized inputs, and its parameter `kernel` quantized.

  The layer's own code does the rest, so strides, groups, dilation, padding and dtypes are the library's.

  Attributes:
    quant: how the layer is quantized; `None` leaves it as it is.
    source: the name of the sibling whose pruned channels are missing from the inputs; see `gate`.
    input_from: the name of the sibling, a `QuantIdentity`, that has quantized the inputs already.
    uses: the methods that use the layer, which `watch_layers` reports.
  """

  uses: ClassVar[tuple[str, ...]] = ('__call__',)

  quant: QuantConfig | None = None
  source: str | None = None
  input_from: str | None = None

  @nn.compact
  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    if self.quant is not None and not self.quant.weight_only and self.input_from is None:
      inputs = self._quantized_input(self.quant, inputs)
    return checkpoint_name(super().__call__(inputs, *args, **kwargs), OUTPUTS)

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *args, **kwargs) -> Any:
    """The layer's parameter; its `kernel` is quantized, which is all that the layer sees of it."""
    value = super().param(name, init_fn, *args, **kwargs)
    return self._quantized_kernel(self.quant, value) if name == 'kernel' and self.quant is not None else value

  @nn.nowrap
  def output_axes(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the kernel that are output channels, together C_out of them."""
    rank = len(kernel_shape)
    if isinstance(self, nn.DenseGeneral):
      batch, features = (1 if isinstance(axes, int) else len(axes) for axes in (self.batch_dims, self.features))
      return (*range(batch), *range(rank - features, rank))
    if isinstance(self, nn.Einsum):
      if self.einsum_str is None:
        raise ValueError(
          f'{"/".join(self.path)}: nn.Einsum is quantized by the einsum_str of the module: give it there'
        )
      return einsum_output_axes(self.einsum_str, rank)
    return (rank - 2 if isinstance(self, nn.ConvTranspose) and self.transpose_kernel else rank - 1,)

  @nn.nowrap
  def _bits(
    self, quant: QuantConfig, name: str, fixed: int | None, choices: tuple[int, ...], shape: tuple[int, ...]
  ) -> tuple[jax.Array | int, dict[str, Any]]:
    """A bit-width of this layer, with the choices and the noise that go with it."""
    if fixed is not None:
      return fixed, {'choices': (fixed,)}
    start = min(max(quant.init_bits, choices[0]), choices[-1])
    bits = self.variable('bits', name, jnp.full, shape, start, jnp.float32).value
    if not quant.learned:
      return bits, {'learned': False}
    drawn = quant.stochastic and self.has_rng('bits')
    return bits, {'choices': choices, 'noise': bitwidths.draw_noise(self.make_rng('bits'), shape) if drawn else None}

  @nn.nowrap
  def _quantized_input(self, quant: QuantConfig, inputs: jax.Array) -> jax.Array:
    return self._input_quantizer(quant)(inputs)

  @nn.nowrap
  def _input_quantizer(self, quant: QuantConfig) -> Callable[[jax.Array], jax.Array]:
    alpha = super().param('alpha', lambda key: jnp.asarray(quant.alpha_start))
    bits, how = self._bits(quant, 'input', quant.input_bits, quant.allowed_input_bits, ())
    return lambda inputs: apply_quantizer(self, 'input', inputs, bits, alpha, **how)

  @nn.nowrap
  def _quantized_kernel(self, quant: QuantConfig, kernel: jax.Array) -> jax.Array:
    axes = self.output_axes(kernel.shape)
    channels = math.prod(kernel.shape[axis] for axis in axes)
    shape = (channels,) if quant.granularity == 'kernel' else ()
    bits, how = self._bits(quant, 'kernel', quant.kernel_bits, quant.allowed_kernel_bits, shape)
    alpha = None
    if quant.scheme == 'lsq':
      each, size = quant.range_kind == 'channel', quant.group_size
      start = lambda key: lsq.initial_range(with_last_channels(kernel, axes), bits, each=each, group_size=size)
      alpha = super().param('kernel_alpha', start)
    how['kept'] = self._kept(quant, kernel, bits)

    def quantizer(flat: jax.Array) -> jax.Array:
      quantized = apply_quantizer(self, 'kernel', flat, bits, alpha, **how)
      if alpha is not None and self.is_mutable_collection(DISTANCES) and not self.is_initializing():
        # Where a weight is clipped the distance moves nothing, and the ranges are not drawn by it.
        ranges = ranges_of_weights(quant, alpha, flat.shape)
        balanced = quant.kernel_levels == 'balanced'
        lowest, largest, level = jax.lax.stop_gradient((*lsq.ends(ranges, bits, flat, balanced=balanced), quantized))
        distance = jnp.sum(jnp.square(jnp.where((flat >= lowest) & (flat <= largest), flat - level, 0)))
        self.variable(DISTANCES, 'kernel', lambda: distance).value = distance
      return quantized

    return over_channels(quantizer, kernel, axes)

  @nn.nowrap
  def _kept(self, quant: QuantConfig, kernel: jax.Array, bits: jax.Array | int) -> jax.Array | None:
    """Which entries of the kernel belong to no pruned channel, broadcastable against it; `None` for all."""
    along = lambda mask, axis: jnp.expand_dims(mask, [i for i in range(kernel.ndim) if i != kernel.ndim + axis])
    kept = along(bits > 0, -1) if quant.prunes else None
    if self.source is not None:
      # A depthwise kernel has its input channels where others have their output channels.
      of_source = along(gate(self, self.source) > 0, -1 if kernel.shape[-2] == 1 else -2)
      kept = of_source if kept is None else kept & of_source
    return kept


@functools.cache
def quantized_class(layer: type[nn.Module]) -> type[Quantized]:
  """The class `layer`, a linen layer with a parameter `kernel`, with the fields of `Quantized` beside its own."""
  return layer if issubclass(layer, Quantized) else type(f'Quantized{layer.__name__}', (Quantized, layer), {})


def gate(module: nn.Module, source: str) -> jax.Array:
  """The gates of a prunable layer's channels, min(bits, 1) `[C]`, as seen by a module beside it that runs later."""
  around: Any = module.parent
  return bitwidths.gate(around.variables['bits'][source]['kernel'])


class QuantConv(Quantized, nn.Conv):
  """`nn.Conv` with a quantized kernel and quantized inputs; `quant=None` is `nn.Conv` itself."""

  conv_general_dilated: Any = conv.conv_general_dilated


class QuantConvTranspose(Quantized, nn.ConvTranspose):
  """`nn.ConvTranspose` with a quantized kernel and quantized inputs; `quant=None` is `nn.ConvTranspose` itself."""


class QuantDense(Quantized, nn.Dense):
  """`nn.Dense` with a quantized kernel and quantized inputs; `quant=None` is `nn.Dense` itself."""


class QuantEmbed(Quantized):
  """A quantized table of embeddings, whose rows are looked up, and which may be the head as well, by `attend`.

  Its parameter `kernel` is `[num_embeddings, features]`; each row is an output channel, as it is of the head. The table
  is quantized once, whatever it is used for. The inputs of the head have a learned range and bit-width as those of a
  dense layer; a table that is only looked up is to be `weight_only`.

  Attributes:
    num_embeddings: rows.
    features: of each.
    dtype: of what is computed; `None` for that of the table.
    kernel_init: where it starts.
  """

  uses: ClassVar[tuple[str, ...]] = ('__call__', 'attend')

  num_embeddings: int = 1
  features: int = 1
  dtype: Any = None
  kernel_init: Any = nn.initializers.normal(0.02)

  def setup(self) -> None:
    self.table = self.param('kernel', self.kernel_init, (self.num_embeddings, self.features))
    quant = self.quant
    self.read = None if quant is None or quant.weight_only else self._input_quantizer(quant)

  @nn.nowrap
  def output_axes(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axis of the rows."""
    return (len(kernel_shape) - 2,)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """The rows `[..., features]` of integers `[...]`."""
    table = self.table if self.dtype is None else self.table.astype(self.dtype)
    return checkpoint_name(jnp.take(table, inputs, axis=0), OUTPUTS)

  def attend(self, inputs: jax.Array) -> jax.Array:
    """The products `[..., num_embeddings]` of inputs `[..., features]` with all rows."""
    inputs = inputs if self.read is None else self.read(inputs)
    inputs, table = nn.dtypes.promote_dtype(inputs, self.table, dtype=self.dtype)
    return checkpoint_name(jnp.einsum('...d,vd->...v', inputs, table), OUTPUTS)


class QuantIdentity(Quantized):
  """Its inputs, quantized: for several layers that read the same, which name it as their `input_from`.

  `quant=None` and `weight_only` leave them as they are. Of the variables of a layer it has `params/alpha` and
  `bits/input`.
  """

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    return inputs if self.quant is None or self.quant.weight_only else self._quantized_input(self.quant, inputs)


class GatedBatchNorm(nn.BatchNorm):
  """Batch norm whose outputs are gated: channels that the layer `source` has pruned come out as exactly 0.

  Attributes:
    source: the name of the prunable sibling that made these channels; `None` for batch norm as it is.
  """

  source: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
  ) -> jax.Array:
    y = super().__call__(x, use_running_average, mask=mask)
    return y if self.source is None else y * jnp.expand_dims(gate(self, self.source), range(y.ndim - 1)).astype(y.dtype)


@contextlib.contextmanager
def watch_layers(seen: Callable[[Quantized, jax.Array, jax.Array], None]) -> Iterator[None]:
  """While this context is open, every call of a quantized layer is reported as `seen(module, x, y)`.

  x are the inputs before their quantization, y the outputs; under a trace both are tracers.
  """
  running: list[nn.Module] = []
  seen_inside: set[tuple] = set()

  def intercept(call, args, kwargs, context):
    module = context.module
    is_layer = isinstance(module, Quantized) and context.method_name in module.uses
    if not is_layer or any(module is other for other in running):
      return call(*args, **kwargs)  # the layer that is extended runs inside ours, as a call of the same module
    running.append(module)
    seen_inside.discard(module.path)
    try:
      y = call(*args, **kwargs)
    finally:
      running.pop()
    if module.path not in seen_inside:  # else another ran in place of this one, see `wrap`
      seen(module, args[0] if args else kwargs['inputs'], y)
    seen_inside.add(module.path)
    return y

  with nn.intercept_methods(intercept):
    yield
