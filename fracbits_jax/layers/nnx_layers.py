"""NNX layers with fractional bit-widths: the class of a layer with quantization before it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from fracbits_jax.layers.operands import apply_quantizer, einsum_output_axes, over_channels
from fracbits_jax.layers.quant_config import QuantConfig

LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
_watchers: list[Callable[[Any, jax.Array, jax.Array], None]] = []


class Bits(nnx.Variable):
  """A learned bit-width: `()`, or `[C_out]` for a kernel with one for each output channel."""


class Quantized(nnx.Module):
  """Mixin before an NNX layer, whose inputs and kernel it quantizes where the layer brings them to one dtype.

  Attributes:
    quant: how the layer is quantized; `None` leaves it as it is.
    path: of the layer in the model.
    alpha, kernel_alpha: the clip of the inputs, and with the scheme `lsq` the range of the kernel, `()`.
    bits_kernel, bits_input: the learned bit-widths; not there where they are fixed.
  """

  quant: QuantConfig | None
  path: tuple[str, ...]
  alpha: nnx.Param
  kernel_alpha: nnx.Param
  bits_kernel: Bits
  bits_input: Bits

  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    y = super().__call__(inputs, *args, **kwargs)
    for seen in _watchers:
      seen(self, inputs, y)
    return y

  @property
  def promote_dtype(self) -> Callable[..., Any]:
    """The layer's own function of that name, behind the quantizers."""
    own = vars(self)['promote_dtype']
    return own if self.quant is None else functools.partial(self._quantized_operands, own, self.quant)

  @promote_dtype.setter
  def promote_dtype(self, function: Callable[..., Any]) -> None:
    vars(self)['promote_dtype'] = function

  def _quantized_operands(self, own: Callable[..., Any], quant: QuantConfig, operands: tuple, **kwargs: Any) -> tuple:
    inputs, kernel, *rest = operands
    if not quant.weight_only:
      inputs = self._quantize(quant, 'input', inputs, self.alpha[...])
    alpha = None if quant.scheme != 'lsq' else self.kernel_alpha[...]
    axes = self.output_axes(kernel.shape)
    kernel = over_channels(functools.partial(self._quantize, quant, 'kernel', alpha=alpha), kernel, axes)
    return own((inputs, kernel, *rest), **kwargs)

  def _quantize(self, quant: QuantConfig, which: str, x: jax.Array, alpha: jax.Array | None) -> jax.Array:
    fixed = quant.kernel_bits if which == 'kernel' else quant.input_bits
    choices = quant.allowed_kernel_bits if which == 'kernel' else quant.allowed_input_bits
    how: dict[str, Any] = {'choices': choices} if quant.learned else {'learned': False}
    bits: Any = fixed
    if fixed is None:
      bits = (self.bits_kernel if which == 'kernel' else self.bits_input)[...]
    else:
      how = {'choices': (fixed,)}
    return apply_quantizer(self, which, x, bits, alpha, **how)

  def output_axes(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of the kernel that are output channels, together C_out of them."""
    if isinstance(self, nnx.LinearGeneral):
      batch, features = len(self.batch_axis), len(self.out_features)
      return (*range(batch), *range(len(kernel_shape) - features, len(kernel_shape)))
    if isinstance(self, nnx.Einsum):
      return einsum_output_axes(self.einsum_str, len(kernel_shape))
    if isinstance(self, nnx.ConvTranspose) and self.transpose_kernel:
      return (len(kernel_shape) - 2,)
    return (len(kernel_shape) - 1,)


@functools.cache
def quantized_class(layer: type[nnx.Module]) -> type[nnx.Module]:
  """The class `layer` with quantization."""
  return type(f'Quantized{layer.__name__}', (Quantized, layer), {})


def quantized_layers(model: nnx.Module) -> list[Any]:
  """The layers that can be quantized, whether they are or not."""
  return [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, Quantized)]


@contextlib.contextmanager
def watch_layers(seen: Callable[[Any, jax.Array, jax.Array], None]) -> Iterator[None]:
  _watchers.append(seen)
  try:
    yield
  finally:
    _watchers.remove(seen)
