"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) as its authors made it for small devices.

It has ReLU6 for swish, and no squeeze-and-excitation.
"""

import dataclasses

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, centred, global_pool, scaled
from fracbits_jax.models.mobilenet_v2 import inverted_residual

# (size of the depthwise kernel, expansion, output channels, repeats, stride of the first)
_STAGES = (
  (3, 1, 16, 1, 1),
  (3, 6, 24, 2, 2),
  (5, 6, 40, 2, 2),
  (3, 6, 80, 3, 2),
  (5, 6, 112, 3, 1),
  (5, 6, 192, 4, 2),
  (3, 6, 320, 1, 1),
)


class EfficientNetLite(Network, kw_only=True):
  """EfficientNet-Lite0; arguments as in `models.create`. Inputs behind a linear bottleneck are signed.

  Convolutions are padded as TensorFlow's 'SAME': at a stride of 2 and an even size below and on the right alone.
  """

  @nn.nowrap
  def has_residuals(self) -> bool:
    return True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = dataclasses.replace(self.parts(train), padding='SAME', norm_epsilon=1e-3)
    x = centred(x, self.image_mean)
    edge = min(1.0, self.width)  # stem and head do not grow with the width
    x = parts.stem(scaled(32, edge), 3, 1 if self.small_images else 2, name='stem')(x)
    x = nn.relu6(parts.norm(name='stem_norm')(x))
    block = 0
    for size, expansion, channels, repeats, first_stride in _STAGES:
      for i in range(repeats):
        block += 1
        stride, out, name = first_stride if i == 0 else 1, scaled(channels, self.width), f'block{block}'
        x = inverted_residual(parts, nn.relu6, x, expansion, out, stride, size=size, name=name)
    x = parts.conv(scaled(1280, edge), 1, signed=True, prunable=True, name='head')(x)
    x = nn.relu6(parts.norm(source='head', name='head_norm')(x))
    return parts.classifier(self.num_classes, source='head')(global_pool(x))
