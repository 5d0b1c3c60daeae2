"""Networks as people have them, without a word of quantization: for `own_models.py` and the tests."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Block(nn.Module):
  """A residual block of two 3 x 3 convolutions."""

  features: int
  norm: Callable[..., nn.Module]
  strides: tuple[int, int] = (1, 1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = partial(nn.Conv, self.features, use_bias=False)
    y = nn.relu(self.norm()(conv(kernel_size=(3, 3), strides=self.strides)(x)))
    y = self.norm(scale_init=nn.initializers.zeros)(conv(kernel_size=(3, 3))(y))
    if x.shape != y.shape:
      x = self.norm(name='norm_proj')(conv(kernel_size=(1, 1), strides=self.strides, name='conv_proj')(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A small residual network in plain Flax: `nn.Conv`, `nn.BatchNorm`, `nn.Dense`, names of their own making."""

  num_classes: int = 10
  filters: int = 8

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    x = nn.Conv(self.filters, (3, 3), use_bias=False, name='conv_init')(x)
    x = nn.relu(norm(name='bn_init')(x))
    for i in range(3):
      x = Block(self.filters * 2**i, norm, (2, 2) if i else (1, 1))(x)
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class Denoiser(nn.Module):
  """A denoising autoencoder `[N, H, W, 1]` of strided and transposed convolutions, without any norm."""

  filters: int = 16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.relu(nn.Conv(self.filters, (3, 3), strides=(2, 2))(x))
    y = nn.relu(nn.Conv(2 * self.filters, (3, 3), strides=(2, 2))(y))
    y = nn.relu(nn.Conv(2 * self.filters, (3, 3))(y))
    y = nn.relu(nn.ConvTranspose(self.filters, (4, 4), strides=(2, 2))(y))
    return nn.ConvTranspose(x.shape[-1], (4, 4), strides=(2, 2))(y)


class NNXDenoiser(nnx.Module):
  """The same autoencoder in NNX."""

  def __init__(self, filters: int = 16, *, rngs: nnx.Rngs):
    conv, transpose = partial(nnx.Conv, rngs=rngs), partial(nnx.ConvTranspose, rngs=rngs)
    self.down1 = conv(1, filters, (3, 3), strides=(2, 2))
    self.down2 = conv(filters, 2 * filters, (3, 3), strides=(2, 2))
    self.middle = conv(2 * filters, 2 * filters, (3, 3))
    self.up1 = transpose(2 * filters, filters, (4, 4), strides=(2, 2))
    self.up2 = transpose(filters, 1, (4, 4), strides=(2, 2))

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in (self.down1, self.down2, self.middle, self.up1):
      x = nnx.relu(layer(x))
    return self.up2(x)


class CharTransformer(nn.Module):
  """A transformer that predicts the next character, `[N, T]` integers to `[N, T, vocabulary]` logits."""

  vocabulary: int
  dim: int = 64
  depth: int = 2

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = nn.Embed(self.vocabulary, self.dim)(tokens)
    x = x + self.param('positions', nn.initializers.normal(0.02), (1, tokens.shape[1], self.dim))
    mask = nn.make_causal_mask(tokens)
    for _ in range(self.depth):
      x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
      y = nn.gelu(nn.Dense(4 * self.dim)(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.dim)(y)
    return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
