import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import reestimate, step
from fracbits_jax.models.common import Parts


class Net(nn.Module):
  """Two norms, the second behind what the first has normalised."""

  axis_name: str | None = step.AXIS

  @nn.compact
  def __call__(self, x, train=False):
    parts = Parts(quant=None, train=train, axis_name=self.axis_name)
    x = nn.relu(parts.norm(name='first')(x))
    return parts.norm(name='second')(x @ jnp.full((3, 2), 0.5))


def expected(batches, parts):
  """Means over batches, and within each over its parts, by NumPy."""
  first, second = [], []
  for batch in batches:
    for part in (batch[i::parts] for i in range(parts)):
      mean, var = part.mean(0), part.var(0)
      inner = np.maximum((part - mean) / np.sqrt(var + 1e-5), 0) @ np.full((3, 2), 0.5)
      first.append((mean, var))
      second.append((inner.mean(0), inner.var(0)))
  means = lambda found: dict(zip(('mean', 'var'), np.mean(found, axis=0), strict=True))
  return {'first': means(first), 'second': means(second)}


@pytest.mark.parametrize('accumulate', [1, 2])
def test_statistics_are_the_plain_means_over_batches_whatever_they_were(accumulate):
  rng = np.random.default_rng(0)
  batches = rng.normal(3, 2, (3, 8, 3)).astype(np.float32)
  variables = Net(axis_name=None).init(jax.random.key(0), batches[0])
  variables = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
  variables['batch_stats'] = jax.tree.map(lambda x: x + 7, variables['batch_stats'])
  mapped = jax.jit(jax.vmap(reestimate.make_statistics_step(Net(), accumulate), axis_name=step.AXIS))
  on_devices = [{'image': jnp.asarray(b.reshape(2, 4, 3))} for b in batches]
  found = reestimate.statistics(mapped, variables, on_devices)
  for name, statistics in expected(batches, accumulate).items():
    for kind, value in statistics.items():
      np.testing.assert_allclose(found[name][kind], np.stack([value, value]), rtol=1e-5, err_msg=f'{name} {kind}')
