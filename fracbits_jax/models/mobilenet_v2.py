"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381); ReLU for ReLU6 by default, as learned clips do its work."""

from collections.abc import Callable

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, Parts, centred, global_pool, scaled

# (expansion, output channels, repeats, stride of the first)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(Network, kw_only=True):
  """MobileNetV2; arguments as in `models.create`. Inputs behind a linear bottleneck are signed.

  Attributes:
    relu6: min(max(x, 0), 6) for ReLU, as in the paper; weights that were trained with it need it.
  """

  relu6: bool = False

  @nn.nowrap
  def has_residuals(self) -> bool:
    return True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x = centred(x, self.image_mean)
    relu = nn.relu6 if self.relu6 else nn.relu
    x = parts.stem(scaled(32, self.width), 3, 1 if self.small_images else 2, name='stem')(x)
    x = relu(parts.norm(name='stem_norm')(x))
    block = 0
    for expansion, channels, repeats, first_stride in _STAGES:
      for i in range(repeats):
        block += 1
        stride = first_stride if i == 0 else 1
        x = inverted_residual(parts, relu, x, expansion, scaled(channels, self.width), stride, name=f'block{block}')
    # The last layer before the pooling does not shrink with the width.
    x = parts.conv(scaled(1280, max(1.0, self.width)), 1, signed=True, prunable=True, name='head')(x)
    x = relu(parts.norm(source='head', name='head_norm')(x))
    return parts.classifier(self.num_classes, source='head')(global_pool(x))


def inverted_residual(
  parts: Parts, relu: Callable, x: jax.Array, expansion: int, channels: int, stride: int, *, size: int = 3, name: str
) -> jax.Array:
  """A block of 1 x 1, depthwise and 1 x 1 convolutions, around which its inputs are added where they fit.

  Args:
    parts: of the network.
    relu: between the convolutions.
    x: what comes in, `[N, H, W, C]`.
    expansion: channels inside, as a multiple of C; with 1 the first convolution is left out.
    channels: that come out.
    stride: of the depthwise convolution.
    size: of the depthwise kernel.
    name: of the block.
  """
  before = f'{name}_input' if stride == 1 and x.shape[-1] == channels else None  # of a residual sum
  if before is not None:
    x = parts.identity(signed=expansion > 1, name=before)(x)
  y, source, reads = x, None, before  # what comes in is shared with the blocks around
  if expansion > 1:
    source = f'{name}_expand'
    expand = parts.conv(x.shape[-1] * expansion, 1, signed=True, prunable=True, input_from=before, name=source)
    y = relu(parts.norm(source=source, name=f'{name}_expand_norm')(expand(y)))
    reads = None
  hidden = y.shape[-1]
  depthwise = parts.conv(hidden, size, stride, groups=hidden, source=source, input_from=reads, name=f'{name}_depthwise')
  y = depthwise(y)
  y = relu(parts.norm(source=source, name=f'{name}_depthwise_norm')(y))
  y = parts.conv(channels, 1, source=source, name=f'{name}_project')(y)
  y = parts.norm(name=f'{name}_project_norm')(y)
  return y if before is None else x + y
