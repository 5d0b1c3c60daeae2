"""Small networks with integer bit-widths and statistics of their own, for the tests of exports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import from_float, models, quantize_model
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import GatedBatchNorm, QuantConfig, QuantConv, QuantDense, wrap

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3)).astype(np.float32)


class Net(nn.Module):
  """What the shipped networks are made of: stem, depthwise and strided convolutions, signed inputs, sums, pools."""

  quant: QuantConfig
  mean: float = 0.0

  @nn.compact
  def __call__(self, x, train=False):
    quant = self.quant
    norm = functools.partial(GatedBatchNorm, use_running_average=not train, momentum=0.5)
    signed = lambda **kw: QuantConfig(**{**vars(quant), 'signed_input': True, **kw})
    on_images = QuantConfig(**{**vars(quant), 'kernel_bits': 8, 'input_bits': 8, 'weight_only': True})
    conv = functools.partial(QuantConv, use_bias=False, padding=1)
    x = conv(8, (3, 3), quant=on_images)(x - self.mean if self.mean else x)
    x = nn.relu(norm()(x))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    y = conv(8, (3, 3), feature_group_count=8, quant=quant)(x)
    y = jnp.minimum(nn.relu(norm()(y)), 6.0)
    y = norm()(QuantConv(8, (1, 1), use_bias=False, quant=quant)(y))
    x = x + y
    x = norm()(x)  # as before a pre-activation
    x = norm()(conv(12, (3, 3), strides=2, quant=signed())(x))
    x = nn.relu(QuantConv(12, (1, 1), quant=signed())(x))
    x = QuantDense(5, quant=QuantConfig(**{**vars(quant), 'kernel_bits': 8, 'sat': True}))(x.mean((1, 2)))
    return x


@functools.cache
def network(scheme='original', granularity='layer', mean=0.0):
  """A network and variables with 1 to 8 bits; channels with bits of their own have ranges of their own under `lsq`.

  The scheme `balanced` is `lsq` with balanced levels of kernels.
  """
  learned = scheme in ('lsq', 'balanced')
  ranges = 'channel' if learned and granularity == 'kernel' else 'layer'
  how = dict(scheme='lsq' if learned else scheme, granularity=granularity, kernel_ranges=ranges)
  if scheme == 'balanced':
    how['kernel_levels'] = 'balanced'
  model = Net(QuantConfig(**how, init_bits=3, alpha_init=2.0), mean)
  return model, _trained(model, IMAGES)


def _trained(model, images):
  rng = np.random.default_rng(1)
  variables = jax.jit(model.init)(jax.random.key(0), images)
  step = jax.jit(lambda v: model.apply(v, images, train=True, mutable=['batch_stats'])[1])
  for _ in range(8):
    variables = {**variables, **step(variables)}
  noise = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) if x.ndim == 1 else x
  bits = lambda b: rng.integers(1, 9, b.shape).astype(np.float32) if b.ndim else np.float32(rng.integers(2, 6))
  return {
    **variables,
    'params': jax.tree.map(noise, variables['params']),
    'bits': jax.tree.map(bits, variables['bits']),
  }


@functools.cache
def source(scheme='original', granularity='layer', mean=0.0):
  """The same as something to export."""
  model, variables = network(scheme, granularity, mean)
  return source_of(model, variables, IMAGES, input_range=(0, 255))


@functools.cache
def transformer():
  """A vision transformer in plain Flax with quantized layers, as something to export, and inputs for it."""

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(8, (4, 4), strides=4)(x)
      x = x.reshape(x.shape[0], -1, 8)
      x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
      x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
      return nn.Dense(5)(x.mean(1))

  x = np.random.default_rng(2).standard_normal((8, 12, 12, 3)).astype(np.float32)
  model = Block()
  net = quantize_model(model, x, default=QuantConfig(scheme='lsq', init_bits=4))
  variables = from_float(net, jax.jit(model.init)(jax.random.key(0), x), x)
  return source_of(wrap.with_fixed_bits(net), variables, x), x


def shipped(name, **kwargs):
  """A shipped network as something to export, `with_one_value`."""
  return with_one_value(models.create(name, num_classes=5, quant=QuantConfig(init_bits=3, alpha_init=2.0), **kwargs))


def with_one_value(model):
  """A network as something to export; its values are all the same, and nothing is compiled for them."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES[:1])
  variables = jax.tree.map(lambda x: np.full(x.shape, 4, x.dtype), shapes)
  return source_of(model, variables, IMAGES, input_range=(0, 255))
