import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax.fast import pool


@pytest.mark.parametrize(
  ('height', 'size', 'stride', 'padding'), [(8, 3, 2, 1), (7, 3, 2, 1), (6, 2, 2, 0), (5, 3, 1, 1), (7, 2, 3, 0)]
)
def test_value_and_gradient_are_those_of_the_library(height, size, stride, padding):
  # Few different values: ties, as after a ReLU.
  x = jnp.maximum(jax.random.randint(jax.random.key(0), (2, height, height + 1, 3), -3, 4), 0).astype(jnp.float32)
  theirs = lambda x: nn.max_pool(x, (size, size), (stride, stride), ((padding, padding),) * 2)
  ours = lambda x: pool.max_pool(x, size=size, stride=stride, padding=padding)
  g = jax.random.normal(jax.random.key(1), theirs(x).shape)
  for function in (lambda f: f(x), lambda f: jax.vjp(f, x)[1](g)[0]):
    np.testing.assert_allclose(function(ours), function(theirs), rtol=1e-6, atol=1e-6)
