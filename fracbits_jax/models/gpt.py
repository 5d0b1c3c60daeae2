"""Decoders of language: causal transformers with the norms before each part of a block."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax.layers.linen import DISTANCES
from fracbits_jax.models.common import Network, Parts, scaled

NORMS, POSITIONS, MLPS = ('rms', 'layer'), ('rotary', 'learned'), ('swiglu', 'gelu')
_DEVIATION = 0.02  # of kernels and tables at the start
_ROTARY_BASE = 10_000.0
_LAYERS = 'layers'  # what the scanned blocks are called; one by one they are layers_0, layers_1, ...


def rotated(x: jax.Array) -> jax.Array:
  """Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs of features turned by an angle for each position.

  Args:
    x: queries or keys `[N, T, heads, F]`, F even; the feature i of the first half goes with that of the second half.
  """
  half = x.shape[-1] // 2
  rates = jnp.asarray(_ROTARY_BASE ** -(np.arange(half) / half), jnp.float32)
  angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * rates[None]
  cos, sin = (f(angles).astype(x.dtype)[None, :, None] for f in (jnp.cos, jnp.sin))
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Each position's mean of the values up to it; several query heads share a key head where there are fewer of them.

  Args:
    query: `[N, T, heads, F]`.
    key: `[N, T, kv_heads, F]`, with a number of heads that divides that of the queries.
    value: as `key`.

  Returns:
    `[N, T, heads, F]`. The softmax is in float32.
  """
  n, t, heads, features = query.shape
  grouped = query.reshape(n, t, key.shape[2], heads // key.shape[2], features)
  scores = jnp.einsum('nqkgf,npkf->nkgqp', grouped, key).astype(jnp.float32) / math.sqrt(features)
  seen = jnp.tril(jnp.ones((t, t), bool))[None, None, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -1e9), axis=-1).astype(value.dtype)
  return jnp.einsum('nkgqp,npkf->nqkgf', weights, value).reshape(query.shape)


class Block(nn.Module):
  """Attention and a perceptron, each behind a norm and added to what came in.

  Attributes:
    parts: the builders of layers.
    head_dim: features of a head.
    kv_heads: heads of keys and values.
    mlp: of `MLPS`.
    norm: of `NORMS`.
    rotary: whether queries and keys are turned by their positions.
    depth: blocks of the network, for where its kernels start.
  """

  parts: Parts
  head_dim: int
  kv_heads: int
  mlp: str
  norm: str
  rotary: bool
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
    dim, parts = x.shape[-1], self.parts
    # What is added to the sum starts smaller, as it is added 2 depth times (GPT-2).
    linear = lambda features, name, scale=1.0: parts.linear(features, deviation=_DEVIATION * scale, name=name)
    added = 1 / math.sqrt(2 * self.depth)
    y = _norm(self.norm, parts.dtype, 'attention_norm')(x)
    heads = lambda name, count: linear(count * self.head_dim, name)(y).reshape(*y.shape[:-1], count, self.head_dim)
    query, key = heads('query', dim // self.head_dim), heads('key', self.kv_heads)
    value = heads('value', self.kv_heads)
    if self.rotary:
      query, key = rotated(query), rotated(key)
    x = x + linear(dim, 'out', added)(causal_attention(query, key, value).reshape(x.shape))
    y = _norm(self.norm, parts.dtype, 'mlp_norm')(x)
    if self.mlp == 'swiglu':
      hidden = scaled(8 * dim // 3, 1.0)
      y = nn.silu(linear(hidden, 'gate')(y)) * linear(hidden, 'up')(y)
    else:
      y = nn.gelu(linear(4 * dim, 'up')(y))
    return x + linear(dim, 'down', added)(y), None


def _norm(kind: str, dtype: Any, name: str) -> nn.Module:
  """A norm over the features."""
  made = nn.RMSNorm if kind == 'rms' else nn.LayerNorm
  return made(epsilon=1e-6, dtype=dtype, name=name)


class GPT(Network, kw_only=True):
  """A decoder that maps tokens `[N, T]` to logits `[N, T, num_classes]`; arguments as in `models.create`.

  Kernels, the table of embeddings and the head are quantized alike, and products within attention are not. A kernel
  keeps its scale with the scheme `lsq`, or with SAT.

  Attributes:
    dim: features of a token; `width` multiplies it, to a multiple of a head's.
    depth: blocks.
    head_dim: features of an attention head; all query heads together have `dim`.
    kv_heads: heads of keys and values, which divide those of queries; `None` for as many (Ainslie et al. 2023, arXiv
      2305.13245).
    mlp: `swiglu` (Shazeer 2020, arXiv 2002.05202), or `gelu`.
    norm: `rms` (Zhang and Sennrich 2019, arXiv 1910.07467), or `layer`.
    positions: `rotary`, or a `learned` vector for each of the T positions.
    tied: the head is the table of embeddings, quantized once and used twice.
    scan: blocks are one loop, compiled once: their variables have a leading axis, and each has bit-widths of its own.
  """

  task: ClassVar[str] = 'language'

  dim: int = 128
  depth: int = 4
  head_dim: int = 64
  kv_heads: int | None = None
  mlp: str = 'swiglu'
  norm: str = 'rms'
  positions: str = 'rotary'
  tied: bool = True
  scan: bool = False

  @nn.compact
  def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
    dim, heads = self.checked()
    parts = self.parts(train)
    embed = parts.embedding(self.num_classes, dim, is_head=self.tied, name='embed')
    x = embed(tokens)
    if self.positions == 'learned':
      init = nn.initializers.normal(_DEVIATION)
      x = x + self.param('position_table', init, (tokens.shape[1], dim), jnp.float32).astype(x.dtype)[None]
    how: dict[str, Any] = dict(
      # Within a loop nothing depends on whether it trains, so that one program serves.
      parts=dataclasses.replace(parts, train=False),
      head_dim=self.head_dim,
      kv_heads=heads if self.kv_heads is None else self.kv_heads,
      mlp=self.mlp,
      norm=self.norm,
      rotary=self.positions == 'rotary',
      depth=self.depth,
    )
    if self.scan:
      axes: Any = {'params': 0, 'bits': 0, DISTANCES: 0}
      blocks = nn.scan(Block, variable_axes=axes, split_rngs={'params': True, 'bits': True}, length=self.depth)
      x, _ = blocks(**how, name=_LAYERS)(x, None)
    else:
      for i in range(self.depth):
        x, _ = Block(**how, name=f'{_LAYERS}_{i}')(x)
    x = _norm(self.norm, self.dtype, 'final_norm')(x)
    return embed.attend(x) if self.tied else parts.linear(self.num_classes, deviation=_DEVIATION, name='head')(x)

  @nn.nowrap
  def unrolled(self, variables: Any) -> tuple['GPT', Any]:
    """The same network without its loop, and its variables."""
    return (self.clone(scan=False), unstacked(variables)) if self.scan else (self, variables)

  @nn.nowrap
  def checked(self) -> tuple[int, int]:
    """Features of a token and heads; raises `ValueError` for settings that are not possible."""
    for name, known in (('norm', NORMS), ('positions', POSITIONS), ('mlp', MLPS)):
      if getattr(self, name) not in known:
        raise ValueError(f'{name}={getattr(self, name)!r} is unknown: choose one of {", ".join(known)}')
    if self.image_mean:
      raise ValueError('a decoder takes tokens and no images: leave image_mean at None')
    if self.head_dim % 2 and self.positions == 'rotary':
      raise ValueError(f"head_dim={self.head_dim} is odd, and positions='rotary' turns pairs: give an even number")
    dim = scaled(self.dim, self.width, divisor=self.head_dim)
    heads = dim // self.head_dim
    if self.kv_heads is not None and heads % self.kv_heads:
      raise ValueError(f'kv_heads={self.kv_heads} do not divide the {heads} heads of queries: give a divisor')
    return dim, heads


def stacked(variables: Any) -> Any:
  """The variables of a decoder with `scan`, of those of the same one without."""

  def one(tree: Any) -> Any:
    layers = sorted((n for n in tree if n.startswith(f'{_LAYERS}_')), key=lambda n: int(n.rpartition('_')[2]))
    rest = {name: value for name, value in tree.items() if name not in layers}
    return {**rest, _LAYERS: jax.tree.map(lambda *x: jnp.stack(x), *(tree[n] for n in layers))} if layers else rest

  return {collection: one(tree) for collection, tree in variables.items()}


def unstacked(variables: Any) -> Any:
  """The reverse of `stacked`."""

  def one(tree: Any) -> Any:
    rest = {name: value for name, value in tree.items() if name != _LAYERS}
    if _LAYERS not in tree:
      return rest
    depth = len(jax.tree.leaves(tree[_LAYERS])[0])
    return {**rest, **{f'{_LAYERS}_{i}': jax.tree.map(lambda x, i=i: x[i], tree[_LAYERS]) for i in range(depth)}}

  return {collection: one(tree) for collection, tree in variables.items()}
