import functools

import fewer_blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost, models, policy
from fracbits_jax.layers import QuantConfig
from fracbits_jax.policy import compact

SHAPE = (16, 16, 1)
PRUNING = QuantConfig(granularity='kernel', choices=range(9), init_bits=4.0)


@pytest.fixture(autouse=True, scope='module')
def _fewer_blocks():
  with fewer_blocks.mobilenets():
    yield


@functools.cache
def pruned(name, quant=PRUNING):
  """A network with random variables of which about a third of the prunable channels are gone."""
  make = models.resnet.ResNet if name == 'short_preact' else functools.partial(models.create, name)
  more = dict(stages=(1, 1), preact=True, bottleneck=True) if name == 'short_preact' else {}
  model = make(num_classes=10, width=0.25, small_images=True, quant=quant, **more)
  rng = np.random.default_rng(0)
  layers = cost.trace(model, SHAPE)

  def draw(layer, which, shape, choices):
    bits = rng.choice(choices[-6:], shape)
    if which == 'kernel' and layer.prunes:
      bits = np.where(rng.random(shape) < 1 / 3, 0, bits)
      bits[0] = max(bits[0], 1)
    return bits

  # Kernels around 0; scales, biases, statistics and clips above it: a pruned channel must not keep its bias.
  value = lambda x: rng.normal(0, 0.1, x.shape) if len(x.shape) > 1 else rng.uniform(0.5, 1.5, x.shape)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  variables = jax.tree.map(lambda x: jnp.float32(value(x)), shapes)
  return model, layers, {**variables, 'bits': jax.tree.map(jnp.float32, cost.fill_bits(layers, draw))}


NETWORKS = ['mobilenet_v1', 'mobilenet_v2', 'resnet8', 'short_preact']


@pytest.mark.parametrize('name', NETWORKS)
def test_the_cost_of_a_pruned_network_is_that_of_the_network_without_its_channels(name):
  model, layers, variables = pruned(name)
  smaller, fewer = compact.compact(model, variables, SHAPE)
  table = cost.trace(smaller, SHAPE)
  bits = jax.tree.map(lambda x: np.asarray(x, np.float64), fewer['bits'])
  full_bits = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['bits'])
  for function in (cost.bitops, cost.model_size):
    np.testing.assert_allclose(function(bits, table), function(full_bits, layers), rtol=1e-12)
  assert sum(l.weights for l in table) < 0.8 * sum(l.weights for l in layers)
  assert all(l.source is None and not l.prunes for l in table)
  shapes = jax.eval_shape(smaller.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
  assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize(
  ('name', 'quant'),
  [
    ('mobilenet_v2', PRUNING),
    ('resnet8', QuantConfig(granularity='kernel', choices=range(9), init_bits=4.0, scheme='lsq')),
    ('mobilenet_v2', QuantConfig(**{**vars(PRUNING), 'scheme': 'lsq', 'kernel_ranges': 'channel'})),
    ('short_preact', QuantConfig(granularity='kernel', choices=range(9), init_bits=4.0, sat=True)),
  ],
)
def test_the_smaller_network_gives_the_same_logits(name, quant):
  model, _, variables = pruned(name, quant=quant)
  smaller, fewer = compact.compact(model, variables, SHAPE)
  images = jax.random.randint(jax.random.key(1), (4, *SHAPE), 0, 256).astype(jnp.float32)
  expected = jax.jit(model.apply)(variables, images)
  largest = jnp.max(jnp.abs(expected))
  assert largest > 1e-3
  np.testing.assert_allclose(jax.jit(smaller.apply)(fewer, images) / largest, expected / largest, rtol=0, atol=1e-5)


def test_only_channels_that_no_sum_ties_to_others_can_be_pruned():
  prunable = lambda name: {l.name for l in pruned(name)[1] if l.prunes}
  assert prunable('mobilenet_v1') == {f'block{i}_pointwise' for i in range(1, 5)}
  assert prunable('mobilenet_v2') == {*(f'block{i}_expand' for i in range(2, 5)), 'head'}
  assert {name.split('_')[-1] for name in prunable('resnet8')} == {'conv1'}
  assert {name.split('_')[-1] for name in prunable('short_preact')} == {'conv1', 'conv2'}
  layers = pruned('resnet8')[1]
  assert all(l.choices[0] == 1 for l in layers if not l.prunes and l.kernel_bits is None)


def test_a_consumer_pays_for_the_input_channels_that_are_kept():
  layers = (
    cost.Layer(name='a', macs=100, weights=10, channels=2, per_channel=True, choices=tuple(range(9)), input_bits=4),
    cost.Layer(name='b', macs=1000, weights=50, channels=3, kind='pointwise', source='a', kernel_bits=2, input_bits=4),
    cost.Layer(name='c', macs=60, weights=6, channels=2, kind='depthwise', source='a', per_channel=True, input_bits=4),
  )
  bits = {'a': {'kernel': jnp.array([5.0, 0.25])}, 'c': {'kernel': jnp.array([2.0, 8.0])}}
  by_hand = 100 * (5 + 0.25) / 2 * 4 + 1000 * 2 * 4 * 1.25 / 2 + 60 * (2 + 0.25 * 8) / 2 * 4
  np.testing.assert_allclose(cost.bitops(bits, layers), by_hand / 1e9, rtol=1e-6)
  slope = jax.grad(cost.bitops)(bits, layers)['a']['kernel']
  np.testing.assert_allclose(slope[0], 100 / 2 * 4 / 1e9, rtol=1e-6)  # above 1 bit only its own kernel grows
  np.testing.assert_allclose(slope[1], (100 / 2 * 4 + 1000 * 2 * 4 / 2 + 60 * 8 / 2 * 4) / 1e9, rtol=1e-6)


def test_a_policy_leaves_every_layer_a_channel_however_small_the_budget():
  _, layers, _ = pruned('mobilenet_v1')
  least, _ = cost.cost_range('bitops', layers)
  for target in (least, 1.1 * least):
    found = policy.discretize(cost.uniform_bits(layers, 0.1), layers, cost.budget('bitops', layers, target=target))
    assert found.cost <= target
    assert all(max(np.atleast_1d(e.kernel)) > 0 for e in found.layers)
  assert found.pruned_channels > 0


def test_what_cannot_be_compacted_is_refused():
  model, _, variables = pruned('resnet8')
  with pytest.raises(ValueError, match='cannot prune'):
    compact.compact(model.clone(quant=QuantConfig()), variables, SHAPE)
  for value, message in ((0.0, 'no channel left'), (2.5, 'fractional bits')):
    bits = {**variables['bits'], 'stage1_block1_conv1': {'kernel': jnp.full(8, value), 'input': jnp.float32(4)}}
    with pytest.raises(ValueError, match=f'stage1_block1_conv1 has {message}'):
      compact.compact(model, {**variables, 'bits': bits}, SHAPE)


def test_networks_are_hashable_so_that_their_compiled_steps_can_be_shared():
  model, _, variables = pruned('resnet8')
  smaller, _ = compact.compact(model, variables, SHAPE)
  assert hash(model) == hash(model.clone())
  assert hash(smaller) != hash(model)
