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
