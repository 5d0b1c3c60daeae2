"""Networks that are made of every operation that can be exported, for the tests of packed files."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

SIDE, CHANNELS = 4, 4
SHAPE = (SIDE, SIDE, CHANNELS)
_CONSTANT = np.linspace(-1, 1, CHANNELS, dtype=np.float32)[None, None, None]
_TABLE = np.arange(5 * CHANNELS, dtype=np.float32).reshape(5, CHANNELS) / 9


def _mixed(x):
  """Booleans and integers of every kind."""
  positive, small = x > 0.1, ~(jnp.abs(x) >= 0.9)
  chosen = (positive & small) | ((x < -0.5) ^ (x <= -0.2)) | (x == 0) & (x != 1)
  near = (jnp.abs(x) < 9).all(-1, keepdims=True) & (x > -9).any(-1, keepdims=True)
  return jnp.where(chosen & near & jnp.isfinite(x), x, 0.25)


def _windows(x):
  whole = (x * 4).astype(jnp.int32)
  most = lax.reduce_window(whole, jnp.iinfo(jnp.int32).min, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), 'SAME')
  return x + nn.avg_pool(x, (3, 3), (1, 1), 'SAME') + most.astype(jnp.float32)


def _cast(x):
  small = (jnp.clip(x, -3, 3) * 9).astype(jnp.int8)
  return x.astype(jnp.bfloat16).astype(jnp.float32) + small.astype(jnp.float16).astype(jnp.float32)


def _put(x):
  """Values put at places, in every way."""
  rows, places = jnp.arange(x.shape[0]), jnp.argmin(x[:, :, 0, 0], axis=1)
  put = x.at[rows, places].set(0.5).at[rows, places].add(x[:, 0]).at[rows, places].multiply(2.0)
  return put.at[rows, places].min(x[:, 1]).at[rows, places].max(-1.0)


def _running(x):
  """Sums, products and extremes so far."""
  whole = lax.cumsum(x, 1, reverse=True) + lax.cumprod(x / 2, 2)
  return whole / 4 + lax.cummax(x, 3) - lax.cummin(x, 3)


def _resized(x):
  return jax.image.resize(x, (x.shape[0], 2 * SIDE, 3, CHANNELS), 'nearest')[:, ::2, :1]


# Of values [N, 4, 4, 4], float32 between about -3 and 3, to values that can be broadcast to the same shape.
PIECES = {
  'put': _put,
  'running': _running,
  'ordered': lambda x: jnp.sort(x, 1) + jnp.take_along_axis(x, jnp.argsort(x, -1), -1) + lax.top_k(x, 1)[0],
  'arcs': lambda x: jnp.arctan(x) + jnp.arcsinh(x) + jnp.arccosh(jnp.abs(x) + 1) + jnp.arcsin(x / 9),
  'cosines': lambda x: jnp.arccos(x / 9) + jnp.arctanh(x / 9) + jnp.sinh(x) / 9 - jnp.cosh(x) / 9 + lax.erfc(x),
  'rounding': lambda x: jnp.round(x * 2) + jnp.ceil(x) + jnp.floor(x * 3) + jnp.sign(x) + lax.rem(x, 0.7),
  'exponentials': lambda x: jnp.exp(-jnp.abs(x)) + jnp.exp2(-jnp.abs(x)) + jnp.expm1(-jnp.abs(x)),
  'logarithms': lambda x: jnp.log(jnp.abs(x) + 1) - jnp.log1p(jnp.square(x)),
  'waves': lambda x: jnp.sin(x) + jnp.cos(x) + jnp.tan(x / 9),
  'sigmoids': lambda x: jnp.tanh(x) + nn.sigmoid(x) + lax.erf(x) + lax.erf_inv(jnp.tanh(x) * 0.7),
  'powers': lambda x: x**3 / 9 + jnp.power(jnp.abs(x) + 1, 0.7) + lax.rsqrt(jnp.abs(x) + 1) - jnp.sqrt(jnp.abs(x)),
  'clamped': lambda x: lax.clamp(np.float32(-1), x, np.float32(1)) + jnp.minimum(-x, 0.5) + jnp.maximum(x, _CONSTANT),
  'mixed': _mixed,
  'cast': _cast,
  'chosen': lambda x: jnp.asarray(_TABLE)[jnp.argmax(x, -1)],
  'picked': lambda x: x[..., np.array([2, 0, 3, 1])] + x[:, 1:2] + x[:, 2, None],
  'resized': _resized,
  'softmax': nn.softmax,
  'normed': lambda x: (x - x.mean(-1, keepdims=True)) / (jnp.prod(x, (1, 2), keepdims=True) ** 2 + 1),
  'extremes': lambda x: x.max((1, 2), keepdims=True) - jnp.min(x, -1, keepdims=True),
  'counted': lambda x: x + lax.broadcasted_iota(jnp.float32, (*x.shape[:-1], 1), 2),
  'turned': lambda x: jnp.swapaxes(x, 1, 2)[:, ::-1] + jnp.rot90(x, axes=(1, 2)),
  'joined': lambda x: jnp.concatenate([x[..., :1], x[..., 1:] * 2], -1).reshape(x.shape[0], -1).reshape(x.shape),
  'padded': lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-1)[:, :SIDE],
  'windows': _windows,
  'attention': lambda x: jnp.einsum('nhwc,nhvc->nhwv', x, x) * x / 9,
  'masked': lambda x: jnp.where(_CONSTANT < 0, x, -jnp.inf).max(-1, keepdims=True),
  'affine': lambda x: (x * _CONSTANT + 0.5) * 2 - _CONSTANT,
}
LAYERS = {
  'circular': {'kernel_size': (3, 3), 'padding': 'CIRCULAR'},
  'depthwise': {'kernel_size': (3, 3), 'feature_group_count': CHANNELS},
  'dilated': {'kernel_size': (3, 3), 'kernel_dilation': 2},
  'mixing': {'kernel_size': (1, 1)},
}


class Net(nn.Module):
  """Pieces one behind the other, each beside what goes around it, and a quantized layer behind each."""

  pieces: tuple[str, ...]
  layers: tuple[str, ...]
  scheme: str
  granularity: str
  dtype: str
  ranges: str = 'layer'
  offset: bool = False
  levels: str = 'twos_complement'

  @nn.compact
  def __call__(self, x):
    choices = range(self.granularity == 'kernel', 9)  # channels of 0 bits are taken away before the export
    settings = {'scheme': self.scheme, 'granularity': self.granularity, 'choices': choices}
    settings |= {'kernel_ranges': self.ranges, 'input_offset': self.offset, 'kernel_levels': self.levels}
    quant = QuantConfig(signed_input=True, init_bits=3, alpha_init=2.0, **settings)
    for piece, layer in zip(self.pieces, self.layers, strict=True):
      x = jnp.clip(x / 2 + PIECES[piece](x).astype(x.dtype), -3, 3)
      x = QuantConv(CHANNELS, quant=quant, dtype=jnp.dtype(self.dtype), **LAYERS[layer])(x).astype(jnp.float32)
    x = QuantDense(3, quant=QuantConfig(init_bits=4, alpha_init=2.0, choices=range(9)))(nn.relu(x.mean((1, 2))))
    return x.squeeze() if x.shape[-1] == 1 else x


class Words(nn.Module):
  """An embedding with a position of its own, and a quantized layer."""

  words: int

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(self.words, CHANNELS)(x) + self.param('place', nn.initializers.ones, (1, x.shape[1], CHANNELS))
    return QuantDense(3, quant=QuantConfig(scheme='lsq', init_bits=4, alpha_init=2.0, choices=range(9)))(
      nn.relu(x)
    ).mean(1)


def source(model, x, seed):
  """A network with random weights and bits as something to export, and its variables; nothing is compiled for it."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree.map(lambda s: rng.uniform(-1, 1.5, s.shape).astype(s.dtype), shapes)
  least = lambda path, b: int(path[-1].key == 'input' or b.ndim > 0)
  bits = jax.tree_util.tree_map_with_path(
    lambda path, b: rng.integers(least(path, b), 9, b.shape).astype(b.dtype), variables['bits']
  )
  return source_of(model, {**variables, 'bits': bits}, x)
