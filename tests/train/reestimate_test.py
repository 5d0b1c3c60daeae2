import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax.models.common import Parts
from fracbits_jax.train import reestimate, step


class Net(nn.Module):
  """Two norms, the second behind what the first has normalised."""

  axis_name: str | None = step.AXIS

  @nn.compact
  def __call__(self, x, train=False):
    parts = Parts(quant=None, train=train, axis_name=self.axis_name)
    x = nn.relu(parts.norm(name='first')(x))
    return parts.norm(name='second')(x @ jnp.full((3, 2), 0.5))


def all_together(found):
  """The mean and the variance of parts of the same size, by the law of total variance in float64."""
  mean, var = np.asarray(found, np.float64).swapaxes(0, 1)
  return {'mean': mean.mean(0), 'var': var.mean(0) + mean.var(0)}


def expected(batches, parts):
  """What each norm sees, normalised part by part, by NumPy."""
  first, second = [], []
  for batch in batches.astype(np.float64):
    for part in (batch[i::parts] for i in range(parts)):
      mean, var = part.mean(0), part.var(0)
      inner = np.maximum((part - mean) / np.sqrt(var + 1e-5), 0) @ np.full((3, 2), 0.5)
      first.append((mean, var))
      second.append((inner.mean(0), inner.var(0)))
  return {'first': all_together(first), 'second': all_together(second)}


def reestimated(batches, accumulate):
  """By two devices; everything has a leading axis of them."""
  variables = Net(axis_name=None).init(jax.random.key(0), batches[0])
  variables = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
  variables['batch_stats'] = jax.tree.map(lambda x: x + 7, variables['batch_stats'])
  mapped = jax.jit(jax.vmap(reestimate.make_statistics_step(Net(), accumulate), axis_name=step.AXIS))
  return reestimate.statistics(mapped, variables, [{'image': jnp.asarray(b.reshape(2, -1, 3))} for b in batches])


@pytest.mark.parametrize('accumulate', [1, 2])
def test_statistics_are_those_of_all_batches_together_whatever_they_were(accumulate):
  batches = np.random.default_rng(0).normal(3, 2, (3, 8, 3)).astype(np.float32)
  found = reestimated(batches, accumulate)
  for name, statistics in expected(batches, accumulate).items():
    for kind, value in statistics.items():
      np.testing.assert_allclose(found[name][kind], np.stack([value, value]), rtol=1e-4, err_msg=f'{name} {kind}')


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('shift', [0, 30])
def test_the_first_norm_has_the_mean_and_the_variance_of_all_data_in_one_batch(accumulate, shift):
  rng = np.random.default_rng(1)
  # Batches with means of their own, as of a folder that is read in order.
  batches = (rng.normal(shift, 1, (20, 1, 3)) + rng.normal(0, 1, (20, 4, 3))).astype(np.float32)
  found, data = reestimated(batches, accumulate)['first'], batches.astype(np.float64).reshape(-1, 3)
  np.testing.assert_allclose(found['mean'][0], data.mean(0), rtol=1e-4, atol=1e-4)
  # The variance within a part is a difference of squares in flax.
  np.testing.assert_allclose(found['var'][0], data.var(0), rtol=1e-3)


class Others(nn.Module):
  """Norms with momenta of their own, one of which keeps its statistics, dropout, and a norm of spectra."""

  @nn.compact
  def __call__(self, tokens, scale, train):
    x = jnp.stack([tokens, 2.0 * tokens], -1) * scale
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name='half')(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = nn.BatchNorm(use_running_average=True, name='kept')(x)
    x = nn.SpectralNorm(nn.Dense(2, use_bias=False))(x, update_stats=train)
    return nn.BatchNorm(momentum=0.99, name='most')(x, use_running_average=not train)


def test_every_norm_has_its_own_momentum_and_what_keeps_its_statistics_stays():
  tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 9)
  variables = Others().init(jax.random.key(1), tokens[0], 3.0, train=False)
  variables['batch_stats']['kept'] = {'mean': jnp.float32([1, 2]), 'var': jnp.float32([3, 4])}
  how = dict(inputs_of=lambda batch: (batch['tokens'], 3.0), train=False)
  statistics = jax.jit(reestimate.make_statistics_step(Others(), **how))
  found = reestimate.statistics(statistics, variables, [{'tokens': x} for x in tokens])
  in_parts = reestimate.make_statistics_step(Others(), 2, **how)
  assert jax.tree.map(jnp.shape, jax.eval_shape(in_parts, variables, {'tokens': tokens[0]})) == jax.tree.map(
    jnp.shape, variables['batch_stats']
  )
  x = np.stack([tokens, 2 * tokens], -1).reshape(-1, 2) * 3.0
  np.testing.assert_allclose(found['half']['mean'], x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(found['half']['var'], x.var(0), rtol=1e-4)
  for name in ('kept', 'SpectralNorm_0'):
    jax.tree.map(np.testing.assert_array_equal, found[name], variables['batch_stats'][name])
  # The last one sees what the ones before have made of each batch.
  seen = [statistics(variables, {'tokens': x})['most'] for x in tokens]
  np.testing.assert_allclose(found['most']['mean'], np.mean([s['mean'] for s in seen], 0), rtol=1e-4)
  assert all((np.asarray(s['var']) > 0.01).all() for s in seen)
  same = reestimate.corrected(variables['batch_stats'], found, found)
  np.testing.assert_allclose(same['kept']['var'], [3, 4], rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, same['SpectralNorm_0'], variables['batch_stats']['SpectralNorm_0'])


def test_statistics_are_moved_as_those_of_a_few_batches_move():
  trained = {'a': {'norm': {'mean': jnp.float32([1, 2]), 'var': jnp.float32([4, 1])}}}
  before = {'a': {'norm': {'mean': jnp.float32([3, 2]), 'var': jnp.float32([1, 0])}}}
  after = {'a': {'norm': {'mean': jnp.float32([3.5, 2]), 'var': jnp.float32([2, 0])}}}
  # The float network's deviation is twice that of the batches; the second channel is the same everywhere.
  found = reestimate.corrected(trained, before, after)['a']['norm']
  np.testing.assert_allclose(found['mean'], [2, 2])
  np.testing.assert_allclose(found['var'], [8, 0])
  same = reestimate.corrected(trained, before, before)['a']['norm']
  np.testing.assert_array_equal(same['mean'], trained['a']['norm']['mean'])
