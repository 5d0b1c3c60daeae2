"""Small random networks for exports: what people put between and around quantized layers, drawn from a list."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax.export.source import Source, source_of
from fracbits_jax.graph import ops
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense, quantized_class

SCHEMES = ('original', 'modified', 'lsq')
EXAMPLES, SIDE, CHANNELS = 3, 6, 4


class Network(nn.Module):
  """A network that a seed draws.

  Attributes:
    seed: of what is drawn.
    operations: names from `OPERATIONS`, one behind the other.
    quant: how its layers are quantized, but for signs.
  """

  seed: int
  operations: tuple[str, ...]
  quant: QuantConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    rng = np.random.default_rng(self.seed)
    for name in self.operations:
      x = OPERATIONS[name](self, rng, x)
    x = x.mean((1, 2)) if rng.random() < 0.5 else x.reshape(x.shape[0], -1)
    return self.layer(rng, QuantDense, features=3)(x)

  def layer(self, rng: np.random.Generator, kind: type[nn.Module], **fields: Any) -> nn.Module:
    """A quantized layer; its inputs have one side or two, and it has a bias or none, where `fields` leave that open."""
    quant = dataclasses.replace(self.quant, signed_input=fields.pop('signed', bool(rng.random() < 0.4)))
    return quantized_class(kind)(quant=quant, **{'use_bias': bool(rng.random() < 0.5), **fields})


def _conv(net: Network, rng: np.random.Generator, x: jax.Array, **fields: Any) -> jax.Array:
  side = int(rng.choice([1, 3]))
  settings = {'features': CHANNELS, 'kernel_size': (side, side), 'padding': str(rng.choice(['SAME', 'VALID']))} | fields
  if min(x.shape[1:3]) < 3:
    settings['padding'] = 'SAME'
  return net.layer(rng, QuantConv, **settings)(x)


def _chained(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Layers with nothing but a ReLU between them, as runtimes fuse them."""
  fields = {'kernel_size': (1, 1), 'use_bias': False, 'signed': bool(rng.random() < 0.5)}
  for _ in range(3):
    x = nn.relu(_conv(net, rng, x, **fields))
  return net.layer(rng, QuantDense, features=CHANNELS, use_bias=False, signed=not fields['signed'])(x)


def _padded_conv(padding: str) -> Callable:
  def apply(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
    padded = padding if min(x.shape[1:3]) > 1 else 'SAME'
    return _conv(net, rng, x, kernel_size=(3, 3), padding=padded, strides=int(rng.choice([1, 2])))

  return apply


def _depthwise(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  channels = x.shape[-1]
  return _conv(net, rng, x, kernel_size=(3, 3), features=channels, feature_group_count=channels)


def _grouped(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return _conv(net, rng, x, feature_group_count=2 if x.shape[-1] % 2 == 0 else 1)


def _transposed(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  strides = (2, 2) if max(x.shape[1:3]) < 8 else (1, 1)
  fields = {'features': CHANNELS, 'kernel_size': (3, 2), 'strides': strides}
  return net.layer(rng, nn.ConvTranspose, padding=str(rng.choice(['SAME', 'VALID'])), **fields)(x)


def _dense(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return net.layer(rng, QuantDense, features=CHANNELS)(x)


def _pool(pool: Callable) -> Callable:
  def apply(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
    stride = int(rng.choice([1, 2]))
    return pool(x, (2, 2), (stride, stride), str(rng.choice(['SAME', 'VALID'])) if min(x.shape[1:3]) > 2 else 'SAME')

  return apply


def _norm(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return nn.BatchNorm(use_running_average=True)(x)


def _layer_norm(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return nn.LayerNorm()(x)


def _squeeze_and_excite(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  y = x.mean((1, 2), keepdims=True)
  y = nn.relu(_conv(net, rng, y, kernel_size=(1, 1), features=2))
  gate = nn.sigmoid if rng.random() < 0.5 else nn.hard_sigmoid
  return x * gate(_conv(net, rng, y, kernel_size=(1, 1), features=x.shape[-1]))


def _branches(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  parts = [_conv(net, rng, x, kernel_size=(1, 1)), x if rng.random() < 0.5 else nn.relu(x)]
  return jnp.concatenate(parts, axis=-1)


def _joined_rows(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return jnp.concatenate([x, _conv(net, rng, x, kernel_size=(1, 1), features=x.shape[-1])], axis=1)


def _residual(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return x + _conv(net, rng, x, kernel_size=(3, 3), padding='SAME', features=x.shape[-1])


def _reshape(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Tokens, mixed, as an image again."""
  tokens = x.reshape(x.shape[0], -1, x.shape[-1])
  return _dense(net, rng, tokens).reshape(*x.shape[:-1], CHANNELS)


def _patches(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Two neighbours of a row become channels."""
  if x.shape[2] % 2:
    return x[:, :, :-1] if x.shape[2] > 1 else x
  return x.reshape(*x.shape[:2], x.shape[2] // 2, 2 * x.shape[3])


def _mixed_tokens(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """A dense layer over the places, as an MLP-Mixer has it."""
  tokens = x.reshape(x.shape[0], -1, x.shape[-1])
  mixed = net.layer(rng, QuantDense, features=tokens.shape[1])(tokens.swapaxes(1, 2))
  return mixed.swapaxes(1, 2).reshape(x.shape)


def _attention(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  tokens = x.reshape(x.shape[0], -1, x.shape[-1])
  q, k, v = (_dense(net, rng, tokens) for _ in range(3))
  return (nn.softmax(jnp.einsum('nic,njc->nij', q, k)) @ v).reshape(*x.shape[:-1], CHANNELS)


def _slice(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  if min(x.shape[1:3]) < 3:
    return x
  steps = [x[:, 1:, :-1], x[:, ::2], x[:, :, :2], x[..., 1:] if x.shape[-1] > 1 else x, jnp.flip(x, 1)]
  return steps[rng.integers(len(steps))]


def _pad(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  if max(x.shape[1:3]) > 9:
    return x
  mode = str(rng.choice(['constant', 'wrap', 'symmetric']))
  return jnp.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)), mode=mode)


def _transpose(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  return x.swapaxes(1, 2)


def _upsample(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  if max(x.shape[1:3]) > 5:
    return x
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _split(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Halves of the channels in the other order, one of them through a layer: a shuffle."""
  half = x.shape[-1] // 2
  first, second = x[..., half:], x[..., : max(half, 1)]
  return jnp.concatenate([second, _conv(net, rng, first, kernel_size=(1, 1), features=first.shape[-1])], axis=-1)


def _looped(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """A loop over the rows that carries something along."""
  step = lambda carry, row: (0.5 * carry + row, nn.relu(carry))
  last, rows = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1), reverse=bool(rng.random() < 0.5))
  return rows.swapaxes(0, 1) + last[:, None]


def _sorted(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Channels in order, and those of the largest of them in their place."""
  largest, places = jax.lax.top_k(x, max(x.shape[-1] // 2, 1))
  return jnp.concatenate([jnp.sort(x, -1), jnp.take_along_axis(x, places, -1) - largest], -1)


def _set(net: Network, rng: np.random.Generator, x: jax.Array) -> jax.Array:
  """Rows and columns with other values, at places that are known and at one for each example."""
  x = x.at[:, :1].set(0.25).at[..., 0].set(x[..., -1])
  places = jnp.argmax(x[:, :, 0, 0], axis=1)
  return x.at[jnp.arange(x.shape[0]), places].set(x[:, -1])


def _function(function: Callable) -> Callable:
  return lambda net, rng, x: function(x)


OPERATIONS: dict[str, Callable[[Network, np.random.Generator, jax.Array], jax.Array]] = {
  'attention': _attention,
  'average pool': _pool(nn.avg_pool),
  'batch norm': _norm,
  'branches': _branches,
  'circular': _padded_conv('CIRCULAR'),
  'chained': _chained,
  'channels twice': _function(lambda x: jnp.concatenate([x, x], axis=-1) if x.shape[-1] < 8 else x),
  'clip': _function(lambda x: jnp.clip(x, -0.5, 1.5)),
  'convolution': _conv,
  'cumulative': _function(lambda x: jnp.cumsum(x, axis=1) / 4),
  'dense': _dense,
  'depthwise': _depthwise,
  'exact gelu': _function(lambda x: nn.gelu(x, approximate=False)),
  'gelu': _function(nn.gelu),
  'grouped': _grouped,
  'hard swish': _function(nn.hard_swish),
  'halves': _function(lambda x: jnp.concatenate(jnp.split(x, [1], axis=1)[::-1], axis=1)),
  'joined rows': _joined_rows,
  'layer norm': _layer_norm,
  'looped': _looped,
  'max pool': _pool(nn.max_pool),
  'mixed tokens': _mixed_tokens,
  'pad': _pad,
  'patches': _patches,
  'reflected': _padded_conv('REFLECT'),
  'relu': _function(nn.relu),
  'relu6': _function(nn.relu6),
  'reshape': _reshape,
  'residual': _residual,
  'rounded': _function(lambda x: jnp.round(4 * x) / 4),
  'set': _set,
  'slice': _slice,
  'sorted': _sorted,
  'split': _split,
  'stacked': _function(lambda x: jnp.stack([x, -x], axis=2).reshape(*x.shape[:2], -1, x.shape[-1])),
  'square': _function(lambda x: x * x / (1 + jnp.square(x))),
  'squeeze and excite': _squeeze_and_excite,
  'tiled': _function(lambda x: jnp.tile(x, (1, 1, 1, 2)) if x.shape[-1] < 8 else x),
  'transpose': _transpose,
  'transposed': _transposed,
  'upsample': _upsample,
}


def draw(seed: int, *, widths: tuple[int, ...] = (2, 4, 8), most: int = 6) -> tuple[Source, np.ndarray]:
  """A random network as something to export, and inputs for it.

  Args:
    seed: of everything.
    widths: bit-widths of its kernels and inputs.
    most: the largest number of its operations.
  """
  rng = np.random.default_rng(seed)
  scheme, granularity = str(rng.choice(SCHEMES)), str(rng.choice(['layer', 'kernel']))
  names = tuple(map(str, rng.choice(list(OPERATIONS), int(rng.integers(2, most + 1)))))
  return of_operations(names, seed, widths=widths, scheme=scheme, granularity=granularity)


def ranges_of(seed: int, scheme: str) -> str:
  """Whether kernels have a range or their channels have: with `lsq` two in four seeds, of either parity."""
  return 'channel' if scheme == 'lsq' and seed // 2 % 2 else 'layer'


def has_offset(seed: int, scheme: str) -> bool:
  """Whether signed inputs have ranges with an offset: with `lsq` four in eight seeds."""
  return scheme == 'lsq' and seed // 4 % 2 == 1


def levels_of(seed: int, scheme: str) -> str:
  """Where the levels of kernels lie: with `lsq` balanced in one of three seeds."""
  return 'balanced' if scheme == 'lsq' and seed % 3 == 1 else 'twos_complement'


def of_operations(
  names: tuple[str, ...], seed: int, *, widths: tuple[int, ...], scheme: str, granularity: str
) -> tuple[Source, np.ndarray]:
  """A network with operations of one's choice, and inputs for it; `seed` draws the rest."""
  rng = np.random.default_rng(seed)
  images = bool(rng.random() < 0.5)
  how = dict(kernel_ranges=ranges_of(seed, scheme), input_offset=has_offset(seed, scheme))
  how['kernel_levels'] = levels_of(seed, scheme)
  quant = QuantConfig(scheme=scheme, granularity=granularity, choices=(2, 4, 8), **how)
  model = Network(seed, names, quant)
  shape = (EXAMPLES, SIDE, SIDE, CHANNELS)
  x = rng.integers(0, 256, shape) if images else rng.standard_normal(shape)
  x = x.astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  variables = jax.tree_util.tree_map_with_path(lambda path, leaf: _value(rng, path, leaf.shape, widths), shapes)
  source = source_of(model, variables, x, name=f'seed {seed}', input_range=(0, 255) if images else None)
  return _with_clips(source, rng, x), x


def _value(rng: np.random.Generator, path: Any, shape: tuple[int, ...], widths: tuple[int, ...]) -> np.ndarray:
  names = [key.key for key in path]
  if names[0] == 'bits':
    return rng.choice(widths, shape).astype(np.float32)
  if names[-1] == 'kernel':
    value = rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 1))
  elif names[-1] in ('bias', 'mean'):
    value = 0.3 * rng.standard_normal(shape)
  elif names[-1] == 'alpha' and shape:
    value = np.array([1.0, rng.uniform(-1.2, 1.2)])
  elif names[-1] == 'kernel_alpha' and shape:
    value = 2 ** rng.uniform(-3, 1, shape)
  else:  # scales, variances and ranges
    value = rng.uniform(0.5, 1.5, shape)
  return value.astype(np.float32)


def _with_clips(source: Source, rng: np.random.Generator, x: np.ndarray) -> Source:
  """A source with a clip for the inputs of each layer near the size of what it sees."""
  draws = {node.output: rng.uniform(0.4, 1.1) for node in source.graph.nodes if node.op == 'quantize'}

  @jax.jit  # by themselves the operations take longer to compile than all together
  def clips_of(x: Any) -> dict[str, Any]:
    values, clips = {source.graph.input: x}, {}
    for node in source.graph.nodes:
      inputs = [values[v] if isinstance(v, str) else jnp.asarray(v) for v in node.inputs]
      params = node.params
      if node.op == 'quantize':
        largest = jnp.abs(inputs[0]).max() * draws[node.output]
        clips[node.output] = jnp.where(largest > 0, largest, 1.0)
        params = {**params, 'grid': dataclasses.replace(params['grid'], alpha=clips[node.output])}
      values[node.output] = ops.apply(node.op, params, inputs, len(x))
    return clips

  found, clips, nodes = {name: np.float32(alpha) for name, alpha in clips_of(x).items()}, {}, []
  for node in source.graph.nodes:
    if node.op == 'quantize':
      alpha = clips[node.params['layer']] = found[node.output]
      node = dataclasses.replace(
        node, params={**node.params, 'grid': dataclasses.replace(node.params['grid'], alpha=float(alpha))}
      )
    nodes.append(node)

  def replaced(path: Any, leaf: np.ndarray) -> np.ndarray:
    collection, *layer, name = (key.key for key in path)
    return leaf * clips.get('/'.join(layer), leaf) / leaf.flat[0] if (collection, name) == ('params', 'alpha') else leaf

  variables = jax.tree_util.tree_map_with_path(replaced, source.variables)
  graph = dataclasses.replace(source.graph, nodes=tuple(nodes))
  return dataclasses.replace(source, given=graph, variables=variables)
