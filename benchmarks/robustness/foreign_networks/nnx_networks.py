"""Networks in NNX: of the packages jimmy-vision and mamba2-jax, and of layers that flax has."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import mamba2_jax
from flax import nnx

from benchmarks.shared.foreign import Foreign

IMAGES = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
SEQUENCE = jax.random.normal(jax.random.key(2), (2, 10, 8))


def _dinov2(**settings: Any) -> nnx.Module:
  # jimmy-vision 0.0.7 looks here for a function that flax 0.12 has elsewhere.
  sys.modules.setdefault('flax.nnx.nnx', nnx)
  sys.modules.setdefault('flax.nnx.nnx.module', nnx.module)
  from jimmy.models.vit import DinoV2

  return DinoV2(img_size=16, patch_size=4, embed_dim=32, num_heads=2, rngs=nnx.Rngs(0), **settings)


def dinov2() -> Foreign:
  """DINOv2 with registers and scales of layers, of jimmy-vision."""
  return Foreign(_dinov2(depth=2, reg_tokens=2, init_values=1.0), (IMAGES,))


def dinov2_swiglu() -> Foreign:
  """DINOv2 with gated layers, and queries and keys that are normalized."""
  return Foreign(_dinov2(depth=1, reg_tokens=0, ffn_layer='swiglu', qk_norm=True), (IMAGES,))


def mamba2() -> Foreign:
  """Mamba2 as a language model, its head tied to its embedding, of mamba2-jax."""
  config = mamba2_jax.Mamba2Config(
    vocab_size=60, hidden_size=32, state_size=8, head_dim=16, chunk_size=4, num_hidden_layers=2
  )
  tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 60)
  return Foreign(mamba2_jax.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0)), (tokens,))


def mamba2_forecaster() -> Foreign:
  """Mamba2 as a forecaster of time series, of mamba2-jax."""
  model = mamba2_jax.create_random_forecaster(
    8, d_model=32, n_layers=1, output_dim=2, forecast_horizon=3, d_state=8, headdim=16, chunk_size=4
  )
  return Foreign(model, (SEQUENCE,))


class _Recurrent(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.rnn = nnx.Bidirectional(
      nnx.RNN(nnx.LSTMCell(8, 12, rngs=rngs), rngs=rngs), nnx.RNN(nnx.GRUCell(8, 12, rngs=rngs), rngs=rngs), rngs=rngs
    )
    self.head = nnx.Linear(24, 3, rngs=rngs)

  def __call__(self, x: Any) -> Any:
    return self.head(self.rnn(x))


def nnx_recurrent() -> Foreign:
  """An LSTM forward and a GRU backward, of flax."""
  return Foreign(_Recurrent(nnx.Rngs(0)), (SEQUENCE,))


class _Convolutional(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.2, rngs=rngs)
    self.head = nnx.LoRALinear(8, 5, lora_rank=2, b_initializer=nnx.initializers.normal(), rngs=rngs)

  def __call__(self, x: Any) -> Any:
    x = nnx.relu(self.norm(self.conv(x)))
    return self.head(self.dropout(jnp.mean(x, (1, 2))))


def nnx_training() -> Foreign:
  """A batch norm and a dropout as in training, and a LoRA layer, of flax."""
  return Foreign(_Convolutional(nnx.Rngs(0)), (IMAGES,))
