"""A denoising autoencoder of convolutions, which shrink an image to a quarter of its height and width and back."""

from typing import ClassVar

import jax
from flax import linen as nn

from fracbits_jax.models.common import Network, centred, scaled

_REDUCTION = 4  # of height and width in the middle


class Denoiser(Network, kw_only=True):
  """Strided and transposed convolutions, each with batch norm and ReLU but the last; arguments as in `models.create`.

  It maps images `[N, H, W, C]`, 0..255, to images of the same shape, 0..1, so that `num_classes` says nothing. Height
  and width are multiples of 4; others raise `ValueError`.
  """

  task: ClassVar[str] = 'regression'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    *_, height, width, channels = x.shape
    if height % _REDUCTION or width % _REDUCTION:
      raise ValueError(
        f'the denoiser is for images whose height and width are multiples of {_REDUCTION}, and these have {height} x '
        f'{width}: resize or pad them'
      )
    parts = self.parts(train)
    narrow, wide = scaled(16, self.width), scaled(32, self.width)
    layers = {
      'stem': parts.stem(narrow, 3, 2, name='stem'),
      'down': parts.conv(wide, 3, 2, name='down'),
      'middle': parts.conv(wide, 3, name='middle'),
      'up': parts.conv_transpose(narrow, 4, 2, name='up'),
    }
    x = centred(x, self.image_mean)
    for name, layer in layers.items():
      x = nn.relu(parts.norm(name=f'{name}_norm')(layer(x)))
    return parts.conv_transpose(channels, 4, 2, last=True, name='output')(x)
