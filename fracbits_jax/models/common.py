"""What the networks share: how their layers are quantized, initialised and padded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

EDGE_BITS = 8  # of the images, of the first kernel and of the classifier's kernel

_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_dense_init = nn.initializers.normal(0.01)


def scaled(channels: int, width: float, divisor: int = 8) -> int:
  """`channels * width` rounded to a multiple of `divisor`, at least one, and never more than 10% below."""
  rounded = max(divisor, int(channels * width + divisor / 2) // divisor * divisor)
  return rounded if rounded >= 0.9 * channels * width else rounded + divisor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """Builders of a network's layers, bound once to how it is quantized and run."""

  quant: QuantConfig | None
  train: bool
  axis_name: str | None

  def _conv(
    self, quant: QuantConfig | None, features: int, size: int, stride: int, groups: int, name: str
  ) -> QuantConv:
    return QuantConv(
      features,
      (size, size),
      strides=stride,
      padding=((size // 2, size // 2),) * 2,
      feature_group_count=groups,
      use_bias=False,
      kernel_init=_conv_init,
      quant=quant,
      name=name,
    )

  def _with(self, **changes) -> QuantConfig | None:
    return None if self.quant is None else dataclasses.replace(self.quant, **changes)

  def stem(self, features: int, size: int, stride: int, *, name: str) -> QuantConv:
    """The first convolution: an 8-bit kernel on images, which are 8-bit integers already."""
    quant = self._with(kernel_bits=EDGE_BITS, input_bits=EDGE_BITS, weight_only=True, sat=False)
    return self._conv(quant, features, size, stride, 1, name)

  def conv(
    self,
    features: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    signed: bool = False,
    bare: bool = False,
    name: str,
  ) -> QuantConv:
    """A convolution without bias, padded symmetrically.

    `signed` says that its inputs have no ReLU before them, `bare` that no batch norm follows (SAT rescales those).
    """
    quant = self._with(signed_input=signed, sat=bare and self.quant.sat) if self.quant else None
    return self._conv(quant, features, size, stride, groups, name)

  def classifier(self, num_classes: int, *, name: str = 'classifier') -> QuantDense:
    """The last layer: an 8-bit kernel, inputs with a learned bit-width."""
    quant = self._with(kernel_bits=EDGE_BITS, signed_input=False)
    return QuantDense(num_classes, kernel_init=_dense_init, quant=quant, name=name)

  def norm(self, *, name: str) -> nn.BatchNorm:
    """Batch norm over the whole batch, also where that is spread over devices."""
    return nn.BatchNorm(
      use_running_average=not self.train, momentum=0.9, epsilon=1e-5, axis_name=self.axis_name, name=name
    )


max_pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def centred(images: jax.Array, mean: tuple[float, ...]) -> jax.Array:
  """Images `[N, H, W, C]` less the `mean` of each colour channel, in 0..255; an empty one leaves them as they are.

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
  return images - jnp.asarray(mean, images.dtype)[None, None, None]


def global_pool(x: jax.Array) -> jax.Array:
  """The mean over height and width, `[N, H, W, C]` to `[N, C]`."""
  return jnp.mean(x, axis=(1, 2))
