import functools
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import cost
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense
from fracbits_jax.run import begin
from fracbits_jax.train import loop, optim, penalty, placement, preemption
from fracbits_jax.train import step as steps_of

SHAPE = (16, 16, 1)
CHOICES = tuple(range(1, 9))


@functools.cache
def setting(granularity='layer'):
  """A small quantized network, its search step, and a state to start from."""
  quant = QuantConfig(init_bits=3.5, choices=CHOICES, granularity=granularity, alpha_init=2.0)
  model = tiny.smallest(num_classes=10, width=0.125, quant=quant, axis_name='batch')
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  table = cost.trace(model, SHAPE)
  optimizer = optim.optimizer(
    'sgd',
    optim.cosine_part(0.02, 100),
    momentum=0.9,
    weight_decay=1e-4,
    mask=optim.decay_mask(variables['params'], table),
    bits_rate=5.0,
  )
  limit = penalty.Penalty(budget=cost.budget('bitops', table, equivalent_bits=3), layers=table, kappa=1.0)
  bits_range = jax.tree.map(jnp.float32, cost.bits_range(table))
  step = steps_of.make_train_step(model, optimizer, limit, bits_range)
  state = begin.state(variables, optimizer)
  return model, table, step, jax.tree.map(np.asarray, state)


def batch(n=32, seed=0):
  rng = np.random.default_rng(seed)
  return {'image': rng.integers(0, 256, (n, *SHAPE), np.uint8), 'label': rng.integers(0, 10, n).astype(np.int32)}


def after_steps(devices, steps=2):
  _, _, step, state = setting()
  mapped = jax.pmap(step, axis_name='batch', devices=jax.local_devices()[:devices])
  state = placement.replicate(state, devices)
  for i in range(steps):
    state, metrics = mapped(state, placement.shard(batch(seed=i), devices))
  return placement.unreplicate(state), {k: float(v[0]) for k, v in metrics.items()}


@functools.cache
def on_one_device():
  return after_steps(1)


@pytest.mark.parametrize('devices', [2, 4])
def test_the_same_batch_gives_the_same_state_on_any_number_of_devices(devices):
  alone, alone_metrics = on_one_device()
  spread, metrics = after_steps(devices)
  # Of the whole state; entries above 1, such as running variances of raw images, relative to their size.
  chex.assert_trees_all_close(
    jax.tree.map(lambda x, y: x / np.maximum(1, np.abs(y)), spread, alone),
    jax.tree.map(lambda y: y / np.maximum(1, np.abs(y)), alone),
    rtol=0,
    atol=1e-5,
  )
  for name, value in alone_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_a_search_step_moves_weights_clips_bits_and_statistics():
  _, _, _, before = setting()
  after, metrics = on_one_device()
  assert after.step == 2
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.variables, after.variables)
  still = [name for name, changed in traverse_util.flatten_dict(moved, sep='/').items() if not changed]
  assert still == []
  chex.assert_tree_all_finite(after)
  chex.assert_tree_all_finite(metrics)
  assert metrics.keys() == {'loss', 'accuracy', 'cost_ratio'}


def test_the_bits_follow_the_penalty_and_stay_in_range():
  """With a penalty that outweighs the task, bits over the target fall, and none leaves the allowed range."""
  model, table, _, state = setting()
  optimizer = optim.optimizer(
    'sgd', lambda step: 1.0, momentum=0.0, weight_decay=0.0, mask=optim.decay_mask(state.params, table), bits_rate=1e4
  )
  limit = penalty.Penalty(budget=cost.budget('bitops', table, equivalent_bits=1.5), layers=table, kappa=1e4)
  step = steps_of.make_train_step(model, optimizer, limit, jax.tree.map(jnp.float32, cost.bits_range(table)))
  state = state.replace(opt_state=optimizer.init({'params': state.params, 'bits': state.bits}))
  mapped = jax.pmap(step, axis_name='batch', devices=jax.local_devices()[:1])
  after, _ = mapped(placement.replicate(state, 1), placement.shard(batch(), 1))
  for value in jax.tree.leaves(placement.unreplicate(after).bits):
    assert value == CHOICES[0]


def test_the_multiplier_rises_over_the_budget_falls_under_it_and_stays_above_zero():
  _, table, _, _ = setting()
  limit = cost.budget('bitops', table, equivalent_bits=3)
  controller = penalty.Controller(gain=2.0, damping=4.0, rate=lambda step: 0.1 * (step + 1))
  controlled = penalty.Penalty(budget=limit, layers=table, controller=controller)
  ratio = lambda bits: limit.ratio(cost.uniform_bits(table, bits), table)
  assert controlled.update(jnp.float32(0.5), ratio(4.0), 2) == pytest.approx(0.5 + 2 * 0.3 * (ratio(4.0) - 1))
  assert controlled.update(jnp.float32(0.5), ratio(2.5), 2) == pytest.approx(0.5 + 2 * 0.3 * (ratio(2.5) - 1))
  assert controlled.update(jnp.float32(0.01), ratio(2.0), 2) == 0
  term, seen = controlled(cost.uniform_bits(table, 4.0), jnp.float32(0.5))
  assert float(seen) == pytest.approx(ratio(4.0))
  assert float(term) == pytest.approx(0.5 * (ratio(4.0) - 1) + 2 * (ratio(4.0) - 1) ** 2)
  fixed = penalty.Penalty(budget=limit, layers=table, kappa=3.0)
  assert fixed.update(jnp.float32(0.5), ratio(4.0), 2) == 0.5


def test_drawn_bit_widths_are_the_same_on_every_device_and_others_at_every_step():
  quant = QuantConfig(init_bits=3.5, choices=CHOICES, stochastic=True, alpha_init=2.0)
  model = tiny.smallest(num_classes=10, width=0.125, quant=quant, axis_name='batch')
  _, _, _, state = setting()
  optimizer = optim.optimizer('sgd', lambda step: 0.0, momentum=0.0, weight_decay=0.0, mask=True, bits_rate=None)
  state = state.replace(opt_state=optimizer.init({'params': state.params, 'bits': state.bits}))
  step = steps_of.make_train_step(model, optimizer, draw_seed=3)

  def losses(devices):
    mapped = jax.pmap(step, axis_name='batch', devices=jax.local_devices()[:devices])
    at, found = placement.replicate(state, devices), []
    for _ in range(3):
      at, metrics = mapped(at, placement.shard(batch(), devices))
      found.append(float(metrics['loss'][0]))
    return found

  alone = losses(1)
  assert len(set(alone)) == 3  # nothing but the draw changes
  np.testing.assert_allclose(losses(2), alone, rtol=1e-5)


class TwoLayers(nn.Module):
  """The smallest quantized network, with or without batch norm."""

  quant: QuantConfig
  norm: bool

  @nn.compact
  def __call__(self, images, train=False):
    x = QuantConv(8, (3, 3), quant=self.quant, name='conv')(images / 128)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not loop, momentum=0.9, axis_name='batch', name='norm')(x)
    x = jnp.mean(nn.relu(x), (1, 2))
    return QuantDense(10, quant=self.quant, name='classifier')(x)


def two_layers(*, norm, stochastic=False):
  """The network, its state at the start of a search, and how to make its step."""
  quant = QuantConfig(init_bits=3.5, choices=CHOICES, stochastic=stochastic, alpha_init=0.5)
  model = TwoLayers(quant, norm)
  variables = {'batch_stats': {}, **jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))}
  table = cost.trace(model, SHAPE)
  mask = optim.decay_mask(variables['params'], table)
  optimizer = optim.optimizer('sgd', lambda step: 0.05, momentum=0.9, weight_decay=1e-4, mask=mask, bits_rate=5.0)
  limit = penalty.Penalty(budget=cost.budget('bitops', table, equivalent_bits=3), layers=table, kappa=1.0)
  create = functools.partial(steps_of.make_train_step, model, optimizer, limit)
  return model, jax.tree.map(np.asarray, begin.state(variables, optimizer)), create


def steps_on_two_devices(state, step, batches):
  mapped = jax.pmap(step, axis_name='batch', devices=jax.local_devices()[:2])
  state, found = placement.replicate(state, 2), []
  for images in batches:
    state, metrics = mapped(state, placement.shard(images, 2))
    found.append(metrics)
  return placement.unreplicate((state, found))


@pytest.mark.parametrize('settings', [{}, {'draw_seed': 3, 'remat': True}])
def test_a_batch_in_parts_takes_the_steps_of_the_whole_batch(settings):
  _, state, create = two_layers(norm=False, stochastic='draw_seed' in settings)
  batches = [batch(64, seed=i) for i in range(3)]
  whole, parts = (
    steps_on_two_devices(state, create(accumulate=accumulate, **settings), batches) for accumulate in (1, 4)
  )
  assert parts[1][0].keys() == {'loss', 'accuracy', 'cost_ratio'}
  chex.assert_trees_all_close(parts, whole, rtol=0, atol=1e-5)
  moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), (state.params, state.bits), (parts[0].params, parts[0].bits))
  assert min(jax.tree.leaves(moved)) > 1e-3  # far more than the tolerance


def test_batch_norm_sees_the_parts_of_a_batch_one_after_the_other():
  model, state, create = two_layers(norm=True)
  images = batch(16)
  after, _ = steps_on_two_devices(state, create(accumulate=4), [images])
  forward = functools.partial(model.apply, train=True, mutable=['batch_stats'])
  forward = jax.jit(jax.vmap(forward, (None, 0), axis_name='batch'))
  variables = state.variables
  for i in range(4):
    _, updated = forward(variables, images['image'][None, i::4].astype(np.float32))
    variables |= jax.tree.map(lambda x: x[0], updated)
  chex.assert_trees_all_close(after.batch_stats, variables['batch_stats'], rtol=1e-5)


def test_evaluation_ignores_what_fills_the_last_batch():
  model, _, _, state = setting()
  step = jax.pmap(steps_of.make_eval_step(model), axis_name='batch', devices=jax.local_devices()[:2])
  full = batch(8)
  variables = placement.replicate(state.variables, 2)
  masked = {**full, 'mask': np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
  garbage = {**masked, 'image': np.where(masked['mask'][:, None, None, None] > 0, full['image'], 255).astype(np.uint8)}
  sums = [{k: float(v[0]) for k, v in step(variables, placement.shard(b, 2)).items()} for b in (masked, garbage)]
  assert sums[0]['count'] == 5
  assert sums[0] == pytest.approx(sums[1])


def test_batches_are_on_their_devices_before_the_step_is_called():
  _, _, step, state = setting()
  mapped = jax.pmap(step, axis_name='batch')
  placed, state = placement.to_devices(batch()), placement.replicate(state)
  assert placed['image'].dtype == jnp.uint8
  assert [s.data.shape[:2] for s in placed['image'].addressable_shards] == [(1, 8)] * 4
  state, _ = mapped(state, placed)
  with jax.transfer_guard('disallow'):
    mapped(state, placed)
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
      mapped(state, placement.shard(batch()))


def test_a_step_is_compiled_once():
  _, _, step, state = setting()
  mapped = steps_of.over_devices(step, donate_state=True)
  state = placement.replicate(state)
  for i in range(3):
    state, _ = mapped(state, placement.to_devices(batch(seed=i)))
  assert mapped._cache_size() == 1


def looped(seen, start, pending=(), **changes):
  """Steps to 11 of a state that counts them, with a report every fourth step."""

  def step(state, batch):
    seen['steps'].append(int(batch['x'][0, 0]))
    return state + 1, {'loss': state}

  settings = {
    'report': lambda at, state, metrics: seen['reports'].append((at, state, len(metrics))),
    'save': lambda at, state, metrics: seen['saves'].append((at, state, len(metrics))),
    'save_seconds': 1000.0,
    **changes,
  }
  batches = iter([{'x': np.full(8, i)} for i in range(start, 100)])
  return loop.run_phase(start, step, batches, start=start, steps=11, pending=pending, report_steps=4, **settings)


def test_the_loop_runs_reports_and_saves_each_step_once():
  seen = {'steps': [], 'reports': [], 'saves': []}
  assert looped(seen, 3, save_steps=2) == 11
  assert seen['steps'] == list(range(3, 11))
  assert seen['reports'] == [(4, 4, 1), (8, 8, 4), (11, 11, 3)]
  assert seen['saves'] == [(4, 4, 0), (6, 6, 2), (8, 8, 0), (10, 10, 2), (11, 11, 0)]


def test_the_loop_goes_on_between_two_reports():
  seen = {'steps': [], 'reports': [], 'saves': []}
  looped(seen, 6, pending=[{'loss': 4}, {'loss': 5}])
  assert seen['reports'] == [(8, 8, 4), (11, 11, 3)]
  assert seen['saves'] == [(11, 11, 0)]


def test_the_loop_saves_what_it_has_when_it_is_asked_to_stop(monkeypatch):
  seen = {'steps': [], 'reports': [], 'saves': []}
  monkeypatch.setattr(preemption, '_asked', None)

  def stop_in_the_second_report(at, state, metrics):
    seen['reports'].append(at)
    if at == 8:
      monkeypatch.setattr(preemption, '_asked', signal.SIGTERM)
      preemption.check()  # as the evaluation does

  with pytest.raises(preemption.Preempted, match='SIGTERM'):
    looped(seen, 3, report=stop_in_the_second_report)
  assert seen['saves'] == [(8, 8, 4)]  # the report has to be made again
