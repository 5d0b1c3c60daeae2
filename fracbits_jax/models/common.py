"""What the networks share: their arguments, and how their layers are quantized, initialised and padded."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from fracbits_jax.fast import pool
from fracbits_jax.layers import (
  GatedBatchNorm,
  QuantConfig,
  QuantConv,
  QuantConvTranspose,
  QuantDense,
  QuantEmbed,
  QuantIdentity,
)

EDGE_BITS = 8  # of the images, of the first kernel and of the classifier's kernel
NORM_MOMENTUM = 0.9  # of batch norm's running statistics

_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_dense_init = nn.initializers.normal(0.01)


def scaled(channels: int, width: float, divisor: int = 8) -> int:
  """`channels * width` rounded to a multiple of `divisor`, at least one, and never more than 10% below."""
  rounded = max(divisor, int(channels * width + divisor / 2) // divisor * divisor)
  return rounded if rounded >= 0.9 * channels * width else rounded + divisor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """Builders of a network's layers, bound once to how it is quantized and run.

  Attributes:
    quant: how the layers are quantized; `None` for a float network.
    train: whether batch norm takes the statistics of the batch.
    axis_name: the mapped axis over which it averages them.
    kept: output channels of the layers that were compacted, by name; see `fracbits_jax.policy.compact`.
    dtype: of the computation; `None` follows images and parameters.
    padding: of convolutions, as in `nn.Conv`; `None` for half the kernel on every side.
    norm_epsilon: what batch norm adds to variances.
  """

  quant: QuantConfig | None
  train: bool
  axis_name: str | None
  kept: Mapping[str, int] = FrozenDict()
  dtype: Any = None
  padding: str | None = None
  norm_epsilon: float = 1e-5

  def _conv(
    self,
    quant: QuantConfig | None,
    features: int,
    size: int | tuple[int, int],
    stride: int,
    groups: int,
    name: str,
    source: str | None = None,
    input_from: str | None = None,
    padding: str | None = None,
  ) -> QuantConv:
    kernel_size = (size, size) if isinstance(size, int) else size
    padding = self.padding if padding is None else padding
    return QuantConv(
      self.kept.get(name, features),
      kernel_size,
      strides=stride,
      padding=tuple((n // 2, n // 2) for n in kernel_size) if padding is None else padding,
      feature_group_count=groups,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=_conv_init,
      quant=quant,
      source=self._pruned(source),
      input_from=input_from if self._quantizes_residuals else None,
      name=name,
    )

  @property
  def _quantizes_residuals(self) -> bool:
    return self.quant is not None and self.quant.quantize_residuals

  def _pruned(self, source: str | None) -> str | None:
    """`source` if its channels can be pruned at all."""
    return source if self.quant is not None and self.quant.prunes else None

  def _with(self, **changes) -> QuantConfig | None:
    return None if self.quant is None else dataclasses.replace(self.quant, **changes)

  def stem(
    self, features: int, size: int | tuple[int, int], stride: int, *, padding: str | None = None, name: str
  ) -> QuantConv:
    """The first convolution: an 8-bit kernel on images, which are 8-bit integers already; `padding` as in `nn.Conv`."""
    return self._conv(self._on_images(), features, size, stride, 1, name, padding=padding)

  def dense_stem(self, features: int, *, name: str) -> QuantDense:
    """The first layer on vectors `[N, F]`, which are 8-bit integers already; batch norm follows it."""
    quant = self._on_images()
    return QuantDense(features, use_bias=False, dtype=self.dtype, kernel_init=_conv_init, quant=quant, name=name)

  def patches(self, features: int, size: int, *, name: str) -> QuantConv:
    """The first layer of a transformer: a stem for patches that do not overlap."""
    return self._conv(self._on_images(), features, size, size, 1, name, padding='VALID')

  def _on_images(self) -> QuantConfig | None:
    edge = dict(kernel_bits=EDGE_BITS, input_bits=EDGE_BITS)
    return self._with(**edge, weight_only=True, quantize_residuals=False, sat=False)

  def conv(
    self,
    features: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    signed: bool = False,
    bare: bool = False,
    prunable: bool = False,
    source: str | None = None,
    input_from: str | None = None,
    name: str,
  ) -> QuantConv:
    """A convolution without bias.

    Args:
      features: output channels.
      size: height and width of the kernel.
      stride: of height and width.
      groups: groups of channels.
      signed: whether its inputs have no ReLU before them.
      bare: whether no batch norm follows; SAT rescales such kernels.
      prunable: whether its channels can be pruned, because nothing but the layers that name it as `source` sees them.
      source: the prunable layer that makes its input channels.
      input_from: the `identity` that its inputs come from.
      name: of the layer.
    """
    return self._conv(self._inner(signed, bare, prunable), features, size, stride, groups, name, source, input_from)

  def conv_transpose(
    self, features: int, size: int, stride: int, *, signed: bool = False, last: bool = False, name: str
  ) -> QuantConvTranspose:
    """A transposed convolution, `stride` times as high and wide: without bias, or the last layer with its 8 bits."""
    quant = (
      self._with(kernel_bits=EDGE_BITS, signed_input=signed)
      if last
      else self._inner(signed, bare=False, prunable=False)
    )
    return QuantConvTranspose(
      features, (size, size), strides=(stride, stride), use_bias=last, dtype=self.dtype, quant=quant, name=name
    )

  def identity(self, *, signed: bool = False, name: str) -> QuantIdentity:
    """What comes into a residual block, quantized where `quant.quantize_residuals` says so; arguments as for `conv`."""
    quant = self._with(signed_input=signed, sat=False) if self._quantizes_residuals else None
    return QuantIdentity(quant=quant, name=name)

  def _inner(self, signed: bool, bare: bool, prunable: bool) -> QuantConfig | None:
    """How a layer between the first and the last is quantized."""
    if self.quant is None:
      return None
    quant = dataclasses.replace(self.quant, signed_input=signed, sat=bare and self.quant.sat)
    return quant if prunable or not quant.prunes else dataclasses.replace(quant, choices=quant.allowed_kernel_bits[1:])

  def dense(
    self,
    features: int,
    *,
    signed: bool = True,
    bare: bool = True,
    prunable: bool = False,
    source: str | None = None,
    name: str,
  ) -> QuantDense:
    """A dense layer; arguments as for `conv`, and a bare one has a bias."""
    return QuantDense(
      self.kept.get(name, features),
      use_bias=bare,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      quant=self._inner(signed, bare, prunable),
      source=self._pruned(source),
      name=name,
    )

  def linear(self, features: int, *, deviation: float, name: str) -> QuantDense:
    """A dense layer without bias on signed inputs, whose kernel starts normal with this deviation."""
    return QuantDense(
      features,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(deviation),
      quant=self._inner(signed=True, bare=True, prunable=False),
      name=name,
    )

  def embedding(self, rows: int, features: int, *, is_head: bool, name: str) -> QuantEmbed:
    """A table of embeddings, a kernel as the others; with `is_head` the last layer as well, by `attend`."""
    quant = self._inner(signed=True, bare=True, prunable=False)
    if quant is not None and not is_head:
      quant = dataclasses.replace(quant, weight_only=True, input_bits=None)
    return QuantEmbed(num_embeddings=rows, features=features, dtype=self.dtype, quant=quant, name=name)

  def classifier(
    self, num_classes: int, *, signed: bool = False, source: str | None = None, name: str = 'classifier'
  ) -> QuantDense:
    """The last layer: an 8-bit kernel, inputs with a learned bit-width."""
    quant = self._with(kernel_bits=EDGE_BITS, signed_input=signed)
    source = self._pruned(source)
    return QuantDense(num_classes, dtype=self.dtype, kernel_init=_dense_init, quant=quant, source=source, name=name)

  def norm(self, *, source: str | None = None, name: str) -> GatedBatchNorm:
    """Batch norm over the whole batch, also where that is spread over devices; pruned channels of `source` are 0."""
    return GatedBatchNorm(
      use_running_average=not self.train,
      momentum=NORM_MOMENTUM,
      epsilon=self.norm_epsilon,
      axis_name=self.axis_name,
      dtype=self.dtype,
      source=self._pruned(source),
      name=name,
    )


class Network(nn.Module, kw_only=True):
  """The arguments that all networks have, as in `models.create`.

  Attributes:
    task: what a network of this kind is trained for, a name of `tasks`.
  """

  task: ClassVar[str] = 'classification'

  num_classes: int = 1000
  width: float = 1.0
  small_images: bool = False
  quant: QuantConfig | None = None
  axis_name: str | None = None
  kept: Mapping[str, int] = FrozenDict()
  image_mean: tuple[float, ...] = ()
  dtype: Any = None

  @nn.nowrap
  def has_residuals(self) -> bool:
    """Whether it has residual sums that `quant.quantize_residuals` is for."""
    return False

  @nn.nowrap
  def parts(self, train: bool) -> Parts:
    """The builders of its layers."""
    if self.quant is not None and self.quant.quantize_residuals and not self.has_residuals():
      raise ValueError(
        f'{type(self).__name__} has no residual sums of quantized values: leave quantize_residuals=False, or take a '
        'ResNet without pre-activation, MobileNetV2 or EfficientNet-Lite0'
      )
    return Parts(quant=self.quant, train=train, axis_name=self.axis_name, kept=self.kept, dtype=self.dtype)


max_pool = functools.partial(pool.max_pool, size=3, stride=2, padding=1)


def centred(images: jax.Array, mean: tuple[float, ...]) -> jax.Array:
  """Images `[N, ..., C]` less the `mean` of each colour channel, in 0..255; an empty one leaves them as they are.

  The zeros with which the first convolution pads are the mean colour then, as in networks whose images come normalised.
  They count as 8-bit inputs as before: a constant can be moved behind the convolution.

  Raises:
    ValueError: a mean of other than C values, or one outside 0..255.
  """
  if not mean:
    return images
  channels = images.shape[-1]
  if len(mean) != channels or not all(isinstance(value, int | float) and 0 <= value <= 255 for value in mean):
    raise ValueError(
      f'image_mean={mean} does not fit images of {channels} channel(s): give a number from 0 to 255 for each, or none'
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    images = images.astype(jnp.float32)  # integers would wrap around below 0
  return images - jnp.expand_dims(jnp.asarray(mean, images.dtype), range(images.ndim - 1))


def global_pool(x: jax.Array) -> jax.Array:
  """The mean over height and width, `[N, H, W, C]` to `[N, C]`."""
  return jnp.mean(x, axis=(1, 2))
