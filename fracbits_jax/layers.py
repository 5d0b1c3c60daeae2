"""Flax layers with fractional bit-widths: `nn.Conv` and `nn.Dense` plus `quant=QuantConfig(...)`.

A quantized layer owns, beside the parameters of the layer it extends:

* `params/alpha`: the clip of its inputs, `()`;
* `bits/kernel`: the bit-width of its kernel, `()` or `[C_out]`;
* `bits/input`: the bit-width of its inputs, `()`.

Whatever the configuration fixes is absent from the collection `bits`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import conv, quantize

GRANULARITIES = ('layer', 'kernel')
FLOAT_BITS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig:
  """How a layer is quantized.

  Attributes:
    granularity: `layer` for one bit-width a kernel, `kernel` for one per output channel.
    choices: allowed bit-widths of kernels, strictly increasing integers from 0 to 16; `None` means all of them.
    input_choices: allowed bit-widths of inputs; `None` means `choices` without 0.
    init_bits: where learned bit-widths start, a real number, clipped to the allowed range.
    kernel_bits: a fixed integer bit-width for the kernel instead of a learned one.
    input_bits: a fixed integer bit-width for the inputs instead of a learned one.
    weight_only: leave the inputs as they are. They count as `input_bits` in the cost, or as 32 bits without it.
    signed_input: inputs are quantized on [-alpha, alpha] rather than on [0, alpha].
    scheme: quantizer of the kernel, `original` or `modified`; inputs always use `original`.
    sat: rescale the quantized kernel as SAT does where no batch norm follows the layer.
    alpha_init: where the clip of the inputs starts.
  """

  granularity: str = 'layer'
  choices: Sequence[int] | None = tuple(range(1, 9))
  input_choices: Sequence[int] | None = None
  init_bits: float = 8.0
  kernel_bits: int | None = None
  input_bits: int | None = None
  weight_only: bool = False
  signed_input: bool = False
  scheme: str = 'original'
  sat: bool = False
  alpha_init: float = 8.0

  def __post_init__(self):
    if self.granularity not in GRANULARITIES:
      raise ValueError(f'granularity={self.granularity!r} is unknown: choose one of {", ".join(GRANULARITIES)}')
    quantize.check_scheme(self.scheme)
    object.__setattr__(self, 'choices', quantize.check_choices(self.choices))
    try:
      allowed = quantize.check_choices(self.allowed_input_bits)
      object.__setattr__(self, 'input_choices', None if self.input_choices is None else allowed)
    except ValueError as error:
      raise ValueError(f'for inputs, {error}') from None
    largest_input = FLOAT_BITS if self.weight_only else quantize.MAX_BITS
    for name, largest in (('kernel_bits', quantize.MAX_BITS), ('input_bits', largest_input)):
      value = getattr(self, name)
      if value is not None and not (isinstance(value, int | np.integer) and 0 <= value <= largest):
        raise ValueError(
          f'{name}={value!r} is not a fixed bit-width: give an integer from 0 to {largest}, or None to learn it'
        )
    if not self.init_bits >= 0:
      raise ValueError(f'init_bits={self.init_bits!r} is not a bit-width: give a number of at least 0')
    if not self.alpha_init > 0:
      raise ValueError(f'alpha_init={self.alpha_init!r} is not a clip: give a number above 0')

  @property
  def allowed_input_bits(self) -> tuple[int, ...]:
    """The allowed bit-widths of the inputs."""
    return tuple(b for b in self.choices if b > 0) if self.input_choices is None else self.input_choices

  @property
  def learns_input(self) -> bool:
    """Whether the bit-width of the inputs is a variable."""
    return not self.weight_only and self.input_bits is None

  @property
  def counted_input_bits(self) -> int | None:
    """The fixed bit-width with which the inputs enter the cost; `None` where it is learned."""
    return None if self.learns_input else FLOAT_BITS if self.input_bits is None else self.input_bits


class _Quantized(nn.Module):
  """Mixin before a linen layer: the layer sees quantized inputs, and its parameter `kernel` quantized.

  The layer's own code does the rest, so strides, groups, dilation, padding and dtypes are the library's.
  """

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    if self.quant is not None and not self.quant.weight_only:
      inputs = self._quantized_input(inputs)
    return super().__call__(inputs)

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *args, **kwargs) -> Any:
    value = super().param(name, init_fn, *args, **kwargs)
    return self._quantized_kernel(value) if name == 'kernel' and self.quant is not None else value

  @nn.nowrap
  def _bits(self, name: str, choices: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    start = min(max(self.quant.init_bits, choices[0]), choices[-1])
    return self.variable('bits', name, jnp.full, shape, start, jnp.float32).value

  @nn.nowrap
  def _quantized_input(self, inputs: jax.Array) -> jax.Array:
    quant = self.quant
    alpha = super().param('alpha', nn.initializers.constant(quant.alpha_init), (), jnp.float32)
    choices, bits = quant.allowed_input_bits, quant.input_bits
    if bits is None:
      bits = self._bits('input', choices, ())
    else:
      choices = (bits,)
    return quantize.activation(inputs, bits, alpha, signed=quant.signed_input, choices=choices)

  @nn.nowrap
  def _quantized_kernel(self, kernel: jax.Array) -> jax.Array:
    quant = self.quant
    choices, bits = quant.choices, quant.kernel_bits
    if bits is None:
      bits = self._bits('kernel', choices, kernel.shape[-1:] if quant.granularity == 'kernel' else ())
    else:
      choices = (bits,)
    quantized = quantize.kernel(kernel, bits, scheme=quant.scheme, choices=choices)
    return quantize.rescale(quantized) if quant.sat else quantized


class QuantConv(_Quantized, nn.Conv):
  """`nn.Conv` with a quantized kernel and quantized inputs; `quant=None` is `nn.Conv` itself."""

  conv_general_dilated: Any = conv.conv_general_dilated


class QuantDense(_Quantized, nn.Dense):
  """`nn.Dense` with a quantized kernel and quantized inputs; `quant=None` is `nn.Dense` itself."""


@contextlib.contextmanager
def watch_layers(seen: Callable[[QuantConv | QuantDense, jax.Array, jax.Array], None]) -> Iterator[None]:
  """While this context is open, every call of a `QuantConv` or `QuantDense` is reported as `seen(module, x, y)`.

  x are the inputs before their quantization, y the outputs; under a trace both are tracers.
  """
  running = []

  def intercept(call, args, kwargs, context):
    module = context.module
    is_layer = context.method_name == '__call__' and isinstance(module, QuantConv | QuantDense)
    # The layer that is extended runs inside ours, as a call of the same module.
    if not is_layer or any(module is other for other in running):
      return call(*args, **kwargs)
    running.append(module)
    try:
      y = call(*args, **kwargs)
    finally:
      running.pop()
    seen(module, args[0] if args else kwargs['inputs'], y)
    return y

  with nn.intercept_methods(intercept):
    yield
