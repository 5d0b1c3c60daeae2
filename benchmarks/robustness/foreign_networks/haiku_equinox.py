"""Networks of Haiku and Equinox, as functions of their parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks.shared.foreign import Foreign, random_like

IMAGES = jax.random.normal(jax.random.key(1), (2, 12, 12, 3))
VECTORS = jax.random.normal(jax.random.key(2), (4, 10))
SEQUENCE = jax.random.normal(jax.random.key(3), (2, 6, 8))


def _haiku(network: Callable[[Any], Any], x: jax.Array) -> Foreign:
  pair = hk.without_apply_rng(hk.transform(network))
  return Foreign(pair.apply, (x,), {'params': random_like(jax.eval_shape(pair.init, jax.random.key(0), x))})


def haiku_mlp() -> Foreign:
  """Haiku's MLP."""
  return _haiku(lambda x: hk.nets.MLP([16, 16, 3])(x), VECTORS)


def haiku_cnn() -> Foreign:
  """Convolutions of Haiku: plain, depthwise, transposed."""

  def network(x: jax.Array) -> jax.Array:
    x = jax.nn.relu(hk.Conv2D(8, 3, stride=2)(x))
    x = jax.nn.relu(hk.DepthwiseConv2D(1, 3)(x))
    x = jax.nn.relu(hk.Conv2DTranspose(4, 2, stride=2)(x))
    return hk.Linear(5)(jnp.mean(x, (1, 2)))

  return _haiku(network, IMAGES)


def haiku_attention() -> Foreign:
  """Attention of Haiku within a block."""

  def network(x: jax.Array) -> jax.Array:
    attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(), model_size=8)
    x = x + attention(x, x, x)
    x = hk.LayerNorm(-1, True, True)(x)
    return x + hk.nets.MLP([16, 8])(x)

  return _haiku(network, SEQUENCE)


def haiku_lstm() -> Foreign:
  """An LSTM of Haiku, unrolled by a loop of its own."""

  def network(x: jax.Array) -> jax.Array:
    core = hk.LSTM(8)
    outputs, _ = hk.dynamic_unroll(core, jnp.swapaxes(x, 0, 1), core.initial_state(len(x)))
    return hk.Linear(3)(outputs[-1])

  return _haiku(network, SEQUENCE)


def _equinox(make: Callable[[jax.Array], Any], x: jax.Array) -> Foreign:
  shapes, static = eqx.partition(eqx.filter_eval_shape(make, jax.random.key(0)), lambda x: hasattr(x, 'shape'))
  return Foreign(lambda params, x: jax.vmap(eqx.combine(params, static))(x), (x,), {'params': random_like(shapes)})


def equinox_mlp() -> Foreign:
  """Equinox's MLP, mapped over its examples."""
  return _equinox(lambda key: eqx.nn.MLP(10, 3, 16, 2, key=key), VECTORS)


class _Convolutional(eqx.Module):
  conv: eqx.nn.Conv2d
  grouped: eqx.nn.Conv2d
  up: eqx.nn.ConvTranspose2d
  head: eqx.nn.Linear

  def __init__(self, key: jax.Array):
    keys = jax.random.split(key, 4)
    self.conv = eqx.nn.Conv2d(3, 8, 3, stride=2, key=keys[0])
    self.grouped = eqx.nn.Conv2d(8, 8, 3, groups=2, key=keys[1])
    self.up = eqx.nn.ConvTranspose2d(8, 4, 2, stride=2, key=keys[2])
    self.head = eqx.nn.Linear(4, 5, key=keys[3])

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in (self.conv, self.grouped, self.up):
      x = jax.nn.relu(layer(x))
    return self.head(jnp.mean(x, (1, 2)))


def equinox_cnn() -> Foreign:
  """Convolutions of Equinox: plain, grouped, transposed."""
  return _equinox(_Convolutional, jnp.transpose(IMAGES, (0, 3, 1, 2)))


class _Attentive(eqx.Module):
  embedding: eqx.nn.Embedding
  attention: eqx.nn.MultiheadAttention
  norm: eqx.nn.LayerNorm
  head: eqx.nn.Linear

  def __init__(self, key: jax.Array):
    keys = jax.random.split(key, 3)
    self.embedding = eqx.nn.Embedding(20, 8, key=keys[0])
    self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
    self.norm = eqx.nn.LayerNorm(8)
    self.head = eqx.nn.Linear(8, 20, key=keys[2])

  def __call__(self, tokens: jax.Array) -> jax.Array:
    x = jax.vmap(self.embedding)(tokens)
    x = jax.vmap(self.norm)(x + self.attention(x, x, x))
    return jax.vmap(self.head)(x)


def equinox_attention() -> Foreign:
  """Attention of Equinox over tokens."""
  return _equinox(_Attentive, jax.random.randint(jax.random.key(4), (2, 6), 0, 20))


class _Recurrent(eqx.Module):
  cell: eqx.nn.GRUCell
  head: eqx.nn.Linear

  def __init__(self, key: jax.Array):
    keys = jax.random.split(key)
    self.cell = eqx.nn.GRUCell(8, 8, key=keys[0])
    self.head = eqx.nn.Linear(8, 3, key=keys[1])

  def __call__(self, x: jax.Array) -> jax.Array:
    state, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), jnp.zeros(8), x)
    return self.head(state)


def equinox_gru() -> Foreign:
  """A GRU of Equinox within `jax.lax.scan`."""
  return _equinox(_Recurrent, SEQUENCE)
