"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861)."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, Parts, centred, global_pool, scaled

# (output channels, stride) of the thirteen depthwise-separable blocks.
_BLOCKS = (
  (64, 1),
  (128, 2),
  (128, 1),
  (256, 2),
  (256, 1),
  (512, 2),
  *((512, 1),) * 5,
  (1024, 2),
  (1024, 1),
)


class MobileNetV1(Network):
  """MobileNetV1; arguments as in `models.create`."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x = centred(x, self.image_mean)
    x = parts.stem(scaled(32, self.width), 3, 1 if self.small_images else 2, name='stem')(x)
    x = nn.relu(parts.norm(name='stem_norm')(x))
    x, source = separable(parts, x, [(scaled(channels, self.width), stride) for channels, stride in _BLOCKS])
    return parts.classifier(self.num_classes, source=source)(global_pool(x))


def separable(parts: Parts, x: jax.Array, blocks: Sequence[tuple[int, int]]) -> tuple[jax.Array, str | None]:
  """Depthwise-separable blocks by (output channels, stride), and the name of the layer that made the last channels."""
  source = None  # the stem's channels stay
  for i, (channels, stride) in enumerate(blocks, start=1):
    depthwise, pointwise = f'block{i}_depthwise', f'block{i}_pointwise'
    x = parts.conv(x.shape[-1], 3, stride, groups=x.shape[-1], source=source, name=depthwise)(x)
    x = nn.relu(parts.norm(source=source, name=f'{depthwise}_norm')(x))
    x = parts.conv(channels, 1, prunable=True, source=source, name=pointwise)(x)
    x = nn.relu(parts.norm(source=pointwise, name=f'{pointwise}_norm')(x))
    source = pointwise
  return x, source
