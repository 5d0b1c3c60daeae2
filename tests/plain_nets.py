"""Small networks in plain Flax, as others write them, for the tests of exports; none of them is changed for these."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import from_float, quantize_model
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import wrap

WORDS, PLACES, WIDTH, HEADS = 23, 6, 8, 2
EXAMPLES = 2  # as many as a file is tried with before it is written, so that nothing is compiled twice


def _attention(q, k, v, mask=None):
  heads = lambda x: x.reshape(*x.shape[:2], HEADS, WIDTH // HEADS)
  scores = jnp.einsum('bqhd,bkhd->bhqk', heads(q), heads(k)) / 2
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  return jnp.einsum('bhqk,bkhd->bqhd', nn.softmax(scores), heads(v)).reshape(q.shape)


class Bert(nn.Module):
  """An encoder of words, with a mask and two kinds of sentences; gives states, and one of them in particular."""

  @nn.compact
  def __call__(self, input_ids, attention_mask, token_type_ids):
    places = jnp.arange(input_ids.shape[1])[None]
    x = nn.Embed(WORDS, WIDTH)(input_ids) + nn.Embed(PLACES, WIDTH)(places) + nn.Embed(2, WIDTH)(token_type_ids)
    x = nn.LayerNorm()(x)
    q, k, v = (nn.Dense(WIDTH)(x) for _ in range(3))
    x = nn.LayerNorm()(x + nn.Dense(WIDTH)(_attention(q, k, v, attention_mask[:, None, None] > 0)))
    x = nn.LayerNorm()(x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(x), approximate=False)))
    return {'last_hidden_state': x, 'pooler_output': jnp.tanh(nn.Dense(WIDTH)(x[:, 0]))}


class Conv1D(nn.Module):
  """The dense layer of GPT-2, with parameters of its own."""

  features: int

  @nn.compact
  def __call__(self, x):
    weight = self.param('weight', nn.initializers.normal(0.5), (x.shape[-1], self.features))
    return x @ weight + self.param('bias', nn.initializers.normal(0.1), (self.features,))[None, None]


class Gpt2(nn.Module):
  """A decoder of words whose head is the table of words."""

  @nn.compact
  def __call__(self, input_ids, attention_mask):
    words, side = nn.Embed(WORDS, WIDTH, name='wte'), input_ids.shape[1]
    places = jnp.maximum(jnp.cumsum(attention_mask, axis=1) - 1, 0)
    x = words(input_ids) + nn.Embed(PLACES, WIDTH, name='wpe')(places)
    q, k, v = jnp.split(Conv1D(3 * WIDTH)(nn.LayerNorm()(x)), 3, axis=-1)
    seen = jnp.tril(jnp.ones((side, side), bool))[None, None] & (attention_mask[:, None, None] > 0)
    x = x + Conv1D(WIDTH)(_attention(q, k, v, seen))
    x = x + Conv1D(WIDTH)(nn.gelu(Conv1D(2 * WIDTH)(nn.LayerNorm()(x)), approximate=False))
    return words.attend(nn.LayerNorm()(x))


class Vit(nn.Module):
  """A vision transformer with a token for the class."""

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(WIDTH, (4, 4), (4, 4))(images)
    x = x.reshape(x.shape[0], -1, WIDTH)
    normal = nn.initializers.normal(0.5)
    first = jnp.broadcast_to(self.param('class', normal, (1, 1, WIDTH)), (x.shape[0], 1, WIDTH))
    x = jnp.concatenate([first, x], 1)
    x = x + self.param('places', normal, (1, x.shape[1], WIDTH))
    x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
    x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x)), approximate=False))
    return nn.Dense(5)(nn.LayerNorm()(x)[:, 0])


class Lstm(nn.Module):
  """A recurrent network, whose kernels its cell puts together; it loops over the places."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)[:, -1])


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(x))), None


class Scanned(nn.Module):
  """Layers in a loop, each with its part of the parameters."""

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(_Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
    return nn.Dense(3)(layers(name='layers')(x, None)[0])


class Experts(nn.Module):
  """A mixture of experts: kernels along an axis of one product, and a choice among what they give."""

  @nn.compact
  def __call__(self, x):
    gates = nn.Dense(3)(x)
    chances, chosen = jax.lax.top_k(gates, 2)
    kernels = self.param('experts', nn.initializers.normal(0.5), (3, WIDTH, WIDTH))
    of_each = jnp.einsum('bted,edf->btef', x[:, :, None] * nn.sigmoid(gates)[..., None], kernels)
    y = jnp.take_along_axis(of_each, chosen[..., None], 2)
    return (y * nn.softmax(chances)[..., None]).sum(2)


def _inputs():
  rng = np.random.default_rng(0)
  words = rng.integers(0, WORDS, (EXAMPLES, PLACES)).astype(np.int32)
  mask = np.ones((EXAMPLES, PLACES), np.int32)
  mask[0, :2] = mask[1, 5:] = 0
  states = rng.standard_normal((EXAMPLES, PLACES, WIDTH)).astype(np.float32)
  return {
    Bert: (words, mask, rng.integers(0, 2, (EXAMPLES, PLACES)).astype(np.int32)),
    Gpt2: (words, mask),
    Vit: (rng.standard_normal((EXAMPLES, 8, 8, 3)).astype(np.float32),),
    Lstm: (states[:, :3],),
    Scanned: (states,),
    Experts: (states,),
  }


INPUTS = _inputs()


@functools.cache
def quantized(kind, *rules):
  """A network of a class with calibrated ranges, its variables, and what it gives, compiled once."""
  model, inputs = kind(), INPUTS[kind]
  net = quantize_model(model, inputs, rules, edge_bits=None)
  variables = from_float(net, jax.jit(model.init)(jax.random.key(0), *inputs), inputs)
  return net, variables, jax.jit(net.apply)


def source(kind, widths, *rules):
  """The network as something to export, its bit-widths drawn from some, and what it gives for `INPUTS`."""
  net, variables, apply = quantized(kind, *rules)
  rng = np.random.default_rng(len(widths))
  bits = jax.tree.map(lambda b: rng.choice(widths, b.shape).astype(np.float32), variables['bits'])
  variables = {**variables, 'bits': bits}
  expected = jax.tree.leaves(apply(variables, *INPUTS[kind]))
  return source_of(wrap.with_fixed_bits(net), variables, INPUTS[kind]), [np.asarray(x) for x in expected]
