import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import quantize
from fracbits_jax.quantize import bitwidths, lsq

X = jnp.linspace(0, 1, 257)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
  ('scheme', 'bits', 'x', 'expected'),
  [
    # 2 bits, n = 3: 0.5 is a tie (1.5), which goes to the even level 2.
    ('original', 2, [0, 0.1, 0.2, 0.5, 0.7, 1], [0, 0, 1 / 3, 2 / 3, 2 / 3, 1]),
    # 1 bit, n = 1: the tie at 0.5 goes to 0.
    ('original', 1, [0, 0.5, 0.51, 1], [0, 0, 1, 1]),
    # Four levels of width 1/4; 1 saturates in the last.
    ('modified', 2, [-1e-7, 0, 0.24, 0.25, 0.99, 1], [0, 0, 0, 0.25, 0.75, 0.75]),
    ('modified', 1, [0, 0.49, 0.5, 1], [0, 0, 0.5, 0.5]),
    ('original', 0, [0, 0.5, 1], [0.5, 0.5, 0.5]),
    ('modified', 0, [0, 0.5, 1], [0.5, 0.5, 0.5]),
  ],
)
def test_levels_ties_saturation_and_zero_bits(scheme, bits, x, expected):
  actual = quantize.uniform(jnp.array(x, jnp.float32), bits, scheme=scheme, zero_point=0.5)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize('scheme', quantize.SCHEMES)
@pytest.mark.parametrize('choices', [None, (2, 4, 8), (5,)])
def test_integer_bits_equal_the_plain_quantizer(scheme, choices):
  x = jax.random.uniform(jax.random.key(0), (1000,))
  fractional = jax.jit(lambda x, b: quantize.fractional(x, b, scheme=scheme, zero_point=0.5, choices=choices))
  for bits in choices or range(17):
    plain = quantize.uniform(x, bits, scheme=scheme, zero_point=0.5)
    assert np.array_equal(fractional(x, float(bits)), plain), bits


def test_between_integers_the_value_is_interpolated():
  x = jnp.float32(0.6)
  # 2 bits: 2/3; 3 bits: 4/7; a quarter of the way.
  np.testing.assert_allclose(quantize.fractional(x, 2.25), 0.75 * 2 / 3 + 0.25 * 4 / 7, rtol=1e-6)
  # Between 4 and 8 in a set of its own: 9/15 and 153/255 are both 0.6, between 2 and 4 the middle.
  np.testing.assert_allclose(quantize.fractional(x, 6.0, choices=(2, 4, 8)), 0.6, rtol=1e-6)
  np.testing.assert_allclose(quantize.fractional(x, 3.0, choices=(2, 4, 8)), (2 / 3 + 0.6) / 2, rtol=1e-6)


@pytest.mark.parametrize('scheme', quantize.SCHEMES)
@pytest.mark.parametrize('choices', [None, (2, 4, 8)])
@pytest.mark.parametrize('bits', [2.3, 3.75, 5.5])
def test_gradient_of_the_bits_is_the_slope_of_the_interpolation(scheme, choices, bits):
  ct = jax.random.normal(jax.random.key(1), X.shape)

  def loss(bits):
    return jnp.sum(ct * quantize.fractional(X, bits, scheme=scheme, choices=choices))

  step = 0.1  # the interpolation is linear between the neighbours, so any step is exact
  slope = (loss(bits + step) - loss(bits - step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(loss)(bits), slope, rtol=1e-3, atol=1e-4)


def test_gradient_of_the_bits_at_the_ends_of_the_range():
  def loss(bits):
    return jnp.sum(jnp.sin(9 * X) * quantize.fractional(X, bits, choices=(2, 3, 4)))

  h = 0.25
  gradient = jax.grad(loss)
  np.testing.assert_allclose(gradient(2.0), (loss(2 + h) - loss(2.0)) / h, rtol=1e-3)  # from the right
  np.testing.assert_allclose(gradient(3.0), (loss(3 + h) - loss(3.0)) / h, rtol=1e-3)  # from the right
  np.testing.assert_allclose(gradient(4.0), (loss(4.0) - loss(4 - h)) / h, rtol=1e-3)  # from the left
  assert gradient(1.5) == gradient(4.5) == 0  # clipped
  assert loss(1.5) == loss(2.0)
  assert loss(4.5) == loss(4.0)


def test_gradient_of_x_is_straight_through():
  ct = jnp.arange(X.size, dtype=jnp.float32)
  for function in (
    lambda x: quantize.uniform(x, 3),
    lambda x: quantize.fractional(x, 2.5),
    lambda x: quantize.uniform(x, 0),
  ):
    np.testing.assert_array_equal(jax.grad(lambda x, f=function: jnp.sum(ct * f(x)))(X), ct)


def test_bits_of_each_channel_act_on_their_channel():
  w = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
  bits = jnp.array([0.0, 1.5, 2.0, 3.3, 8.0])
  together = quantize.kernel(w, bits)
  for c in range(5):
    # The maximum of the normalisation is over the whole kernel, so the whole kernel is given each time.
    np.testing.assert_array_equal(together[..., c], quantize.kernel(w, bits[c])[..., c])
  assert not together[..., 0].any()
  gradient = jax.grad(lambda b: jnp.sum(quantize.kernel(w, b) ** 2))(bits)
  one = jax.grad(lambda b: jnp.sum(quantize.kernel(w, b)[..., 3] ** 2))(bits[3])
  np.testing.assert_allclose(gradient[3], one, rtol=1e-5)


def slow_activation(x, bits, alpha, signed, choices):
  """The formula with stop_gradient for the straight-through estimator; autodiff does the rest."""
  a = jnp.abs(alpha)
  low = -a if signed else 0.0
  unit = jnp.where(x > a, a, jnp.where(x < low, low, x)) / a
  if signed:
    unit = (unit + 1) / 2
  lo, hi, f = bitwidths.neighbours(jnp.asarray(bits), choices)
  levels = [quantize.uniform(jax.lax.stop_gradient(unit), b) for b in (lo, hi)]
  q = (1 - f) * levels[0] + f * levels[1] + unit - jax.lax.stop_gradient(unit)
  return a * (2 * q - 1 if signed else q)


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('alpha', [1.3, -0.8])
def test_activation_and_its_gradients_follow_the_formula(signed, alpha):
  x = 2 * jax.random.normal(jax.random.key(0), (500,))
  ct = jax.random.normal(jax.random.key(1), (500,))
  choices = (2, 3, 4, 5)
  fast = lambda x, b, a: jnp.sum(ct * quantize.activation(x, b, a, signed=signed, choices=choices))
  slow = lambda x, b, a: jnp.sum(ct * slow_activation(x, b, a, signed, choices))
  args = (x, jnp.float32(3.4), jnp.float32(alpha))
  np.testing.assert_allclose(fast(*args), slow(*args), rtol=1e-4)
  for got, expected in zip(jax.grad(fast, (0, 1, 2))(*args), jax.grad(slow, (0, 1, 2))(*args), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_the_backward_pass_keeps_the_input_and_nothing_else_of_its_size():
  x = jax.random.uniform(jax.random.key(0), (32, 32))
  for function, args in (
    (quantize.fractional, (x, jnp.float32(2.5))),
    (quantize.activation, (x, jnp.float32(2.5), jnp.float32(1.0))),
  ):
    _, backward = jax.vjp(function, *args)
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward) if hasattr(leaf, 'size'))
    assert x.size <= kept <= x.size + 4


def test_low_precision_inputs_are_quantized_in_float32():
  x = jax.random.uniform(jax.random.key(0), (200,)).astype(jnp.bfloat16)
  exact = quantize.fractional(x.astype(jnp.float32), 3.5)
  y = quantize.fractional(x, 3.5)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_rescaled_kernels_have_the_deviation_of_their_fan():
  w = quantize.kernel(jax.random.normal(jax.random.key(0), (3, 3, 8, 16)), 4)
  scaled = quantize.rescale(w)
  np.testing.assert_allclose(jnp.std(scaled, ddof=1), (16 * 9) ** -0.5, rtol=1e-5)
  assert not quantize.rescale(jnp.zeros((4, 4))).any()


def test_pruned_entries_count_neither_for_the_maximum_nor_for_the_deviation():
  w = jax.random.normal(jax.random.key(0), (6, 8)).at[2].mul(50).at[:, 5].mul(50)
  kept = (jnp.arange(6) != 2)[:, None] & (jnp.arange(8) != 5)[None]
  small = jnp.delete(jnp.delete(w, 2, axis=0), 5, axis=1)
  pick = lambda y: jnp.delete(jnp.delete(y, 2, axis=0), 5, axis=1)
  full = quantize.kernel(w, 3.4, kept=kept)
  np.testing.assert_array_equal(pick(full), quantize.kernel(small, 3.4))
  fan = jnp.sqrt(8 / 7)  # the fan counts what was there
  np.testing.assert_allclose(pick(quantize.rescale(full, kept)) * fan, quantize.rescale(pick(full)), rtol=1e-6)


def test_a_drawn_bit_width_is_one_of_its_neighbours_with_the_right_chance():
  noise = bitwidths.draw_noise(jax.random.key(0), (4000,))
  bits = jnp.full((4000,), 3.3)
  x = jnp.full((1, 4000), 0.4)
  q = quantize.fractional(x, bits, noise=noise)
  low, high = (quantize.fractional(x, jnp.full((4000,), b)) for b in (3.0, 4.0))
  assert ((q == low) | (q == high)).all()
  assert abs(float(jnp.mean(q == high)) - 0.3) < 0.03
  np.testing.assert_array_equal(quantize.fractional(x, jnp.full((4000,), 3.0), noise=noise), low)


def test_a_draw_has_its_fraction_for_mean_and_its_slope_is_1_wherever_the_fraction_is():
  draws = 20_000
  fractions = jnp.concatenate([jnp.array([0.0, 0.003, 0.01, 0.05, 0.5, 0.95, 0.99]), jax.random.uniform(KEY, (20,))])
  noise = bitwidths.draw_noise(jax.random.key(1), (draws, fractions.size))
  share, slope = bitwidths.mixture(jnp.broadcast_to(fractions, noise.shape), noise)
  assert set(np.unique(share)) == {0, 1}
  for given, expected in ((share, fractions), (slope, 1)):
    error = jnp.std(given, axis=0) / np.sqrt(draws)
    assert (jnp.abs(jnp.mean(given, axis=0) - expected) <= 4 * error + 1e-4).all()


@pytest.mark.parametrize('choices', [(1, 2, 3, 4), (2, 4, 8)])
def test_the_mean_gradient_of_drawn_bits_is_the_slope_of_the_mean_value(choices):
  x, ct = jax.random.uniform(KEY, (2, 30, 5))
  bits, draws = jnp.array([2.01, 2.4, 2.9, 3.3, 3.98]), 500
  one_draw = lambda bits, key: jnp.sum(
    ct * quantize.fractional(x, bits, choices=choices, noise=bitwidths.draw_noise(key, bits.shape))
  )
  drawn = jnp.mean(jax.vmap(jax.grad(one_draw), (None, 0))(bits, jax.random.split(KEY, draws)), axis=0)
  # The mean over the draws is the interpolation.
  mean = jax.grad(lambda bits: jnp.sum(ct * quantize.fractional(x, bits, choices=choices)))(bits)
  np.testing.assert_allclose(drawn, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(), (5000,), (3, 3, 1, 144), (96, 144), (3, 3, 20, 233), (1, 8, 8, 576), (0, 4)])
@pytest.mark.parametrize('by_channel', [False, True])
def test_thresholds_give_any_stretch_or_each_channel_the_share_of_the_fraction(shape, by_channel):
  found = np.asarray(bitwidths.thresholds(shape, by_channel=by_channel)) / 2**32
  assert found.shape == shape
  sequences = found.reshape(-1, shape[-1]) if by_channel and shape else found.reshape(-1, 1)
  for fraction in (0.1, 0.5, 0.83):
    upper = np.cumsum(sequences < fraction, axis=0)
    error = upper - fraction * np.arange(1, len(sequences) + 1)[:, None]
    assert np.abs(error).max(initial=0) < 4, fraction
  if by_channel and len(shape) > 1 and found.size:
    assert np.mean(found < 0.5) == pytest.approx(0.5, abs=3 / found.size**0.5)


@pytest.mark.parametrize('choices', [(1, 2, 3, 4), (2, 4, 8)])
@pytest.mark.parametrize('quantizer', ['lsq', 'kernel', 'activation'])
def test_with_elements_mixed_the_error_and_its_slope_are_those_between_the_neighbours(quantizer, choices):
  w = jax.random.normal(KEY, (3, 3, 48, 48))
  target = jnp.abs(w) if quantizer == 'activation' else jnp.tanh(w) / jnp.max(jnp.abs(jnp.tanh(w)))
  noise = bitwidths.thresholds(w.shape)
  functions = {
    'lsq': lambda bits, how: lsq.kernel(target, bits, 1.0, choices=choices, **how),
    'kernel': lambda bits, how: quantize.kernel(w, bits, choices=choices, **how),
    'activation': lambda bits, how: quantize.activation(target, bits, 3.0, choices=choices, **how),
  }
  error = lambda bits, how: jnp.mean((functions[quantizer](bits, how) - target) ** 2)
  slope = jax.jit(jax.grad(lambda bits: error(bits, {'noise': noise})))
  for low, high in itertools.pairwise(choices[:3]):
    at_low, at_high = (float(error(float(b), {})) for b in (low, high))
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
      bits = low + fraction * (high - low)
      between = float(error(bits, {'noise': noise}))
      assert between == pytest.approx((1 - fraction) * at_low + fraction * at_high, abs=0.03 * (at_low - at_high))
      assert float(slope(bits)) == pytest.approx((at_high - at_low) / (high - low), rel=0.1), (low, fraction)
  # Interpolated values have less error than the finer neighbour, so that just below it the slope has the wrong sign.
  assert float(jax.grad(lambda bits: error(bits, {}))(float(choices[2]) - 0.02)) > float(slope(float(choices[2]) - 0.1))


@pytest.mark.parametrize('bits', [3.0, jnp.linspace(1, 4, 8)])
def test_with_elements_mixed_integers_are_the_plain_quantizer_and_what_is_no_number_stays_that(bits):
  w = jax.random.normal(KEY, (16, 8))
  how = {'noise': bitwidths.thresholds(w.shape), 'choices': (1, 2, 3, 4)}
  whole = jnp.round(jnp.asarray(bits))
  np.testing.assert_array_equal(quantize.kernel(w, whole, **how), quantize.kernel(w, whole, choices=(1, 2, 3, 4)))
  between = quantize.kernel(w, bits, **how)
  neighbours = [quantize.kernel(w, f(jnp.asarray(bits)), choices=(1, 2, 3, 4)) for f in (jnp.floor, jnp.ceil)]
  assert ((between == neighbours[0]) | (between == neighbours[1])).all()
  assert jnp.isnan(quantize.kernel(w, jnp.nan, **how)).all()


@pytest.mark.parametrize('choices', [(), (4, 2), (2, 2), (-1, 2), (2.5, 4), (8, 17), 'abc', 4])
def test_bad_choices_are_refused(choices):
  with pytest.raises(ValueError, match=r'choices=.* are not bit-widths'):
    quantize.fractional(X, 2.0, choices=choices)


def test_other_bad_arguments_are_refused():
  with pytest.raises(ValueError, match=r"scheme='log' is unknown"):
    quantize.uniform(X, 2, scheme='log')
  with pytest.raises(ValueError, match='is not an integer'):
    quantize.uniform(X, 2.5)
  with pytest.raises(ValueError, match='do not fit a kernel'):
    quantize.kernel(jnp.ones((3, 4)), jnp.ones(3))
  with pytest.raises(ValueError, match=r'bits of shape \(3,\) given: a layer has one'):
    quantize.activation(X, jnp.ones(3), 1.0)


@pytest.mark.parametrize('bits', [jnp.float32(3.4), jnp.linspace(1.5, 6.5, 8)], ids=['layer', 'kernel'])
def test_the_gradient_of_a_kernel_goes_through_its_maximum_when_compiled(bits):
  def normalised(w):
    t = jnp.tanh(w)
    return t / jnp.max(jnp.abs(t))

  backward = lambda function: jax.jit(lambda w, g: jax.vjp(function, w)[1](g)[0])
  ours, theirs = backward(lambda w: quantize.kernel(w, bits, choices=range(1, 9))), backward(normalised)
  for seed in range(20):
    w, g = jax.random.normal(jax.random.key(seed), (2, 3, 3, 16, 8)) * jnp.array([0.3, 1.0]).reshape(2, 1, 1, 1, 1)
    np.testing.assert_allclose(ours(w, g), theirs(w, g), rtol=1e-4, atol=1e-4)
