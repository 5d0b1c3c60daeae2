"""Networks of layers that flax.linen has."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.shared.foreign import Foreign, linen

SEQUENCE = jax.random.normal(jax.random.key(1), (2, 6, 8))
TOKENS = jax.random.randint(jax.random.key(2), (2, 6), 0, 20)


class _Recurrent(nn.Module):
  cell: Any

  @nn.compact
  def __call__(self, x: Any) -> Any:
    return nn.Dense(3)(nn.RNN(self.cell(12))(x))


def lstm() -> Foreign:
  """An LSTM."""
  return linen(_Recurrent(nn.OptimizedLSTMCell), SEQUENCE)


def gru() -> Foreign:
  """A GRU."""
  return linen(_Recurrent(nn.GRUCell), SEQUENCE)


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x: Any, _: Any = None) -> Any:
    x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
    y = nn.Dense(16)(nn.LayerNorm()(x))
    return x + nn.Dense(8)(nn.gelu(y)), None


class _Transformer(nn.Module):
  transform: str

  @nn.compact
  def __call__(self, tokens: Any) -> Any:
    embedding = nn.Embed(20, 8)
    x = embedding(tokens)
    if self.transform == 'scan':
      x, _ = nn.scan(_Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)()(x, None)
    else:
      for _ in range(2):
        x, _ = nn.remat(_Block)()(x)
    return embedding.attend(x)


def scanned() -> Foreign:
  """A transformer whose layers are a scan, its head tied to its embedding."""
  return linen(_Transformer('scan'), TOKENS)


def remat() -> Foreign:
  """A transformer whose layers are computed again for the derivative."""
  return linen(_Transformer('remat'), TOKENS)


class _Mixture(nn.Module):
  experts: int = 4

  @nn.compact
  def __call__(self, x: Any) -> Any:
    gates = nn.softmax(nn.Dense(self.experts, name='router')(x))
    first = self.param('first', nn.initializers.lecun_normal(), (self.experts, 8, 16))
    second = self.param('second', nn.initializers.lecun_normal(), (self.experts, 16, 8))
    h = nn.relu(jnp.einsum('btd,edf->betf', x, first))
    return jnp.einsum('betd,bte->btd', jnp.einsum('betf,efd->betd', h, second), gates)


def mixture() -> Foreign:
  """A mixture of experts by einsums, every expert on every token."""
  return linen(_Mixture(), SEQUENCE)


class _LoRA(nn.Module):
  @nn.compact
  def __call__(self, x: Any) -> Any:
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (8, 8))
    a = self.param('a', nn.initializers.normal(), (8, 2))
    b = self.param('b', nn.initializers.normal(), (2, 8))
    x = nn.relu(x @ (kernel + a @ b))  # merged
    return nn.Dense(8)(x) + nn.Dense(8, False, name='up')(nn.Dense(2, False, name='down')(x))  # beside it


def lora() -> Foreign:
  """Two layers with additions of low rank: one merged into its kernel, one beside it."""
  return linen(_LoRA(), SEQUENCE)
