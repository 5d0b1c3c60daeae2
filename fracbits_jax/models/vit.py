"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), pooled over the patches instead of a class token."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.models.common import Network, Parts, centred, scaled


class VisionTransformer(Network):
  """Vision transformer with the norms before each part of a block; arguments as in `models.create`.

  Without batch norms it needs a quantizer that keeps the scale of a kernel, `lsq`, or SAT, which sets it.

  Attributes:
    dim: features of a patch.
    depth: blocks.
    head_dim: features of an attention head; all heads together have `dim`.
  """

  dim: int
  depth: int
  head_dim: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    dim, patch = scaled(self.dim, self.width, divisor=self.head_dim), 4 if self.small_images else 16
    x = parts.patches(dim, patch, name='stem')(centred(x, self.image_mean))
    x = x.reshape(x.shape[0], -1, dim)
    x = self._norm('stem_norm')(x)
    x = x + self.param('positions', nn.initializers.normal(0.02), x.shape[1:], jnp.float32).astype(x.dtype)[None]
    for i in range(1, self.depth + 1):
      x = self._block(parts, x, f'block{i}')
    return parts.classifier(self.num_classes, signed=True)(jnp.mean(self._norm('final_norm')(x), axis=1))

  @nn.nowrap
  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

  @nn.nowrap
  def _block(self, parts: Parts, x: jax.Array, name: str) -> jax.Array:
    dim = x.shape[-1]
    y = self._norm(f'{name}_norm1')(x)
    heads = lambda z: z.reshape(*z.shape[:-1], -1, self.head_dim)
    query, key, value = (heads(parts.dense(dim, name=f'{name}_{part}')(y)) for part in ('query', 'key', 'value'))
    y = nn.dot_product_attention(query, key, value, dtype=self.dtype)
    x = x + parts.dense(dim, name=f'{name}_out')(y.reshape(x.shape))
    y = parts.dense(4 * dim, name=f'{name}_mlp1')(self._norm(f'{name}_norm2')(x))
    return x + parts.dense(dim, name=f'{name}_mlp2')(nn.gelu(y))
