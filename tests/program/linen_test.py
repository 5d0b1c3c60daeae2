import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from benchmarks.accuracy import own_networks
from fracbits_jax import cost, from_float, layers, models, policy, quantize_model
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.quantize import lsq
from fracbits_jax.train import optim

IMAGES = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
BY_CHANNEL = QuantConfig(scheme='lsq', granularity='kernel', kernel_ranges='channel')
BY_LAYER = dataclasses.replace(BY_CHANNEL, kernel_ranges='layer')
OF_LAYER = ('depthwise', 'attention/query', 'einsum')  # with one range a kernel, in the same program


class Everything(nn.Module):
  """A layer of each kind; the block is used twice."""

  def setup(self):
    self.conv = nn.Conv(8, (3, 3), strides=2, feature_group_count=1)
    self.depthwise = nn.Conv(8, (3, 3), feature_group_count=8)
    self.attention = nn.MultiHeadDotProductAttention(2)
    self.up = nn.ConvTranspose(4, (2, 2), strides=(2, 2), transpose_kernel=True)
    self.einsum = nn.Einsum((4, 3, 5), 'nhwc,cab->nhwab')
    self.general = nn.DenseGeneral((2, 3), axis=(-2, -1))

  def __call__(self, x):
    x = nn.relu(self.depthwise(nn.relu(self.conv(x))))
    n, h, w, c = x.shape
    x = x.reshape(n, h * w, c)
    for _ in range(2):
      x = x + self.attention(x)
    x = x.reshape(n, h, w, c)
    return self.general(nn.relu(self.einsum(nn.relu(self.up(x)))))


@pytest.fixture(scope='module')
def everything():
  model = Everything()
  variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
  net = quantize_model(model, IMAGES, [(name, BY_LAYER) for name in OF_LAYER], default=BY_CHANNEL)
  return model, variables, net, from_float(net, variables, IMAGES)


def test_parameters_keep_their_names_and_shapes(everything):
  model, variables, net, quantized = everything
  flat, flat_quantized = (dict(jax.tree_util.tree_leaves_with_path(v['params'])) for v in (variables, quantized))
  for path, value in flat.items():
    np.testing.assert_array_equal(flat_quantized[path], value)
  assert {path[-1].key for path in flat_quantized.keys() - flat.keys()} == {'alpha', 'kernel_alpha'}
  plain = wrap.without_quantization(net)
  np.testing.assert_array_equal(plain.apply(variables, IMAGES), jax.jit(model.apply)(variables, IMAGES))


def test_every_kind_of_layer_has_a_range_or_one_for_each_channel(everything):
  _, _, net, quantized = everything
  leaves = jax.tree_util.tree_leaves_with_path(quantized['params'])
  found = {path[-2].key: x for path, x in leaves if path[-1].key == 'kernel_alpha'}
  counts = {'conv': 8, 'depthwise': 8, 'query': 8, 'key': 8, 'value': 8, 'out': 8, 'up': 4, 'einsum': 15, 'general': 6}
  of_layer = {name.split('/')[-1] for name in OF_LAYER}
  shapes = {name: () if name in of_layer else (count,) for name, count in counts.items()}
  assert {name: x.shape for name, x in found.items()} == shapes
  # A range that is the best for another channel is not the best for this one: those of the transposed convolution.
  kernel = jnp.moveaxis(quantized['params']['up']['kernel'], 2, -1)
  error = lambda alpha: jnp.mean((lsq.kernel(kernel, 8, alpha) - kernel) ** 2)
  assert error(found['up']) < min(error(jnp.roll(found['up'], i)) for i in range(1, 4))
  start = net.init(jax.random.key(0), IMAGES)['params']
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, quantized['params'])


def test_a_convolution_of_one_output_channel_has_one_bit_width_and_one_range():
  model = nn.Sequential([nn.Conv(1, (3, 3))])
  net, whole = (quantize_model(model, IMAGES, default=q) for q in (BY_CHANNEL, QuantConfig(scheme='lsq')))
  variables = from_float(net, model.init(jax.random.key(0), IMAGES), IMAGES)
  params = variables['params']['layers_0']
  assert params['kernel_alpha'].shape == (1,)
  of_kernel = {'layers_0': {**params, 'kernel_alpha': params['kernel_alpha'][0]}}
  expected = whole.apply({**variables, 'params': of_kernel}, IMAGES)
  np.testing.assert_array_equal(net.apply(variables, IMAGES), expected)


def test_every_kind_of_layer_is_quantized_and_counted(everything):
  _, variables, net, quantized = everything
  every = cost.trace(net, IMAGES)
  table = {layer.name: layer for layer in every if layer.weights}
  # positions x weights, of an output of 8 x 8 for each image, and of an input of 8 x 8 for the transposed convolution.
  expected = {
    'conv': (64 * 9 * 8, 8, 'standard'),
    'depthwise': (64 * 9 * 8, 8, 'depthwise'),
    'attention/query': (2 * 64 * 64, 8, 'dense'),
    'attention/key': (2 * 64 * 64, 8, 'dense'),
    'attention/value': (2 * 64 * 64, 8, 'dense'),
    'attention/out': (2 * 64 * 64, 8, 'dense'),
    'up': (64 * 4 * 8 * 4, 4, 'standard'),
    'einsum': (256 * 4 * 15, 15, 'dense'),
    'general': (256 * 15 * 6, 6, 'dense'),
  }
  assert {name: (layer.macs, layer.channels, layer.kind) for name, layer in table.items()} == expected
  products = [layer for layer in every if not layer.weights]  # of queries and keys, and of these with values
  assert [layer.name for layer in products] == ['attention/product', *(f'attention/product:{i}' for i in (2, 3, 4))]
  assert {(layer.macs, layer.kernel_bits, layer.input_bits) for layer in products} == {(64 * 64 * 8, 32, 32)}
  for name, layer in table.items():
    kernel = variables['params']
    for key in name.split('/'):
      kernel = kernel[key]
    assert (layer.weights, layer.biases) == (kernel['kernel'].size, kernel['bias'].size)
  bits = cost.uniform_bits(table.values(), 8.0)
  assert jax.tree.map(jnp.shape, quantized['bits']) == jax.tree.map(np.shape, bits)


def test_eight_bits_are_near_the_float_network_and_two_are_not(everything):
  model, variables, net, quantized = everything
  expected, apply = jax.jit(model.apply)(variables, IMAGES), jax.jit(net.apply)

  def error(bits):
    y = apply({**quantized, 'bits': bits}, IMAGES)
    return float(jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected))

  two = jax.tree.map(lambda b: jnp.full_like(b, 2.0), quantized['bits'])
  assert error(quantized['bits']) < 0.1 < error(two)


def test_bits_of_every_layer_get_gradients(everything):
  _, _, net, quantized = everything
  at = jax.tree.map(lambda b: jnp.full_like(b, 3.5), quantized['bits'])

  @jax.jit
  @jax.grad
  def gradient(bits):
    return jnp.sum(net.apply({**quantized, 'bits': bits}, IMAGES) ** 2)

  for path, value in jax.tree_util.tree_leaves_with_path(gradient(at)):
    assert np.abs(value).max() > 0, jax.tree_util.keystr(path)


def test_output_channels_of_every_kind_have_their_own_bits():
  """One channel at 8 bits, the others at 1: its output is near the float one, theirs are not."""
  cases = (
    (nn.DenseGeneral((2, 3)), (4, 5), lambda y: y.reshape(4, 6)),
    (nn.ConvTranspose(6, (2, 2), use_bias=False), (1, 4, 4, 5), lambda y: y.reshape(16, 6)),
    (nn.ConvTranspose(6, (2, 2), transpose_kernel=True), (1, 4, 4, 5), lambda y: y.reshape(16, 6)),
    (nn.Einsum((6, 5), 'ni,oi->no'), (4, 5), lambda y: y),
    (nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (2, 4, 5), lambda y: y.transpose(1, 0, 2).reshape(4, 6)),
  )
  for layer, shape, by_channel in cases:
    x = jax.random.normal(jax.random.key(1), shape)
    quant = QuantConfig(granularity='kernel', scheme='lsq', weight_only=True)
    twin = layers.quantized_class(type(layer))
    fields = {name: getattr(layer, name) for name in layer.__dataclass_fields__ if name not in ('parent', 'name')}
    net = twin(**fields, quant=quant)
    variables = net.init(jax.random.key(0), x)
    assert variables['bits']['kernel'].shape == (6,)
    kernel = variables['params']['kernel']
    params = {**variables['params'], 'kernel_alpha': jnp.max(jnp.abs(kernel)) * 1.01}
    bits = {'kernel': jnp.where(jnp.arange(6) == 4, 8.0, 1.0)}
    bare = {name: value for name, value in params.items() if name != 'kernel_alpha'}
    y, plain = net.apply({'params': params, 'bits': bits}, x), layer.apply({'params': bare}, x)
    error = np.abs(by_channel(y - plain)).max(axis=0) / np.abs(plain).max()
    assert np.flatnonzero(error < 0.02).tolist() == [4], type(layer)


def test_rules_take_the_first_match_and_edges_have_8_bits():
  net = quantize_model(
    own_networks.ResNet(),
    IMAGES,
    [
      ('Block_1/Conv_0', QuantConfig(kernel_bits=4, scheme='lsq')),
      ('Block_1/.*', QuantConfig(granularity='kernel')),
      ('Block_2/conv_proj', None),
    ],
  )
  configs = net.configs
  assert configs['Block_1/Conv_0'].kernel_bits == 4
  assert configs['Block_1/Conv_1'].granularity == 'kernel'
  assert configs['Block_0/Conv_0'] == QuantConfig(scheme='lsq')
  assert 'Block_2/conv_proj' not in configs
  first, last = configs['conv_init'], configs['Dense_0']
  assert (first.kernel_bits, first.input_bits, first.signed_input) == (8, 8, True)
  assert (last.kernel_bits, last.input_bits, last.signed_input) == (8, None, False)
  free = quantize_model(own_networks.ResNet(), IMAGES, edge_bits=None).configs
  assert free['conv_init'].kernel_bits is None
  table = {layer.name: layer for layer in cost.trace(net, IMAGES)}
  assert table['Block_2/conv_proj'].kernel_bits == 32


def test_only_what_can_be_negative_is_signed():
  net = quantize_model(models.create('mobilenet_v2', num_classes=10, width=0.25), jnp.zeros((1, 32, 32, 3)))
  signed = {name for name, quant in net.configs.items() if quant.signed_input}
  assert signed == {'stem', *(f'block{i}_expand' for i in range(2, 18)), 'head'}


def test_a_rule_without_a_layer_is_named_with_the_layers_there_are():
  with pytest.raises(ValueError, match=r"the rule 'Blok.*' matches no layer.*conv_init.*Block_2/conv_proj.*Dense_0"):
    quantize_model(own_networks.ResNet(), IMAGES, [('Blok.*', QuantConfig())])


def test_a_network_without_layers_is_refused():
  with pytest.raises(ValueError, match=r'no layer that can be quantized: it multiplies its inputs with no parameter'):
    quantize_model(nn.BatchNorm(use_running_average=True), IMAGES)


def test_a_network_that_is_quantized_already_is_refused():
  with pytest.raises(ValueError, match='ResNet has quantized layers of its own: give it with quant=None'):
    quantize_model(models.create('resnet18', num_classes=10, quant=QuantConfig()), jnp.zeros((1, 32, 32, 3)))


def test_variables_of_another_network_are_refused(everything):
  _, variables, net, _ = everything
  other = {**variables, 'params': {**variables['params'], 'conv': {'kernel': jnp.zeros((5, 5, 1, 8))}}}
  with pytest.raises(ValueError, match='another network: conv/bias, conv/kernel do not fit'):
    from_float(net, other, IMAGES)


def test_the_shipped_networks_are_taken_as_they_are():
  model = models.create('vit_mini', num_classes=10, small_images=True)
  x = jnp.zeros((2, 16, 16, 1))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  net = quantize_model(model, x)
  ours = models.create('vit_mini', num_classes=10, small_images=True, quant=QuantConfig(scheme='lsq'))
  found = [(l.name, l.macs, l.kind) for l in cost.trace(net, x) if l.kind != 'product']
  assert found == [(l.name, l.macs, l.kind) for l in cost.trace(ours, x)]
  plain = wrap.without_quantization(net)
  np.testing.assert_allclose(plain.apply(variables, x), model.apply(variables, x), atol=1e-6)


def test_the_training_kit_searches_within_a_budget():
  """The whole way on a network of one's own, on a task that a few steps learn."""
  images = jax.random.uniform(jax.random.key(0), (32, 8, 8, 1))
  model = own_networks.Denoiser(filters=4)
  variables = jax.jit(model.init)(jax.random.key(1), images)
  net = quantize_model(model, images, default=QuantConfig(scheme='lsq', choices=range(2, 9), init_bits=4.5))
  start = from_float(net, variables, images)
  table = cost.trace(net, images)
  budget = cost.budget('bitops', table, equivalent_bits=4)
  bits_range = cost.bits_range(table)
  optimizer = optim.with_bits(optax.adam(3e-3), optax.sgd(0.3, momentum=0.9))

  def run(net, learned, steps, penalised):
    def loss(learned):
      task = jnp.mean((net.apply(learned, images) - images) ** 2)
      return task + 0.1 * penalised * budget.penalty(learned['bits'], table), task

    def step(carry, _):
      learned, state = carry
      gradients, task = jax.grad(loss, has_aux=True)(learned)
      updates, state = optimizer.update(gradients, state, learned)
      return (optim.apply_updates(learned, updates, bits_range), state), task

    (learned, _), tasks = jax.lax.scan(step, (learned, optimizer.init(learned)), length=steps)
    return learned, tasks

  learned = {name: start[name] for name in ('params', 'bits')}
  learned, tasks = jax.jit(lambda x: run(net, x, 60, 1.0))(learned)
  assert float(tasks[-1]) < 0.7 * float(tasks[0])
  assert abs(float(budget.ratio(learned['bits'], table)) - 1) < 0.1
  assert len(np.unique(np.round(jax.tree.leaves(learned['bits']), 2))) > 3
  found = policy.discretize(learned['bits'], table, budget)
  assert 0.9 < found.cost / found.target <= 1
  fixed = {**learned, 'bits': jax.tree.map(jnp.float32, found.bits())}
  final, tasks = jax.jit(lambda x: run(wrap.with_fixed_bits(net), x, 30, 0.0))(fixed)
  jax.tree.map(np.testing.assert_array_equal, final['bits'], fixed['bits'])
  assert float(tasks[-1]) < float(tasks[0])


def test_a_network_of_tokens_is_quantized():
  tokens = jnp.arange(24).reshape(2, 12)
  model = own_networks.CharTransformer(vocabulary=30, dim=8, depth=1)
  variables = jax.jit(model.init)(jax.random.key(0), tokens)
  net = quantize_model(model, tokens, [('Dense_0', QuantConfig(scheme='lsq', granularity='kernel'))])
  quantized = from_float(net, variables, tokens)
  table = cost.trace(net, tokens)
  assert [layer.name for layer in table][-1] == 'Dense_2'
  assert {layer.macs for layer in table if 'Attention' in layer.name and layer.weights} == {12 * 64}
  expected = jax.jit(model.apply)(variables, tokens)
  error = jnp.abs(jax.jit(net.apply)(quantized, tokens) - expected).max()
  assert 0 < float(error) < 0.1 * float(jnp.abs(expected).max())


def _nearly_float(model, inputs, table):
  """Checks that 16 bits everywhere are the float network nearly, and what is counted: name -> MACs."""
  arguments = inputs if isinstance(inputs, tuple) else (inputs,)
  variables = jax.jit(model.init)(jax.random.key(0), *arguments)
  quant = QuantConfig(scheme='lsq', choices=range(1, 17), init_bits=16)
  net = quantize_model(model, inputs, default=quant, edge_bits=None)
  start = from_float(net, variables, inputs)
  found = cost.trace(net, inputs)
  assert {layer.name: layer.macs for layer in found} == table
  assert all(layer.kernel_bits is None for layer in found)
  expected, y = model.apply(variables, *arguments), net.apply(start, *arguments)
  error = float(jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected))
  assert 0 < error < 1e-3
  return net, variables, start


class _Around(nn.Module):
  """A network around one that it is given."""

  model: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.relu(self.model(x)))


@pytest.mark.parametrize(
  ('model', 'table'),
  [
    (nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(2)]), {'layers_0': 40, 'layers_2': 10}),
    (_Around(nn.Dense(5)), {'model': 40, 'Dense_0': 10}),
    (_Around(_Around(nn.Dense(5))), {'model/model': 40, 'model/Dense_0': 10, 'Dense_0': 4}),
  ],
  ids=['sequential', 'field', 'nested'],
)
def test_networks_that_hold_others_are_quantized_throughout(model, table):
  net, variables, _ = _nearly_float(model, jax.random.normal(jax.random.key(1), (4, 8)), table)
  assert set(net.configs) == set(table)
  assert set(net.init(jax.random.key(0), jnp.zeros((1, 8)))['params']) == set(variables['params'])


class _OfDictionary(nn.Module):
  @nn.compact
  def __call__(self, batch):
    return nn.Dense(2)(jnp.concatenate([nn.Dense(3)(batch['a']), nn.Dense(4)(batch['b'])], -1))


@pytest.mark.parametrize(
  ('model', 'inputs', 'table'),
  [
    (_OfDictionary(), {'a': np.ones((2, 3)), 'b': np.ones((2, 5), np.float32)}, (14, 9, 20)),  # one in float64
    (nn.Sequential([nn.Dense(4), nn.Dense(2)]), np.arange(12).reshape(2, 6), (24, 8)),
  ],
  ids=['a dictionary', 'integers'],
)
def test_inputs_are_what_the_network_takes(model, inputs, table):
  names = ('Dense_0', 'Dense_1', 'Dense_2') if len(table) == 3 else ('layers_0', 'layers_1')
  _nearly_float(model, inputs, dict(zip(names, table, strict=True)))


def test_parameters_keep_what_says_how_to_partition_them():
  init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
  model = nn.Sequential([nn.Dense(4, kernel_init=init), nn.Dense(2, kernel_init=init)])
  x = jax.random.normal(jax.random.key(1), (4, 8))
  _, variables, start = _nearly_float(model, x, {'layers_0': 32, 'layers_1': 8})
  kernel = start['params']['layers_0']['kernel']
  assert kernel.names == variables['params']['layers_0']['kernel'].names == (None, 'model')
