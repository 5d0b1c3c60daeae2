import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fracbits_jax.program import stored, walk

X = np.random.default_rng(0).normal(0, 3, (3, 4, 4, 2)).astype(np.float32)


def _scanned(x):
  return lax.scan(lambda carry, _: (jax.nn.relu(carry - 0.1), carry), jax.nn.relu(x), length=3)[0]


def _scanned_to_negative(x):
  return lax.scan(lambda carry, _: (carry - 0.1, None), jax.nn.relu(x), length=3)[0]


NEVER_NEGATIVE = {
  'relu': jax.nn.relu,
  'relu6': jax.nn.relu6,
  'sigmoid': jax.nn.sigmoid,
  'hard_sigmoid': jax.nn.hard_sigmoid,
  'softmax': jax.nn.softmax,
  'softplus': jax.nn.softplus,
  'squared relu': lambda x: jax.nn.relu(x) ** 2,
  'square': lambda x: x * x,
  'even power': lambda x: x**4,
  'absolute': jnp.abs,
  'exponential': jnp.exp,
  'clipped': lambda x: jnp.clip(x, 0, 6),
  'mean of relu': lambda x: jnp.broadcast_to(jax.nn.relu(x).mean((1, 2), keepdims=True), x.shape),
  'gated by sigmoid': lambda x: jax.nn.relu(x) * jax.nn.sigmoid(x),
  'sum of relus': lambda x: jax.nn.relu(x) + jax.nn.relu(-x),
  'maximum over windows': lambda x: nn.max_pool(jax.nn.relu(x), (2, 2), padding='SAME'),
  'padded': lambda x: jnp.pad(jax.nn.relu(x), ((0, 0), (1, 1), (1, 1), (0, 0)))[:, 1:-1, 1:-1],
  'dropped out': lambda x: jnp.where(x > 0.3, jax.nn.relu(x) / 0.5, 0.0),
  'one of two': lambda x: jnp.concatenate([jax.nn.relu(x), jax.nn.sigmoid(x)], -1)[..., 1:3],
  'transposed': lambda x: jax.nn.relu(x).transpose(0, 2, 1, 3).reshape(3, 4, 4, 2),
  'one hot': lambda x: jax.nn.one_hot((x[..., 0] > 0).astype(int), 2),
  'carried by a loop': _scanned,
  'branches': lambda x: lax.cond(x[0, 0, 0, 0] > 0, jax.nn.relu, jnp.abs, x),
  'again in the backward pass': jax.checkpoint(lambda x: jax.nn.relu(x)),
  'compiled': jax.jit(jax.nn.relu),
}
NEGATIVE_AT_TIMES = {
  'nothing': lambda x: x,
  'gelu': jax.nn.gelu,
  'silu': jax.nn.silu,
  'elu': jax.nn.elu,
  'leaky relu': jax.nn.leaky_relu,
  'tanh': jnp.tanh,
  'odd power': lambda x: x**3,
  'centred': lambda x: jax.nn.relu(x) - 1,
  'normalized': lambda x: jax.nn.standardize(jax.nn.relu(x)),
  'logarithm': lambda x: jnp.log(jax.nn.relu(x) + 0.1),
  'residual': lambda x: x + jax.nn.relu(x),
  'gate of both signs': lambda x: x * jax.nn.sigmoid(x),
  'clipped on both sides': lambda x: jnp.clip(x, -1, 1),
  'carried by a loop': _scanned_to_negative,
  'branches': lambda x: lax.cond(x[0, 0, 0, 0] > 100, jax.nn.relu, jnp.negative, x),
}


def _is_signed(function):
  """Whether the input of a product with a weight counts as one that can be negative."""
  closed = jax.make_jaxpr(lambda w, x: function(x) @ w)(jnp.ones((2, 3)), X)
  inputs = [stored.parameter('w', (2, 3), jnp.float32), stored.Value(None)]
  (site,) = walk.find_sites(closed, inputs)[0].values()
  return site.signed


@pytest.mark.parametrize('name', NEVER_NEGATIVE)
def test_what_is_never_negative_is_known(name):
  assert not _is_signed(NEVER_NEGATIVE[name])
  assert (np.asarray(NEVER_NEGATIVE[name](X)) >= 0).all()


@pytest.mark.parametrize('name', NEGATIVE_AT_TIMES)
def test_what_can_be_negative_is_never_taken_for_something_else(name):
  assert _is_signed(NEGATIVE_AT_TIMES[name])
  assert (np.asarray(NEGATIVE_AT_TIMES[name](X)) < 0).any()
