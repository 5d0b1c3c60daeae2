"""DS-CNN (Zhang et al. 2017, arXiv 1711.07128) as in MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597)."""

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, centred, global_pool, scaled
from fracbits_jax.models.mobilenet_v1 import separable

_BLOCKS = 4


class DSCNN(Network, kw_only=True):
  """DS-CNN for keywords, without the reference's dropout; arguments as in `models.create`.

  Images are features `[N, time, frequency, 1]`, 49 x 10 in the benchmark, as integers of 8 bits: with 128 for
  `image_mean` they stand for -128..127. Its stem always has a stride of 2.
  """

  num_classes: int = 12

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x, channels = centred(x, self.image_mean), scaled(64, self.width)
    x = parts.stem(channels, (10, 4), 2, padding='SAME', name='stem')(x)
    x = nn.relu(parts.norm(name='stem_norm')(x))
    x, source = separable(parts, x, ((channels, 1),) * _BLOCKS)
    return parts.classifier(self.num_classes, source=source)(global_pool(x))
