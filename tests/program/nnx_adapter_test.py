import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from benchmarks.accuracy import own_networks
from fracbits_jax import cost, from_float, policy, quantize_model
from fracbits_jax.export import comparison, integer, packed, stablehlo
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig
from fracbits_jax.program import nnx_adapter
from fracbits_jax.train import optim

IMAGES = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1))
QUANT = QuantConfig(scheme='lsq', choices=range(2, 9), init_bits=4.5)
LEARNED = nnx.Any(nnx.Param, nnx_adapter.Bits)


class Everything(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.up = nnx.ConvTranspose(8, 4, (2, 2), strides=(2, 2), transpose_kernel=True, rngs=rngs)
    self.heads = nnx.List([nnx.Einsum('nhwc,cab->nhwab', (4, 3, 5), rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    n, h, w, c = x.shape
    for _ in range(2):
      x = x + self.attention(x.reshape(n, h * w, c)).reshape(n, h, w, c)
    x = nnx.relu(self.up(x))
    for head in self.heads:
      x = head(x)
    return x


def test_parameters_and_answers_stay_what_they_were():
  model = Everything(nnx.Rngs(0))
  model.eval()
  before, expected = nnx.to_flat_state(nnx.state(model, nnx.Param)), nnx.jit(model)(IMAGES)
  assert quantize_model(model, IMAGES) is model
  after = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
  for path, value in before:
    np.testing.assert_array_equal(after.pop(path)[...], value[...])
  assert {path[-1] for path in after} == {'alpha', 'kernel_alpha'}
  error = jnp.linalg.norm(model(IMAGES) - expected) / jnp.linalg.norm(expected)
  assert 0 < float(error) < 0.1
  nnx_adapter.set_configs(model, {})
  np.testing.assert_array_equal(nnx.jit(model)(IMAGES), expected)


def test_every_kind_of_layer_is_counted():
  model = Everything(nnx.Rngs(0))
  quantize_model(model, IMAGES, default=QuantConfig(granularity='kernel', scheme='lsq'))
  table = cost.trace(model, IMAGES)
  found = {
    layer.name: (layer.macs, layer.weights, layer.channels, layer.kind, layer.biases)
    for layer in table
    if layer.weights
  }
  attention = (2 * 16 * 64, 64, 8, 'dense', 8)
  assert found == {
    'conv': (16 * 72, 72, 8, 'standard', 8),
    **{f'attention/{part}': attention for part in ('query', 'key', 'value', 'out')},
    'up': (16 * 4 * 8 * 4, 128, 4, 'standard', 4),
    'heads/0': (64 * 60, 60, 15, 'dense', 0),
    'heads/1': (64 * 3 * 15, 15, 3, 'dense', 3),
  }
  assert [layer.macs for layer in table if not layer.weights] == [16 * 16 * 8] * 4  # two products in each attention
  assert jax.tree.map(jnp.shape, nnx_adapter.bits(model)) == jax.tree.map(np.shape, cost.uniform_bits(table, 8.0))


@pytest.mark.parametrize('ranges', ['layer', 'channel'])
def test_it_computes_what_the_same_network_in_linen_computes(ranges):
  model, linen = own_networks.NNXDenoiser(4, rngs=nnx.Rngs(0)), own_networks.Denoiser(4)
  names = {'Conv_0': 'down1', 'Conv_1': 'down2', 'Conv_2': 'middle', 'ConvTranspose_0': 'up1', 'ConvTranspose_1': 'up2'}
  layers = {ours: getattr(model, theirs) for ours, theirs in names.items()}
  params = {ours: {'kernel': layer.kernel[...], 'bias': layer.bias[...]} for ours, layer in layers.items()}
  quant = dataclasses.replace(QUANT, kernel_ranges=ranges, input_offset=ranges == 'channel')
  net = quantize_model(linen, IMAGES, default=quant)
  variables = from_float(net, {'params': params}, IMAGES)
  quantize_model(model, IMAGES, default=quant)

  def compare(variables):
    for ours, layer in layers.items():
      np.testing.assert_array_equal(layer.alpha[...], variables['params'][ours]['alpha'])
      np.testing.assert_array_equal(layer.kernel_alpha[...], variables['params'][ours]['kernel_alpha'])

  compare(variables)
  np.testing.assert_allclose(model(IMAGES), net.apply(variables, IMAGES), atol=1e-6)
  nnx_adapter.set_bits(model, cost.uniform_bits(cost.trace(model, IMAGES), 3.0))
  nnx_adapter.calibrate(model, IMAGES)
  compare(from_float(net, {'params': params}, IMAGES, bits=cost.uniform_bits(cost.trace(net, IMAGES), 3.0)))


def test_an_nnx_model_is_searched_discretized_and_finetuned():
  model = own_networks.NNXDenoiser(4, rngs=nnx.Rngs(0))
  quantize_model(model, IMAGES, default=QUANT)
  table = cost.trace(model, IMAGES)
  budget = cost.budget('bitops', table, equivalent_bits=4)
  bits_range = cost.bits_range(table)
  weights = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
  bits = nnx.Optimizer(model, optax.sgd(0.3, momentum=0.9), wrt=nnx_adapter.Bits)

  def task(model):
    return jnp.mean((model(IMAGES) - IMAGES) ** 2)

  @nnx.jit
  def search(model, weights, bits):
    def loss(model):
      return task(model) + 0.1 * budget.penalty(nnx_adapter.bits(model), table)

    gradients = nnx.grad(loss, argnums=nnx.DiffState(0, LEARNED))(model)
    of_bits, of_weights = nnx.split_state(gradients, nnx_adapter.Bits, ...)
    weights.update(model, of_weights)
    bits.update(model, of_bits)
    nnx_adapter.set_bits(model, optim.project_bits(nnx_adapter.bits(model), bits_range))

  @nnx.jit
  def finetune(model, weights):
    gradients = nnx.grad(task, argnums=nnx.DiffState(0, nnx.Param))(model)
    weights.update(model, gradients)

  before = float(task(model))
  for _ in range(60):
    search(model, weights, bits)
  searched = nnx_adapter.bits(model)
  assert float(task(model)) < 0.7 * before
  assert abs(float(budget.ratio(searched, table)) - 1) < 0.1
  found = policy.discretize(searched, table, budget)
  assert 0.9 < found.cost / found.target <= 1
  nnx_adapter.set_bits(model, found.bits(), fixed=True)
  rounded = float(task(model))
  for _ in range(30):
    finetune(model, weights)
  assert float(task(model)) < rounded
  jax.tree.map(np.testing.assert_array_equal, nnx_adapter.bits(model), found.bits())


def test_rules_are_those_of_linen():
  model = Everything(nnx.Rngs(0))
  quantize_model(model, IMAGES, [('attention/.*', None), ('heads/1', QuantConfig(kernel_bits=3, scheme='lsq'))])
  configs = nnx_adapter.configs(model)
  assert 'attention/query' not in configs
  assert configs['heads/1'].kernel_bits == 3
  assert (configs['conv'].kernel_bits, configs['conv'].input_bits, configs['conv'].signed_input) == (8, 8, True)
  assert not configs['heads/0'].signed_input
  with pytest.raises(ValueError, match=r"the rule 'blocks' matches no layer.*conv, attention/query"):
    quantize_model(Everything(nnx.Rngs(0)), IMAGES, [('blocks', None)])


def test_what_is_no_model_is_refused():
  with pytest.raises(ValueError, match="'relu' is a function, and its parameters are not known"):
    quantize_model(nn.relu, IMAGES)
  with pytest.raises(ValueError, match='3 is not a network: give a linen or an NNX module'):
    quantize_model(3, IMAGES)


def test_an_nnx_model_is_exported(tmp_path):
  model = Everything(nnx.Rngs(0))
  model.eval()
  quantize_model(model, IMAGES, default=QuantConfig(scheme='lsq', init_bits=4))
  source = source_of(model, None, IMAGES)
  packed.write(source, tmp_path / 'net')
  found = packed.read(tmp_path / 'net')
  assert [layer['name'] for layer in found.layers][:2] == ['conv', 'attention/query']
  compared = comparison.compare(found.graph, IMAGES, reference=source.graph, integer_inputs=False)
  assert compared.different <= 2
  assert compared.farthest_from_tie < 1e-4
  expected = nnx.jit(model)(IMAGES)
  outputs, _ = integer.inference(found.graph, integer_inputs=False)(IMAGES)
  assert np.abs(outputs - expected).mean() < 0.01 * np.abs(expected).mean()
  stablehlo.write(source, tmp_path / 'net.stablehlo')
  program = jax.export.deserialize((tmp_path / 'net.stablehlo').read_bytes())
  np.testing.assert_array_equal(program.call(IMAGES), expected)


class _Block(nnx.Module):
  def __init__(self, rngs):
    self.layer = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.layer(x))


class _Within(nnx.Module):
  """A block within a transform."""

  def __init__(self, block, transformed, rngs):
    self.block, self.head = block, nnx.Linear(8, 3, rngs=rngs)
    self.transformed = transformed

  def __call__(self, x):
    return self.head(self.transformed(self.block, x))


@pytest.mark.parametrize('transform', [nnx.remat, nnx.jit])
def test_layers_within_remat_and_jit_are_quantized(transform):
  x, rngs = jax.random.normal(jax.random.key(1), (4, 8)), nnx.Rngs(0)
  model = _Within(_Block(rngs), transform(lambda block, x: block(x)), rngs)
  expected = model(x)
  quantize_model(model, x, default=QuantConfig(scheme='lsq', choices=range(1, 17), init_bits=16), edge_bits=None)
  assert {layer.name: layer.macs for layer in cost.trace(model, x)} == {'block/layer': 64, 'head': 24}
  assert nnx_adapter.configs(model)['head'].signed_input is False
  assert 0 < float(jnp.abs(model(x) - expected).max()) < 1e-3 * float(jnp.abs(expected).max())


def test_layers_within_scan_have_their_own_bits():
  x, rngs = jax.random.normal(jax.random.key(1), (4, 8)), nnx.Rngs(0)
  blocks = nnx.vmap(_Block)(nnx.Rngs(0).split(3))
  scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  model = _Within(blocks, lambda block, x: scan(x, block), rngs)
  expected = model(x)
  quantize_model(model, x, default=QuantConfig(scheme='lsq', choices=range(1, 17), init_bits=16), edge_bits=None)
  table = cost.trace(model, x)
  assert {layer.name: layer.macs for layer in table} == {**{f'block/layer/{i}': 64 for i in range(3)}, 'head': 24}
  assert jax.tree.map(jnp.shape, nnx_adapter.bits(model)) == jax.tree.map(np.shape, cost.uniform_bits(table, 8.0))
  assert model.block.layer.bits_kernel.shape == model.block.layer.alpha.shape == (3,)
  assert 0 < float(jnp.abs(model(x) - expected).max()) < 1e-3 * float(jnp.abs(expected).max())
  fewer = nnx_adapter.bits(model)
  fewer['block']['layer']['kernel'] = jnp.array([16.0, 1.0, 16.0])
  nnx_adapter.set_bits(model, fewer)
  assert float(jnp.abs(model(x) - expected).max()) > 0.05 * float(jnp.abs(expected).max())
