"""Steps of a decoder on tokens: on any number of devices, and evaluation that counts tokens."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fracbits_jax import cost, models
from fracbits_jax.layers import QuantConfig
from fracbits_jax.run import begin
from fracbits_jax.tasks import LANGUAGE
from fracbits_jax.train import nonfinite, optim, penalty, placement
from fracbits_jax.train import step as steps_of

TOKENS = np.random.default_rng(0).integers(0, 11, (8, 7)).astype(np.int32)


@functools.cache
def setting():
  """A tiny quantized decoder whose blocks are a loop, its search step, and a state to start from."""
  quant = QuantConfig(init_bits=3.5, choices=range(1, 9), scheme='lsq', kernel_ranges='channel', alpha_init=2.0)
  how = dict(depth=2, width=0.125, head_dim=8, kv_heads=1, scan=True)
  model = models.create('gpt_mini', num_classes=11, quant=quant, axis_name='batch', **how)
  variables = jax.jit(model.init)(jax.random.key(0), TOKENS[:1, :-1])
  table = cost.trace(model, TOKENS[:1, :-1])
  rate, mask = optim.cosine_part(0.02, 100), optim.decay_mask(variables['params'], table)
  optimizer = optim.optimizer('sgd', rate, momentum=0.9, weight_decay=1e-4, mask=mask, bits_rate=5.0)
  limit = penalty.Penalty(budget=cost.budget('bitops', table, equivalent_bits=3), layers=table, kappa=1.0)
  bits_range = jax.tree.map(jnp.float32, cost.bits_range(table))
  step = steps_of.make_train_step(model, optimizer, limit, bits_range, task=LANGUAGE)
  state = begin.state({'batch_stats': {}, **variables}, optimizer)
  return model, step, jax.tree.map(np.asarray, state)


def after_step(devices):
  _, step, state = setting()
  mapped = jax.pmap(step, axis_name='batch', devices=jax.local_devices()[:devices])
  after, metrics = mapped(placement.replicate(state, devices), placement.shard({'tokens': TOKENS}, devices))
  return placement.unreplicate(after), {name: float(value[0]) for name, value in metrics.items()}


def test_two_devices_do_what_one_does_and_each_layer_moves_its_own_bits():
  (alone, metrics), (spread, of_both) = after_step(1), after_step(2)
  chex.assert_trees_all_close(spread, alone, rtol=0, atol=1e-5)
  np.testing.assert_allclose(of_both['loss'], metrics['loss'], rtol=1e-5)
  # Those of small inputs, which are all 0 at the start, follow the penalty alone.
  moved = {name for name, bits in alone.bits['layers'].items() if len({*bits['kernel'].tolist(), 3.5}) == 3}
  assert {'value', 'up'} <= moved


def test_evaluation_counts_the_tokens_that_the_mask_leaves():
  model, _, state = setting()
  evaluate = jax.pmap(steps_of.make_eval_step(model, LANGUAGE), axis_name='batch', devices=jax.local_devices()[:2])
  mask = np.ones((8, 6), np.float32)
  mask[5, 2:], mask[6:] = 0, 0
  variables = {'params': state.params, 'bits': state.bits}
  batch = placement.shard({'tokens': TOKENS, 'mask': mask}, 2)
  sums = placement.unreplicate(evaluate(placement.replicate(variables, 2), batch))
  logits = model.apply(variables, TOKENS[:, :-1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:])
  assert sums['count'] == 5 * 6 + 2
  np.testing.assert_allclose(sums['loss'], np.sum(losses * mask), rtol=1e-4)


def test_the_first_layer_that_is_not_finite_is_named_where_it_is_outside_the_loop():
  model, _, state = setting()
  params = jax.tree.map(np.copy, state.params)
  params['final_norm']['scale'][:] = np.inf
  broken = steps_of.TrainState(**{**vars(state), 'params': params})
  assert nonfinite.first_layer(model, broken, {'tokens': TOKENS}, LANGUAGE) == 'the inputs of layer embed'
