"""Flax networks of the packages transformers and diffusers, from tiny configurations, with random parameters."""

import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import transformers
from diffusers import FlaxUNet2DConditionModel

from benchmarks.shared.foreign import Foreign, linen, random_like

TOKENS = jax.random.randint(jax.random.key(0), (2, 12), 0, 60)
MASK = jnp.ones_like(TOKENS)
PLACES = jnp.broadcast_to(jnp.arange(12), TOKENS.shape)
PIXELS = jax.random.normal(jax.random.key(1), (2, 3, 32, 32))
IMAGES = jnp.transpose(PIXELS, (0, 2, 3, 1))


def _linen(model: Any, *inputs: Any, **call: Any) -> Foreign:
  """The linen module within a network of transformers, with its parameters."""
  return Foreign(model.module, inputs, _variables(model), call)


def _variables(model: Any) -> Any:
  shapes = model.params_shape_tree
  return random_like(dict(shapes) if 'batch_stats' in shapes else {'params': shapes})


def bert() -> Foreign:
  """BERT with the head that fills masks, tied to the embedding."""
  config = transformers.BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=16,
  )  # fmt: skip
  model = transformers.FlaxBertForMaskedLM(config, input_shape=(1, 8), _do_init=False)
  return _linen(model, TOKENS, MASK, jnp.zeros_like(TOKENS), PLACES, None, return_dict=False)


def gpt2() -> Foreign:
  """GPT-2 as a language model: Conv1D layers, a head tied to the embedding."""
  config = transformers.GPT2Config(vocab_size=60, n_positions=16, n_embd=32, n_layer=2, n_head=2)
  model = transformers.FlaxGPT2LMHeadModel(config, input_shape=(1, 8), _do_init=False)
  return _linen(model, TOKENS, MASK, PLACES, return_dict=False)


def t5() -> Foreign:
  """T5 as a function of its parameters: relative positions, and an embedding that encoder, decoder and head share."""
  config = transformers.T5Config(
    vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, relative_attention_num_buckets=8,
  )  # fmt: skip
  # The arguments that jnp.clip had when transformers wrote its T5.
  clip = mock.patch.object(jnp, 'clip', lambda x, a_max: jnp.minimum(x, a_max))
  with clip:
    model = transformers.FlaxT5ForConditionalGeneration(config, input_shape=(1, 8), _do_init=False)

  def function(params: Any, tokens: Any, decoded: Any) -> Any:
    masks = jnp.ones_like(tokens), jnp.ones_like(decoded)
    with clip:
      return model.module.apply({'params': params}, tokens, masks[0], decoded, masks[1], return_dict=False)[0]

  return Foreign(function, (TOKENS, TOKENS[:, :7]), _variables(model))


def vit() -> Foreign:
  """ViT as a classifier."""
  config = transformers.ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
    num_labels=5,
  )  # fmt: skip
  model = transformers.FlaxViTForImageClassification(config, input_shape=(1, 32, 32, 3), _do_init=False)
  return _linen(model, IMAGES, return_dict=False)


def resnet() -> Foreign:
  """ResNet with bottlenecks and batch norms."""
  config = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type='bottleneck', num_labels=5
  )
  model = transformers.FlaxResNetForImageClassification(config, input_shape=(1, 32, 32, 3), _do_init=False)
  return _linen(model, IMAGES, return_dict=False)


def regnet() -> Foreign:
  """RegNet: grouped convolutions, squeeze and excitation."""
  config = transformers.RegNetConfig(
    embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8, layer_type='y', num_labels=5
  )
  model = transformers.FlaxRegNetForImageClassification(config, input_shape=(1, 32, 32, 3), _do_init=False)
  return _linen(model, IMAGES, return_dict=False)


def clip() -> Foreign:
  """CLIP: a tower for texts and one for images."""
  text = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
  text |= dict(max_position_embeddings=16, projection_dim=16, eos_token_id=59)
  vision = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
  vision |= dict(image_size=32, patch_size=8, projection_dim=16)
  config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
  model = transformers.FlaxCLIPModel(config, input_shape=((1, 8), (1, 32, 32, 3)), _do_init=False)
  return _linen(model, TOKENS, IMAGES, MASK, PLACES, return_dict=False)


def whisper() -> Foreign:
  """Whisper: convolutions over a spectrogram, encoder and decoder."""
  config = transformers.WhisperConfig(
    vocab_size=60, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=10,
    max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    suppress_tokens=None, begin_suppress_tokens=None,
  )  # fmt: skip
  model = transformers.FlaxWhisperForConditionalGeneration(config, input_shape=(1, 8, 20), _do_init=False)
  spectrogram = jax.random.normal(jax.random.key(2), (2, 8, 20))
  decoded, mask, places = TOKENS[:, :7], MASK[:, :7], PLACES[:, :7]
  network = _linen(model, spectrogram, decoded, mask, places, return_dict=False)
  return dataclasses.replace(
    network, silent=('model/encoder/embed_positions/kernel',)
  )  # behind a stop_gradient of its own


def unet() -> Foreign:
  """The UNet of a text-to-image diffusion: time steps, cross attention, up and down."""
  model = FlaxUNet2DConditionModel(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=16,
  )
  latents = jax.random.normal(jax.random.key(3), (2, 4, 8, 8))
  text = jax.random.normal(jax.random.key(4), (2, 6, 16))
  return linen(model, latents, jnp.array([3, 500]), text, return_dict=False)
