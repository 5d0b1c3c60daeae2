"""The autoencoder of MLPerf Tiny for anomalous sounds (Banbury et al. 2021, arXiv 2106.07597)."""

from typing import ClassVar

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, centred, scaled

_FEATURES = (128, 128, 128, 128, 8, 128, 128, 128, 128)  # of the layers between inputs and outputs


class Autoencoder(Network, kw_only=True):
  """Dense layers to a bottleneck and back, each with batch norm and ReLU; arguments as in `models.create`.

  It maps `[N, 640]` to as many outputs, `num_classes`, which training compares with the inputs divided by 255 unless
  the data have other targets: the error is an input's anomaly. Whatever other shape an example has is made a vector.
  As images, inputs are integers of 8 bits; with a mean for each of them in `image_mean` they are centred.
  """

  task: ClassVar[str] = 'regression'

  num_classes: int = 640

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x = centred(x, self.image_mean)
    x = x.reshape(x.shape[0], -1)
    x = parts.dense_stem(scaled(_FEATURES[0], self.width), name='stem')(x)
    x = nn.relu(parts.norm(name='stem_norm')(x))
    source = None  # the stem's channels stay
    for i, features in enumerate(_FEATURES[1:], start=1):
      name = f'block{i}'
      layer = parts.dense(
        scaled(features, self.width), signed=False, bare=False, prunable=True, source=source, name=name
      )
      x = nn.relu(parts.norm(source=name, name=f'{name}_norm')(layer(x)))
      source = name
    return parts.classifier(self.num_classes, source=source, name='output')(x)
