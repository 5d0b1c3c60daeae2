import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fracbits_jax import cost, models
from fracbits_jax.cost import Layer
from fracbits_jax.train import optim


def test_two_phases_share_one_cosine():
  whole = optim.cosine_part(0.4, 100)
  search = optim.cosine_part(0.4, 80, part=(0.0, 0.8))
  finetune = optim.cosine_part(0.4, 20, part=(0.8, 1.0))
  for step in range(100):
    part = search(step) if step < 80 else finetune(step - 80)
    np.testing.assert_allclose(part, whole(step), rtol=1e-5, atol=1e-7)
  assert whole(0) == pytest.approx(0.4)
  assert whole(100) == pytest.approx(0, abs=1e-7)


def test_the_warmup_rises_linearly_to_the_schedule():
  rate = optim.cosine_part(1.0, 1000, warmup_steps=4)
  np.testing.assert_allclose([rate(i) for i in range(5)], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-3)


def test_decay_is_for_dense_kernels_and_convolutions_that_are_not_depthwise():
  model = models.create('mobilenet_v1', num_classes=10, width=0.25)
  shape = (1, 32, 32, 1)  # grey images: the first kernel has one input channel, yet is not depthwise
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))['params']
  mask = optim.decay_mask(params, cost.trace(model, shape))
  assert mask['stem']['kernel']
  assert mask['block3_pointwise']['kernel']
  assert mask['classifier']['kernel']
  assert not mask['block3_depthwise']['kernel']
  assert not mask['classifier']['bias']
  assert not any(jax.tree.leaves(mask['stem_norm']))


def test_a_layer_without_parameters_is_named():
  with pytest.raises(ValueError, match='no parameters a/kernel'):
    optim.decay_mask({'b': {'kernel': jnp.ones(2)}}, [Layer(name='a', macs=1, weights=1, channels=1)])


def updates(gradients, learned, **settings):
  optimizer = optim.optimizer('sgd', lambda step: 0.1, momentum=0.9, mask={'w': True, 'b': False}, **settings)
  return optimizer.update(gradients, optimizer.init(learned), learned)[0]


def test_weights_and_bits_have_rates_of_their_own():
  learned = {'params': {'w': jnp.float32(2), 'b': jnp.float32(2)}, 'bits': {'k': jnp.float32(3)}}
  gradients = jax.tree.map(jnp.ones_like, learned)
  nesterov = 1.9  # 1 + momentum, in the first step
  found = updates(gradients, learned, weight_decay=0.5, bits_rate=10.0)
  np.testing.assert_allclose(found['params']['w'], -0.1 * nesterov * (1 + 0.5 * 2), rtol=1e-6)
  np.testing.assert_allclose(found['params']['b'], -0.1 * nesterov, rtol=1e-6)
  np.testing.assert_allclose(found['bits']['k'], -0.1 * nesterov * 10, rtol=1e-6)
  assert updates(gradients, learned, weight_decay=0.5, bits_rate=None)['bits']['k'] == 0


def test_weights_are_what_is_no_range_of_a_quantized_layer():
  """A parameter of one's own that is called or ends like a range is a weight."""
  table = [Layer(name='conv', macs=1, weights=1, channels=1), Layer(name='own', macs=1, weights=1, channels=1)]
  params = {
    'conv': {'kernel': 1.0, 'alpha': 1.0, 'kernel_alpha': 1.0, 'my_alpha': 1.0},
    'scale': {'alpha': 1.0},
    'own': 1.0,  # a weight that is named after its parameter has its ranges beside it
    'own_alpha': 1.0,
    'empty': {},
  }
  learned = {'params': jax.tree.map(jnp.float32, params), 'bits': {'k': jnp.float32(3)}}
  optimizer = optim.with_weights_rate(optax.identity(), 0.5, table)
  found, _ = optimizer.update(learned, optimizer.init(learned), learned)
  moved = {'kernel': 0.5, 'alpha': 1, 'kernel_alpha': 1, 'my_alpha': 0.5}
  expected = {'conv': moved, 'scale': {'alpha': 0.5}, 'own': 0.5, 'own_alpha': 1, 'empty': {}}
  assert jax.tree.map(float, found) == {'params': expected, 'bits': {'k': 3}}


def test_momentum_is_nesterov():
  learned = {'params': {'w': jnp.float32(1), 'b': jnp.float32(1)}, 'bits': {}}
  ours = optim.optimizer(
    'sgd', lambda step: 0.1, momentum=0.9, weight_decay=0.0, mask={'w': True, 'b': False}, bits_rate=None
  )
  theirs = optax.sgd(0.1, 0.9, nesterov=True)
  states = [o.init(learned) for o in (ours, theirs)]
  for g in (1.0, -2.0, 0.5):
    gradients = jax.tree.map(lambda x, g=g: jnp.full_like(x, g), learned)
    found = [o.update(gradients, s, learned) for o, s in zip((ours, theirs), states, strict=True)]
    states = [s for _, s in found]
    jax.tree.map(np.testing.assert_allclose, found[0][0], found[1][0])


@pytest.mark.parametrize('length', [0.5, 5.0, 1e15])
def test_a_gradient_that_is_too_long_is_shortened_and_that_of_the_bits_is_left_alone(length):
  learned = {'params': {'w': jnp.float32(2), 'b': jnp.float32(2)}, 'bits': {'k': jnp.float32(3)}}
  gradients = {
    'params': {'w': jnp.float32(0.6 * length), 'b': jnp.float32(-0.8 * length)},
    'bits': {'k': jnp.float32(100)},
  }
  settings = dict(weight_decay=0.0, bits_rate=1.0)
  plain, found = updates(gradients, learned, **settings), updates(gradients, learned, clip_norm=1.0, **settings)
  for name in ('w', 'b'):
    np.testing.assert_allclose(found['params'][name], plain['params'][name] * min(1, 1 / length), rtol=1e-5)
  np.testing.assert_array_equal(found['bits']['k'], plain['bits']['k'])


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_bits_of_channels_have_a_rate_of_their_own_beside_those_of_layers(name):
  rows = [
    Layer(name='a', macs=1, weights=8, channels=2, per_channel=True),
    Layer(name='loop/0', path='loop', macs=1, weights=8, channels=2, per_channel=True, stack=(1,), index=(0,)),
    Layer(name='b', macs=1, weights=8, channels=2),
  ]
  bits = {
    'a': {'kernel': jnp.full(2, 3.0), 'input': jnp.float32(3)},
    'loop': {'kernel': jnp.full((1, 2), 3.0), 'input': jnp.full(1, 3.0)},  # one for each layer of the stack
    'b': {'kernel': jnp.float32(3), 'input': jnp.float32(3)},
  }
  learned = {'params': {'w': jnp.float32(2), 'b': jnp.float32(2)}, 'bits': bits}
  gradients = jax.tree.map(lambda x: jnp.full_like(x, 0.3), learned)
  settings = dict(weight_decay=0.0, bits_rate=10.0, bits_name=name)
  plain = updates(gradients, learned, **settings)
  found = updates(gradients, learned, **settings, bits_rates=optim.channel_rates(rows, bits, 7.0))
  jax.tree.map(np.testing.assert_array_equal, found['params'], plain['params'])
  for layer, widths in plain['bits'].items():
    for which, update in widths.items():
      times = 7 if which == 'kernel' and layer != 'b' else 1
      np.testing.assert_allclose(found['bits'][layer][which], times * update, rtol=1e-6)


def table(*weights, **fields):
  """Layers of so many weights, with bits of their own for kernels alone."""
  rows = enumerate(weights)
  return [Layer(name=f'l{i}', macs=n, weights=n, channels=4, input_bits=8, **fields) for i, n in rows]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('per_channel', [False, True])
def test_the_scale_of_a_bit_width_is_what_the_largest_layer_costs_for_what_it_costs(seed, per_channel):
  weights = np.random.default_rng(seed).integers(1, 2000, 6) * 4
  layers = table(*weights.tolist(), per_channel=per_channel)
  bits = {f'l{i}': {'kernel': np.full(4 if per_channel else (), 3.5, np.float32)} for i in range(6)}
  for metric in ('size', 'bitops'):
    budget = cost.budget(metric, layers, equivalent_bits=3)
    for power in (0.0, 0.5, 1.0):
      found = optim.bits_scale(budget, layers, bits, power)
      for i, n in enumerate(weights):
        expected = (weights.max() / (n / 4 if per_channel else n)) ** power
        np.testing.assert_allclose(found[f'l{i}']['kernel'], np.full_like(bits[f'l{i}']['kernel'], expected), rtol=1e-5)


def test_of_several_budgets_the_one_counts_in_which_a_bit_width_has_its_largest_share():
  layers = [Layer(name=f'l{i}', macs=m, weights=n, channels=4) for i, (m, n) in enumerate([(100, 1000), (400, 10)])]
  bits = cost.uniform_bits(layers, 3.5)
  one, other = (cost.budget(metric, layers, equivalent_bits=3) for metric in ('bitops', 'size'))
  # The size leads at the start, and prices no inputs.
  both = cost.budget('bitops', layers, equivalent_bits=3.4, also=[other])
  found, alone = optim.bits_scale(both, layers, bits, 1.0), optim.bits_scale(one, layers, bits, 1.0)
  np.testing.assert_allclose(alone['l0']['input'] / alone['l1']['input'], 4, rtol=1e-5)
  np.testing.assert_allclose(found['l0']['input'] / found['l1']['input'], 4, rtol=1e-5)


def test_layers_of_a_stack_are_scaled_one_by_one_and_what_costs_nothing_is_left_alone():
  stacked = dict(weights=100, path='loop', stack=(2,), input_bits=None, input_path='')
  rows = [dataclasses.replace(table(100)[0], name=f'loop/{i}', index=(i,), **stacked) for i in range(2)]
  layers = [*rows, *table(400)]
  bits = {'loop': {'kernel': np.full(2, 3.5), 'input': np.full(2, 3.5)}, 'l0': {'kernel': np.float64(3.5)}}
  found = optim.bits_scale(cost.budget('size', layers, equivalent_bits=3), layers, bits, 1.0)
  np.testing.assert_allclose(found['loop']['kernel'], [4, 4], rtol=1e-5)
  np.testing.assert_array_equal(found['loop']['input'], [1, 1])
  np.testing.assert_allclose(found['l0']['kernel'], 1, rtol=1e-5)


def test_in_a_short_search_small_layers_get_their_bits_with_the_scale_and_not_without():
  """A loss of which the best bits under the budget are known: sum of n c 4^-b, marginal gains equal for each weight."""
  weights, gains = np.array([400, 4000, 40000]), np.array([64.0, 1.0, 4.0])
  layers = table(*weights.tolist())
  budget = cost.budget('size', layers, equivalent_bits=3)
  best = np.log(gains) / np.log(4)
  best += 3 - (best * weights).sum() / weights.sum()  # 5.1, 2.1, 3.1

  def searched(power):
    bits = {f'l{i}': {'kernel': jnp.float32(3.5)} for i in range(3)}
    scale = optim.bits_scale(budget, layers, bits, power)
    settings = dict(momentum=0.9, weight_decay=0.0, mask=True, bits_rate=0.3, bits_scale=scale)
    optimizer = optim.optimizer('sgd', lambda step: 1.0, **settings)
    learned = {'params': {}, 'bits': bits}

    def loss(learned):
      found = jnp.stack([learned['bits'][f'l{i}']['kernel'] for i in range(3)])
      ratio = budget.ratio(learned['bits'], layers)
      return jnp.sum(weights * gains * 4**-found) / weights.sum() + 10 * (ratio - 1) ** 2

    def step(state, _):
      learned, state = state
      change, state = optimizer.update(jax.grad(loss)(learned), state, learned)
      return (optax.apply_updates(learned, change), state), None

    (learned, _), _ = jax.lax.scan(step, (learned, optimizer.init(learned)), length=100)
    return np.array([float(learned['bits'][f'l{i}']['kernel']) for i in range(3)])

  assert np.abs(searched(1.0) - best).max() < 0.1
  assert np.abs(searched(0.0) - best).max() > 0.5
