"""Residual networks: He et al. 2015 (arXiv 1512.03385), and with pre-activation, He et al. 2016 (arXiv 1603.05027)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fracbits_jax.models.common import Network, Parts, centred, global_pool, max_pool, scaled


class ResNet(Network):
  """ResNet for large images; arguments as in `models.create`.

  Attributes:
    stages: residual blocks of each of the four stages.
    bottleneck: blocks of 1x1, 3x3, 1x1 convolutions instead of two 3x3; the 3x3 one carries the stride.
    preact: batch norm and ReLU before each convolution of a block instead of behind it.
  """

  stages: tuple[int, ...]
  bottleneck: bool = False
  preact: bool = False

  @nn.nowrap
  def has_residuals(self) -> bool:
    return not self.preact  # there a norm reads the sums, not a convolution

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x = centred(x, self.image_mean)
    size, stride = (3, 1) if self.small_images else (7, 2)
    x = parts.stem(scaled(64, self.width), size, stride, name='stem')(x)
    x = nn.relu(parts.norm(name='stem_norm')(x))
    if not self.small_images:
      x = max_pool(x)
    for i, repeats in enumerate(self.stages):
      for j in range(repeats):
        stride = 2 if i > 0 and j == 0 else 1
        channels = scaled(64 * 2**i, self.width)
        shapes, name = _shapes(channels, stride, self.bottleneck), f'stage{i + 1}_block{j + 1}'
        if self.preact:
          x = _preact_block(parts, x, shapes, stride, name, first=i == j == 0)
        else:
          x = _block(parts, x, shapes, stride, name)
    if self.preact:
      x = nn.relu(parts.norm(name='final_norm')(x))
    return parts.classifier(self.num_classes)(global_pool(x))


_Shapes = tuple[tuple[int, int, int], ...]


def _shapes(channels: int, stride: int, bottleneck: bool) -> _Shapes:
  """(features, size, stride) of a block's convolutions."""
  if bottleneck:
    return (channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)
  return (channels, 3, stride), (channels, 3, 1)


def _block(parts: Parts, x: jax.Array, shapes: _Shapes, stride: int, name: str) -> jax.Array:
  before = f'{name}_input'
  x = parts.identity(name=before)(x)
  y, source = x, None
  for i, (features, size, conv_stride) in enumerate(shapes, start=1):
    conv, first = f'{name}_conv{i}', before if i == 1 else None
    # The sum ties the last convolution's channels to those of other blocks; the inner ones can be pruned.
    inner = conv if i < len(shapes) else None
    how: dict[str, Any] = dict(prunable=inner is not None, source=source, input_from=first)
    y = parts.conv(features, size, conv_stride, **how, name=conv)(y)
    y = parts.norm(source=inner, name=f'{name}_norm{i}')(y)
    if inner is not None:
      y = nn.relu(y)
    source = inner
  if x.shape != y.shape:
    x = parts.conv(y.shape[-1], 1, stride, input_from=before, name=f'{name}_shortcut')(x)
    x = parts.norm(name=f'{name}_shortcut_norm')(x)
  return nn.relu(x + y)


def _preact_block(parts: Parts, x: jax.Array, shapes: _Shapes, stride: int, name: str, *, first: bool) -> jax.Array:
  # The norm behind the stem is the pre-activation of the first block.
  y = shortcut = x if first else nn.relu(parts.norm(name=f'{name}_norm1')(x))
  source = None
  for i, (features, size, conv_stride) in enumerate(shapes, start=1):
    if i > 1:
      y = nn.relu(parts.norm(source=source, name=f'{name}_norm{i}')(y))
    last, conv = i == len(shapes), f'{name}_conv{i}'
    y = parts.conv(features, size, conv_stride, bare=last, prunable=not last, source=source, name=conv)(y)
    source = conv
  if x.shape != y.shape:
    x = parts.conv(y.shape[-1], 1, stride, bare=True, name=f'{name}_shortcut')(shortcut)
  return x + y


class CifarResNet(Network, kw_only=True):
  """ResNet for 32 x 32 images, of 6 blocks + 2 layers; shortcuts without parameters, as in the paper's section 4.2.

  Attributes:
    blocks: residual blocks in each of the three stages.
    projections: shortcuts to more channels are 1x1 convolutions without batch norm, as in the ResNet-8 of MLPerf Tiny
      (Banbury et al. 2021, arXiv 2106.07597).
  """

  blocks: int
  projections: bool = False
  num_classes: int = 10
  small_images: bool = True

  @nn.nowrap
  def has_residuals(self) -> bool:
    return True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    parts = self.parts(train)
    x = centred(x, self.image_mean)
    x = parts.stem(scaled(16, self.width), 3, 1, name='stem')(x)
    x = nn.relu(parts.norm(name='stem_norm')(x))
    for i in range(3):
      for j in range(self.blocks):
        stride = 2 if i > 0 and j == 0 else 1
        x = self._block(parts, x, scaled(16 * 2**i, self.width), stride, f'stage{i + 1}_block{j + 1}')
    return parts.classifier(self.num_classes)(global_pool(x))

  @nn.nowrap
  def _block(self, parts: Parts, x: jax.Array, channels: int, stride: int, name: str) -> jax.Array:
    inner, before = f'{name}_conv1', f'{name}_input'
    x = parts.identity(name=before)(x)
    y = parts.conv(channels, 3, stride, prunable=True, input_from=before, name=inner)(x)
    y = nn.relu(parts.norm(source=inner, name=f'{name}_norm1')(y))
    y = parts.conv(channels, 3, source=inner, name=f'{name}_conv2')(y)
    y = parts.norm(name=f'{name}_norm2')(y)
    if self.projections and x.shape != y.shape:
      # No bias: that of the norm beside it is added to the same sum.
      shortcut = parts.conv(channels, 1, stride, bare=True, input_from=before, name=f'{name}_shortcut')
      return nn.relu(shortcut(x) + y)
    for axis in (1, 2):
      x = lax.slice_in_dim(x, 0, None, stride, axis)
    added = channels - x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))
    return nn.relu(x + y)
