"""Flax layers with fractional bit-widths: `nn.Conv` and `nn.Dense` plus `quant=QuantConfig(...)`.

A quantized layer owns, beside the parameters of the layer it extends:

* `params/alpha`: the clip of its inputs, `()`;
* `params/kernel_alpha`: with the scheme `lsq`, the range of its kernel, `()`;
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
from jax.ad_checkpoint import checkpoint_name

from fracbits_jax import bitwidths, conv, lsq, quantize

GRANULARITIES = ('layer', 'kernel')
SCHEMES = (*quantize.SCHEMES, 'lsq')
FLOAT_BITS = 32
OUTPUTS = 'layer_outputs'  # what `jax.checkpoint`'s policies know the outputs of these layers by


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
    scheme: `original` or `modified` for DoReFa kernels, whose inputs are always `original`; `lsq` for a learned step
      size of kernels and inputs.
    learned: false says that the bit-widths in the collection `bits` are integers, fixed after a search: the layer is
      then as fast as one with fixed bits.
    stochastic: draw one of the two neighbouring bit-widths instead of interpolating, wherever the network is applied
      with a random stream `bits`.
    sat: rescale the quantized kernel as SAT does where no batch norm follows the layer; not with `lsq`, whose ranges
      are learned.
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
  learned: bool = True
  stochastic: bool = False
  sat: bool = False
  alpha_init: float = 8.0

  def __post_init__(self):
    if self.granularity not in GRANULARITIES:
      raise ValueError(f'granularity={self.granularity!r} is unknown: choose one of {", ".join(GRANULARITIES)}')
    if self.scheme not in SCHEMES:
      raise ValueError(f'scheme={self.scheme!r} is unknown: choose one of {", ".join(map(repr, SCHEMES))}')
    object.__setattr__(self, 'choices', bitwidths.check_choices(self.choices))
    if self.choices == (0,):
      raise ValueError('choices=(0,) would leave nothing of a kernel: allow at least one bit-width above 0')
    try:
      allowed = bitwidths.check_choices(self.allowed_input_bits)
      object.__setattr__(self, 'input_choices', None if self.input_choices is None else allowed)
    except ValueError as error:
      raise ValueError(f'for inputs, {error}') from None
    largest_input = FLOAT_BITS if self.weight_only else bitwidths.MAX_BITS
    for name, largest in (('kernel_bits', bitwidths.MAX_BITS), ('input_bits', largest_input)):
      value = getattr(self, name)
      if value is not None and not (isinstance(value, int | np.integer) and 0 <= value <= largest):
        raise ValueError(
          f'{name}={value!r} is not a fixed bit-width: give an integer from 0 to {largest}, or None to learn it'
        )
    if self.stochastic and self.prunes:
      raise ValueError(
        'stochastic=True cannot prune: a gate does not follow what is drawn, so take 0 out of choices or interpolate'
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
  def prunes(self) -> bool:
    """Whether output channels can be pruned: a learned bit-width for each of them, and 0 among the allowed ones."""
    return self.granularity == 'kernel' and self.kernel_bits is None and self.choices[0] == 0

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

  Attributes:
    quant: how the layer is quantized; `None` leaves it as it is.
    source: the name of the sibling whose pruned channels are missing from the inputs; see `gate`.
  """

  quant: QuantConfig | None = None
  source: str | None = None

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    if self.quant is not None and not self.quant.weight_only:
      inputs = self._quantized_input(inputs)
    return checkpoint_name(super().__call__(inputs), OUTPUTS)

  @nn.nowrap
  def param(self, name: str, init_fn: Any, *args, **kwargs) -> Any:
    value = super().param(name, init_fn, *args, **kwargs)
    return self._quantized_kernel(value) if name == 'kernel' and self.quant is not None else value

  @nn.nowrap
  def _bits(
    self, name: str, fixed: int | None, choices: tuple[int, ...], shape: tuple[int, ...]
  ) -> tuple[jax.Array | int, dict[str, Any]]:
    """A bit-width of this layer, with the choices and the noise that go with it."""
    if fixed is not None:
      return fixed, {'choices': (fixed,)}
    start = min(max(self.quant.init_bits, choices[0]), choices[-1])
    bits = self.variable('bits', name, jnp.full, shape, start, jnp.float32).value
    if not self.quant.learned:
      return bits, {'learned': False}
    drawn = self.quant.stochastic and self.has_rng('bits')
    return bits, {'choices': choices, 'noise': bitwidths.draw_noise(self.make_rng('bits'), shape) if drawn else None}

  @nn.nowrap
  def _quantized_input(self, inputs: jax.Array) -> jax.Array:
    quant = self.quant
    alpha = super().param('alpha', nn.initializers.constant(quant.alpha_init), (), jnp.float32)
    bits, how = self._bits('input', quant.input_bits, quant.allowed_input_bits, ())
    function = lsq.activation if quant.scheme == 'lsq' else quantize.activation
    return function(inputs, bits, alpha, signed=quant.signed_input, **how)

  @nn.nowrap
  def _quantized_kernel(self, kernel: jax.Array) -> jax.Array:
    quant = self.quant
    shape = kernel.shape[-1:] if quant.granularity == 'kernel' else ()
    bits, how = self._bits('kernel', quant.kernel_bits, quant.choices, shape)
    kept = self._kept(kernel, bits)
    if quant.scheme == 'lsq':
      start = lambda key: lsq.initial_range(kernel, bits)
      quantized = lsq.kernel(kernel, bits, super().param('kernel_alpha', start), **how)
    else:
      quantized = quantize.kernel(kernel, bits, scheme=quant.scheme, kept=kept, **how)
    return quantize.rescale(quantized, kept) if quant.sat and quant.scheme != 'lsq' else quantized

  @nn.nowrap
  def _kept(self, kernel: jax.Array, bits: jax.Array | int) -> jax.Array | None:
    """Which entries of the kernel belong to no pruned channel, broadcastable against it; `None` for all."""
    along = lambda mask, axis: jnp.expand_dims(mask, [i for i in range(kernel.ndim) if i != kernel.ndim + axis])
    kept = along(bits > 0, -1) if self.quant.prunes else None
    if self.source is not None:
      # A depthwise kernel has its input channels where others have their output channels.
      of_source = along(gate(self, self.source) > 0, -1 if kernel.shape[-2] == 1 else -2)
      kept = of_source if kept is None else kept & of_source
    return kept


def gate(module: nn.Module, source: str) -> jax.Array:
  """The gates of a prunable layer's channels, min(bits, 1) `[C]`, as seen by a module beside it that runs later."""
  return bitwidths.gate(module.parent.variables['bits'][source]['kernel'])


class QuantConv(_Quantized, nn.Conv):
  """`nn.Conv` with a quantized kernel and quantized inputs; `quant=None` is `nn.Conv` itself."""

  conv_general_dilated: Any = conv.conv_general_dilated


class QuantDense(_Quantized, nn.Dense):
  """`nn.Dense` with a quantized kernel and quantized inputs; `quant=None` is `nn.Dense` itself."""


class GatedBatchNorm(nn.BatchNorm):
  """Batch norm whose outputs are gated: channels that the layer `source` has pruned come out as exactly 0.

  Attributes:
    source: the name of the prunable sibling that made these channels; `None` for batch norm as it is.
  """

  source: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = super().__call__(x)
    return y if self.source is None else y * jnp.expand_dims(gate(self, self.source), range(y.ndim - 1)).astype(y.dtype)


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
