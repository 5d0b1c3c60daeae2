import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fracbits_jax.fast import conv

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


EMPTY = [
  # (name, [N, H, W, C_in], kernel, padding, groups); strides are 1
  ('pointwise, no inputs', (2, 4, 4, 0), (1, 1, 0, 3), 'SAME', 1),
  ('pointwise, no outputs', (2, 4, 4, 3), (1, 1, 3, 0), 'SAME', 1),
  ('pointwise, no examples', (0, 4, 4, 3), (1, 1, 3, 2), 'SAME', 1),
  ('standard, no inputs', (2, 4, 4, 0), (3, 3, 0, 3), 'SAME', 1),
  ('standard, no outputs', (2, 4, 4, 3), (3, 3, 3, 0), 'SAME', 1),
  ('standard, no examples', (0, 4, 4, 3), (3, 3, 3, 2), 'SAME', 1),
  ('standard, window beyond the image', (2, 1, 4, 3), (3, 3, 3, 2), 'VALID', 1),
  ('standard, no rows', (2, 0, 4, 3), (3, 3, 3, 2), ((1, 1), (1, 1)), 1),
  ('depthwise, no examples', (0, 4, 4, 3), (3, 3, 1, 3), 'SAME', 3),
  ('depthwise, window beyond the image', (2, 1, 4, 3), (3, 3, 1, 3), 'VALID', 3),
]


@pytest.mark.parametrize('case', EMPTY, ids=lambda case: case[0])
def test_where_an_axis_has_no_entries_value_and_gradients_are_those_of_lax(case):
  _, x_shape, kernel_shape, padding, groups = case
  x, kernel = jnp.ones(x_shape), jnp.ones(kernel_shape)
  numbers = lax.conv_dimension_numbers(x_shape, kernel_shape, ('NHWC', 'HWIO', 'NHWC'))
  settings = dict(padding=padding, dimension_numbers=numbers, feature_group_count=groups)

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, x, kernel):
    y, backward = jax.vjp(functools.partial(function, window_strides=(1, 1), **settings), x, kernel)
    return y, backward(jnp.ones_like(y))

  ours, theirs = run(conv.conv_general_dilated, x, kernel), run(lax.conv_general_dilated, x, kernel)
  jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), ours, theirs)


def test_what_is_not_finite_in_one_channel_of_a_depthwise_convolution_stays_there():
  operands = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 5, 4), (3, 3, 1, 4)])]
  numbers = lax.conv_dimension_numbers((2, 5, 5, 4), (3, 3, 1, 4), ('NHWC', 'HWIO', 'NHWC'))
  settings = dict(window_strides=(1, 1), padding='SAME', dimension_numbers=numbers, feature_group_count=4)

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, *operands):
    y, backward = jax.vjp(functools.partial(function, **settings), *operands)
    return y, *backward(jnp.ones_like(y))

  for which, channel, bad in itertools.product((0, 1), (0, 3), (jnp.nan, -jnp.nan, jnp.inf)):
    spoilt = [x.at[..., channel].set(bad) if i == which else x for i, x in enumerate(operands)]
    others = jnp.arange(4) != channel
    for given, expected in zip(
      *(run(f, *spoilt) for f in (conv.conv_general_dilated, lax.conv_general_dilated)), strict=True
    ):
      np.testing.assert_allclose(given[..., others], expected[..., others], rtol=1e-4, atol=1e-5)
      # Sums of infinities of either sign have another order.
      assert jnp.isfinite(given[..., channel]).all() == jnp.isfinite(expected[..., channel]).all()
