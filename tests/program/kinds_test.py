"""Kinds of layers and ways of calling them that people write: each is found, counted, near the float one, learned."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from benchmarks.shared import count, foreign
from benchmarks.shared.foreign import Foreign, linen
from fracbits_jax.program import coverage

X = jax.random.normal(jax.random.key(0), (4, 8))
SEQUENCE = jax.random.normal(jax.random.key(1), (2, 5, 8))
IMAGES = jax.random.normal(jax.random.key(2), (2, 6, 6, 4))
TOKENS = jax.random.randint(jax.random.key(3), (2, 5), 0, 20)
NORMAL = nn.initializers.lecun_normal()


class _StandardizedConv(nn.Conv):
  """The convolution of BiT, whose kernels have mean 0 and variance 1."""

  def param(self, name, *args, **kwargs):
    value = super().param(name, *args, **kwargs)
    if name != 'kernel':
      return value
    value = value - jnp.mean(value, (0, 1, 2), keepdims=True)
    return value / jnp.sqrt(jnp.var(value, (0, 1, 2), keepdims=True) + 1e-5)


class _BiT(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = _StandardizedConv(8, (3, 3), name='root')(x)
    y = _StandardizedConv(8, (1, 1), name='conv1')(nn.relu(nn.GroupNorm(2)(x)))
    return nn.Dense(3)(jnp.mean(x + y, (1, 2)))


def bit():
  return linen(_BiT(), IMAGES), {'root': 36 * 9 * 4 * 8, 'conv1': 36 * 64, 'Dense_0': 24}


class _Recurrent(nn.Module):
  def setup(self):
    self.both = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(6)), nn.RNN(nn.OptimizedLSTMCell(6)))

  def __call__(self, x):
    return self.both(x)


def bidirectional_lstm():
  # Each of five steps multiplies 8 inputs with the kernels of four gates of 6 in one product, and 6 states with others.
  ways = [f'both/{way}_rnn/cell' for way in ('forward', 'backward')]
  return linen(_Recurrent(), SEQUENCE), {
    f'{way}/{part}f': 5 * n * 24 for way in ways for part, n in (('i', 8), ('h', 6))
  }


class _NNXRecurrent(nnx.Module):
  def __init__(self, rngs):
    self.rnn = nnx.RNN(nnx.LSTMCell(8, 6, rngs=rngs), rngs=rngs)

  def __call__(self, x):
    return self.rnn(x)


def nnx_rnn():
  cells = {f'rnn/cell/{part}{gate}': 5 * n * 6 for part, n in (('i', 8), ('h', 6)) for gate in ('i', 'f', 'g', 'o')}
  return Foreign(_NNXRecurrent(nnx.Rngs(0)), (SEQUENCE,)), {name.replace('/if', '/if_'): n for name, n in cells.items()}


def mapped_over_examples():
  layer = lambda params, x: jnp.tanh(params['w'] @ x + params['b'])
  params = foreign.random_like({'w': jnp.zeros((3, 8)), 'b': jnp.zeros(3)})
  return Foreign(lambda params, x: jax.vmap(layer, (None, 0))(params, x), (X,), {'params': params}), {'w': 24}


def mapped_over_parameters():
  layer = lambda params, x: jnp.tanh(x @ params['w'])
  params = foreign.random_like({'w': jnp.zeros((3, 8, 5))})
  ensemble = Foreign(lambda params, x: jax.vmap(layer, (0, None))(params, x), (X,), {'params': params})
  return ensemble, {'w': 120}  # all of them multiply the same inputs: one layer with 15 outputs


class _Ensemble(nnx.Module):
  def __init__(self, rngs):
    self.members = nnx.vmap(lambda rngs: nnx.Linear(8, 5, rngs=rngs))(rngs.split(3))
    self.heads = nnx.vmap(lambda rngs: nnx.Linear(5, 2, rngs=rngs))(rngs.split(3))

  def __call__(self, x):
    x = nnx.relu(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.members, x))
    return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, 0))(self.heads, x)


def nnx_vmap():
  return Foreign(_Ensemble(nnx.Rngs(0)), (X,)), {'members': 120, **{f'heads/{i}': 10 for i in range(3)}}


class _Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(8)(nn.relu(nn.Dense(5)(x))), None


class _Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    layers = nn.scan(_Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    return nn.Dense(2)(layers(name='layers')(x, None)[0])


def scan():
  layers = {f'layers/{i}/Dense_{j}': 40 for i in range(3) for j in range(2)}
  return linen(_Scanned(), X), {**layers, 'Dense_0': 16}


class _Normalized(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.WeightNorm(nn.Dense(5))(x)
    return nn.Dense(3)(nn.relu(x))


def weight_norm():
  return linen(_Normalized(), X), {'Dense_0': 40, 'Dense_1': 15}


class _Tied(nn.Module):
  how: str

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(20, 8)
    x = nn.relu(nn.Dense(8)(embed(tokens)))
    if self.how == 'attend':
      return embed.attend(x)
    if self.how == 'transposed':
      return x @ embed.embedding.T
    return nn.Dense(20, use_bias=False).apply({'params': {'kernel': embed.embedding.T}}, x)


def tied(how):
  return linen(_Tied(how), TOKENS), {'Embed_0': 5 * 160, 'Dense_0': 5 * 64}


def mapped_look_up():
  """A row for one token, mapped: what JAX makes of it has an index for the columns as well."""
  params = foreign.random_like({'embedding': jnp.zeros((20, 8)), 'w': jnp.zeros((8, 3))})
  row = lambda params, token: params['embedding'][token] @ params['w']
  function = lambda params, tokens: jax.vmap(jax.vmap(row, (None, 0)), (None, 0))(params, tokens)
  return Foreign(function, (TOKENS,), {'params': params}), {'w': 5 * 24}


class _Conv1D(nn.Module):
  """The layer of GPT-2 in transformers: its kernel has the outputs in front."""

  features: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(0.2), (self.features, x.shape[-1]))
    return lax.dot_general(x, kernel.T, (((x.ndim - 1,), (0,)), ((), ())))


class _GPT2(nn.Module):
  @nn.compact
  def __call__(self, x):
    return _Conv1D(8, name='c_proj')(nn.gelu(_Conv1D(16, name='c_fc')(x)))


def gpt2_conv1d():
  return linen(_GPT2(), SEQUENCE), {'c_fc': 5 * 128, 'c_proj': 5 * 128}


class _Mixture(nn.Module):
  @nn.compact
  def __call__(self, x):
    gates = nn.softmax(nn.Dense(3, name='router')(x))
    wi, wo = self.param('wi', NORMAL, (3, 8, 6)), self.param('wo', NORMAL, (3, 6, 8))
    h = nn.relu(jnp.einsum('entd,edf->entf', jnp.einsum('nte,ntd->entd', gates, x), wi))
    return jnp.sum(jnp.einsum('entf,efd->entd', h, wo), axis=0)


def mixture():
  experts = {f'{name}/{i}': 5 * 48 for name in ('wi', 'wo') for i in range(3)}
  return linen(_Mixture(), SEQUENCE), {'router': 5 * 24, **experts}


class _Gated(nn.Module):
  """Scales by an einsum, which multiplies and adds nothing up; one within is a product of activations."""

  @nn.compact
  def __call__(self, x):
    gate, y = nn.sigmoid(nn.Dense(1, name='gate')(x))[..., 0], nn.Dense(6, name='y')(x)
    y = jnp.einsum('nt,ntd->ntd', gate, y) + jnp.einsum('ntd,nt->ntd', y, gate)
    return jnp.einsum('ntd,nsd->nts', y, y)


def gated():
  return linen(_Gated(), SEQUENCE), {'gate': 5 * 8, 'y': 5 * 48}


class _LowRank(nn.Module):
  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', NORMAL, (8, 6))
    a, b = self.param('a', NORMAL, (8, 2)), self.param('b', NORMAL, (2, 6))
    return x @ kernel + (x @ a) @ b


def lora():
  return linen(_LowRank(), X), {'kernel': 48, 'a': 16, 'b': 12}


class _Merged(nn.Module):
  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', NORMAL, (8, 6))
    a, b = self.param('a', NORMAL, (8, 2)), self.param('b', NORMAL, (2, 6))
    return x @ (kernel + a @ b)


def merged_lora():
  return linen(_Merged(), X), {'kernel': 48}


def nnx_lora():
  layer = nnx.LoRALinear(8, 6, lora_rank=2, b_initializer=nnx.initializers.normal(), rngs=nnx.Rngs(0))
  return Foreign(layer, (X,)), {'kernel': 48, 'lora/lora_a': 16, 'lora/lora_b': 12}


def local_convolution():
  return linen(nn.Sequential([nn.ConvLocal(3, (3, 3), padding='VALID'), nn.relu]), IMAGES), {'layers_0': 16 * 36 * 3}


def square(examples):
  """A call whose batch could be taken for features."""
  return linen(nn.Sequential([nn.Dense(16)]), jax.random.normal(jax.random.key(6), (examples, 16))), {'layers_0': 256}


class Graph(NamedTuple):
  nodes: Any
  edges: Any
  senders: Any
  receivers: Any


class _GraphNetwork(nn.Module):
  @nn.compact
  def __call__(self, graph):
    ends = [graph.nodes[graph.senders], graph.nodes[graph.receivers], graph.edges]
    edges = nn.relu(nn.Dense(6, name='edge')(jnp.concatenate(ends, -1)))
    received = jax.ops.segment_sum(edges, graph.receivers, len(graph.nodes))
    return graph._replace(nodes=nn.Dense(3, name='node')(jnp.concatenate([graph.nodes, received], -1)), edges=edges)


def graph():
  graph = Graph(X, jax.random.normal(jax.random.key(4), (7, 2)), jnp.arange(7) % 4, jnp.arange(7) % 3)
  network = linen(_GraphNetwork(), graph)
  return dataclasses.replace(network, batch_axes=None), {'edge': 7 * 18 * 6, 'node': 4 * 14 * 3}


class _Autoencoder(nn.Module):
  def setup(self):
    self.down, self.up = nn.Dense(3), nn.Dense(8)

  def __call__(self, x):
    return self.up(self.encode(x))

  def encode(self, x, scale=1.0):
    return nn.relu(self.down(x)) * scale


def method():
  network = linen(_Autoencoder(), X)
  params = {'params': {'down': network.variables['params']['down']}}
  return dataclasses.replace(network, variables=params, call={'method': _Autoencoder.encode}), {'down': 24}


class _Conditioned(nn.Module):
  @nn.compact
  def __call__(self, x, *, condition, train):
    y = nn.Dense(5, name='x')(x) + nn.Dense(5, name='condition')(condition)
    return y if train else nn.Dense(2, name='head')(nn.relu(y))


def keywords():
  model = _Conditioned()
  return linen(model, X, condition=X[:, :3], train=False), {'x': 40, 'condition': 15, 'head': 10}


class _Switched(nn.Module):
  @nn.compact
  def __call__(self, x, which):
    branches = [lambda module, x: nn.Dense(4, name='narrow')(x), lambda module, x: nn.Dense(4, name='wide')(x) * 2]
    if self.is_initializing():
      return branches[0](self, x) + branches[1](self, x)
    return nn.switch(which, branches, self, x)


def switch():
  network = linen(_Switched(), X, jnp.array(1))
  return dataclasses.replace(network, silent=('narrow/kernel', 'narrow/input')), {'narrow': 32, 'wide': 32}


class _Einsum(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Einsum((8, 2, 3), None)(x, 'ntd,dhk->nthk')


def einsum_at_the_call():
  return linen(_Einsum(), SEQUENCE), {'Einsum_0': 5 * 48}


class _Trained(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(5, (3, 3))(x)))
    return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(jnp.mean(x, (1, 2))))


def training():
  network = linen(_Trained(), IMAGES, train=False)
  rngs = {'dropout': jax.random.key(5)}
  network = dataclasses.replace(network, call={'train': True}, apply={'mutable': ['batch_stats']}, rngs=rngs)
  return network, {'Conv_0': 36 * 36 * 5, 'Dense_0': 15}


class _NNXTrained(nnx.Module):
  def __init__(self, rngs):
    self.conv, self.norm = nnx.Conv(4, 5, (3, 3), rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
    self.dropout, self.head = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(self.dropout(jnp.mean(nnx.relu(self.norm(self.conv(x))), (1, 2))))


def nnx_training():
  return Foreign(_NNXTrained(nnx.Rngs(0)), (IMAGES,)), {'conv': 36 * 36 * 5, 'head': 15}


class _Cached(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.MultiHeadDotProductAttention(2, decode=True, name='attention')(x)


def decoding():
  """One step of attention with a cache of five."""
  cache = foreign.random_like(linen(_Cached(), SEQUENCE).variables['cache'])
  cache['attention']['cache_index'] = jnp.array(2)
  network = linen(_Cached(), SEQUENCE[:, :1])
  variables = {**network.variables, 'cache': cache}
  names = ('query', 'key', 'value', 'out')
  network = dataclasses.replace(network, variables=variables, apply={'mutable': ['cache']})
  return network, {f'attention/{name}': 64 for name in names}


KINDS = {
  'standardized kernels': bit,
  'a bidirectional LSTM': bidirectional_lstm,
  'nnx.RNN': nnx_rnn,
  'jax.vmap over examples': mapped_over_examples,
  'jax.vmap over parameters': mapped_over_parameters,
  'nnx.vmap': nnx_vmap,
  'nn.scan': scan,
  'nn.WeightNorm': weight_norm,
  'tied by attend': lambda: tied('attend'),
  'tied by a product': lambda: tied('transposed'),
  'tied by apply': lambda: tied('apply'),
  'a look-up that is mapped': mapped_look_up,
  'Conv1D of GPT-2': gpt2_conv1d,
  'a mixture of experts': mixture,
  'scaled by an einsum': gated,
  'LoRA': lora,
  'merged LoRA': merged_lora,
  'nnx.LoRALinear': nnx_lora,
  'nn.ConvLocal': local_convolution,
  'a batch of 1': lambda: square(1),
  'a batch of 2': lambda: square(2),
  'a graph': graph,
  'a method': method,
  'keywords': keywords,
  'nn.switch': switch,
  'an einsum at the call': einsum_at_the_call,
  'training': training,
  'training in NNX': nnx_training,
  'decoding': decoding,
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_found_counted_near_and_learned(kind):
  network, macs = KINDS[kind]()
  function, params, inputs = network.in_float()
  expected = foreign.flat(jax.jit(function)(params, inputs))
  counted = count.count(function, params, inputs)
  quantized = network.quantized()
  weights = {path for weight in quantized.network.weights.values() for path in weight.params}
  assert weights - counted.merged == (counted.weights | counted.tables) - counted.merged
  if kind != 'decoding':  # whose cache the table makes as long as its call
    assert coverage.measure(quantized.network, quantized.program()).macs == counted.macs
  table = quantized.table()
  assert {layer.name: layer.macs for layer in table if layer.kind not in ('product', 'embedding')} == macs
  answers = foreign.answers(quantized, expected, (16, 3.5))
  assert 0 < answers.errors[16] < 1e-3
  assert set(answers.silent) == set(network.silent)
  assert all(np.isfinite(most) for most, _ in answers.gradients.values())
