import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fracbits_jax import conv

CASES = [
  # (name, height, channels, features, size, stride, padding, groups)
  ('pointwise', 7, 5, 6, 1, 1, 0, 1),
  ('pointwise strided', 7, 5, 6, 1, 2, 0, 1),
  ('depthwise', 8, 6, 6, 3, 1, 1, 6),
  ('depthwise strided', 8, 6, 6, 3, 2, 1, 6),
  ('depthwise strided, odd', 9, 6, 6, 3, 2, 1, 6),
  ('depthwise, one pixel', 1, 6, 6, 3, 2, 1, 6),
  ('depthwise 5 x 5', 9, 4, 4, 5, 2, 2, 4),
  ('depthwise, wide padding', 5, 4, 4, 3, 1, 3, 4),
  ('depthwise, no padding', 8, 4, 4, 3, 3, 0, 4),
  ('standard', 8, 5, 6, 3, 2, 1, 1),
  ('grouped', 8, 4, 8, 3, 1, 1, 2),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case[0])
def test_value_and_gradients_are_those_of_lax(case):
  _, height, channels, features, size, stride, pad, groups = case
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (2, height, height + 1, channels))
  kernel = jax.random.normal(keys[1], (size, size, channels // groups, features))
  settings = dict(
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC')),
    feature_group_count=groups,
  )

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, x, kernel):
    y, backward = jax.vjp(functools.partial(function, **settings), x, kernel)
    return y, backward(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

  ours, theirs = run(conv.conv_general_dilated, x, kernel), run(lax.conv_general_dilated, x, kernel)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', 'SAME_LOWER'])
@pytest.mark.parametrize('groups', [1, 4])
def test_named_paddings_are_those_of_lax(padding, groups):
  x = jax.random.normal(jax.random.key(0), (2, 7, 8, 4))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 4 // groups, 4))
  settings = dict(
    window_strides=(2, 2),
    padding=padding,
    dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC')),
    feature_group_count=groups,
  )
  ours, theirs = (f(x, kernel, **settings) for f in (conv.conv_general_dilated, lax.conv_general_dilated))
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
