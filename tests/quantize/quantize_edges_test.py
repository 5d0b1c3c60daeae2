"""The quantizers at their edges: kernels of zeros, clips of 0, nothing to quantize, bits that are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import quantize
from fracbits_jax.quantize import lsq

KEY = jax.random.key(0)
SMALL = [0.0, 1e-45, 1e-38, 1e-30, 1e-10, 1e-5]
schemes = pytest.mark.parametrize('scheme', quantize.SCHEMES)


@schemes
@pytest.mark.parametrize('bits', [jnp.float32(2.5), jnp.array([1.0, 2.0, 4.3, 8.0])], ids=['layer', 'kernel'])
def test_the_gradient_of_a_kernel_is_bounded_however_small_the_kernel_is(scheme, bits):
  w, ct = jax.random.normal(KEY, (2, 3, 4)) / 10
  both = jax.jit(jax.value_and_grad(lambda w, b: jnp.sum(ct * quantize.kernel(w, b, scheme=scheme)), (0, 1)))
  for scale in SMALL:
    value, (towards_w, towards_bits) = both(w * scale, bits)
    assert np.isfinite(value)
    assert np.isfinite(towards_bits).all()
    # What moves the largest weight moves all others the other way.
    assert jnp.abs(towards_w).max() <= 2.0**4 * jnp.sum(jnp.abs(ct))
    assert towards_w.any()


@schemes
def test_the_values_of_a_kernel_do_not_depend_on_how_small_it_is(scheme):
  w = jax.random.normal(KEY, (5, 4))
  quantizer = jax.jit(lambda w: quantize.kernel(w, 4, scheme=scheme))
  expected = quantizer(w * 1e-5)
  for scale in (1e-10, 1e-20, 1e-30, 1e-36):
    np.testing.assert_allclose(quantizer(w * scale), expected, atol=1e-6)


@pytest.mark.parametrize('behind', ['factor', 'norm'])
@pytest.mark.parametrize('bits', [2.0, 4.5])
@pytest.mark.parametrize('scheme', [*quantize.SCHEMES, 'lsq'])
def test_a_branch_that_starts_at_0_trains_as_well_as_one_that_starts_small(scheme, bits, behind):
  """Beside a fixed part that answers at random; behind the kernel SAT's factor, or a batch norm."""
  x = jax.nn.relu(jax.random.normal(jax.random.key(1), (256, 32)))
  teacher, fixed = jax.random.normal(jax.random.key(2), (2, 32, 8))
  labels = jnp.argmax((x - jnp.mean(x, 0, keepdims=True)) @ teacher, -1)

  def loss(learned):
    w, alpha = learned
    w = lsq.kernel(w, bits, alpha) if scheme == 'lsq' else quantize.kernel(w, bits, scheme=scheme)
    branch = x @ (quantize.rescale(w) if behind == 'factor' and scheme != 'lsq' else w)
    if behind == 'norm':
      mean, var = (f(branch, 0, keepdims=True) for f in (jnp.mean, jnp.var))
      branch = (branch - mean) / jnp.sqrt(var + 1e-5)
    logits = 0.1 * x @ fixed + branch
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[jnp.arange(256), labels])

  @jax.jit
  def trained(w, rate, momentum):
    def step(state, _):
      learned, velocity = state
      velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, jax.grad(loss)(learned))
      return (jax.tree.map(lambda x, v: x - rate * v, learned, velocity), velocity), None

    start = (w, lsq.initial_range(w, bits))
    (learned, _), _ = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), length=80)
    return loss(learned)

  w = jax.random.normal(KEY, (32, 8))
  for rate, momentum in ((0.01, 0.9), (0.05, 0.9), (0.1, 0.0)):
    small = trained(w * 0.1, rate, momentum)
    for scale in (0, 1e-10):
      assert trained(w * scale, rate, momentum) < small + 0.35, (rate, momentum, scale)
  assert small < 1.6  # 2.2 before


def test_the_factor_of_a_constant_kernel_is_1_whatever_its_mean_is_rounded_to():
  for value in (0, 1 / 3, 0.1, 1e-10, -7 / 15):
    for shape in ((7, 9), (3, 3, 11, 13)):
      assert quantize.rescale_factor(jnp.full(shape, value)) == 1
  zeros = quantize.kernel(jnp.zeros((3, 3, 11, 13)), 2.3)
  np.testing.assert_array_equal(quantize.rescale(zeros), zeros)


QUANTIZERS = {
  'fractional': lambda x, b, **how: quantize.fractional(x, b, **how),
  'original': lambda x, b, **how: quantize.kernel(x, b, **how),
  'modified': lambda x, b, **how: quantize.kernel(x, b, scheme='modified', **how),
  'activation': lambda x, b, **how: quantize.activation(x, b, 1.0, signed=True, **how),
  'lsq': lambda x, b, **how: lsq.kernel(x, b, 1.0, **how),
  'lsq activation': lambda x, b, **how: lsq.activation(x, b, 1.0, signed=True, **how),
  'lsq activation, unsigned': lambda x, b, **how: lsq.activation(x, b, 1.0, **how),
}
quantizers = pytest.mark.parametrize('quantizer', QUANTIZERS.values(), ids=QUANTIZERS)


@quantizers
def test_bits_that_are_not_a_number_give_nothing_that_is_one(quantizer):
  x = jax.random.uniform(KEY, (6, 5))
  hows = ({}, {'noise': jnp.float32(0.3)}, {'choices': (2, 4, 8)}, {'choices': (3,)}, {'learned': False})
  found = jax.jit(lambda b: [quantizer(x, b, **how) for how in hows])(jnp.nan)
  for how, values in zip(hows, found, strict=True):
    assert np.isnan(values).all(), how


@quantizers
def test_fixed_bits_that_are_no_integers_are_refused_or_give_nothing_that_is_a_number(quantizer):
  x = jax.random.uniform(KEY, (6, 5))
  fixed = jax.jit(lambda b: quantizer(x, b, learned=False))
  for bits in (2.9, -1.0, 17.0, np.inf, np.nan):
    with pytest.raises(ValueError, match=r'bits=.* is not an integer from 0 to 16, as fixed bits have to be'):
      quantizer(x, jnp.float32(bits), learned=False)
    assert np.isnan(fixed(bits)).all(), bits
  for bits in (0, 2, 16):
    level = 2.0**-14  # at 16 bits: a value on the edge between two levels may fall to either
    np.testing.assert_allclose(fixed(bits), quantizer(x, bits, learned=False), atol=level if bits == 16 else 1e-6)


def test_one_bit_width_of_several_that_is_no_integer_spoils_its_own_channel_alone():
  w, bits = jax.random.normal(KEY, (6, 3)), jnp.array([2.0, 2.9, 4.0])
  for quantizer in (quantize.kernel, functools.partial(lsq.kernel, alpha=1.0)):
    found = jax.jit(lambda b, f=quantizer: f(w, b, learned=False))(bits)
    np.testing.assert_array_equal(np.isnan(found).all(0), [False, True, False])
    assert np.isfinite(found[:, ::2]).all()


def test_integers_as_an_array_are_checked_as_python_numbers_are():
  with pytest.raises(ValueError, match=r'bits=2\.9 is not an integer .* need quantize\.fractional'):
    quantize.uniform(jnp.ones(3), jnp.float32(2.9))
  assert np.isnan(jax.jit(quantize.uniform)(jnp.ones(3), 2.9)).all()


@quantizers
def test_of_nothing_the_quantizers_make_nothing_and_gradients_of_0(quantizer):
  several = quantizer not in (
    QUANTIZERS[name] for name in QUANTIZERS if 'activation' in name
  )  # which have one bit-width
  cases = [
    (jnp.ones(shape), bits)
    for shape in ((3, 0, 4), (0, 5), (5, 0), (0, 0))
    for bits in (jnp.float32(2.5), *[jnp.full(shape[-1:], 2.5)] * several)
  ]
  both = jax.value_and_grad(lambda x, b: jnp.sum(quantizer(x, b)), (0, 1))
  for (x, bits), (value, gradients) in zip(cases, jax.jit(lambda: [both(*case) for case in cases])(), strict=True):
    assert value == 0, (x.shape, bits.shape)
    assert not any(g.any() for g in gradients), (x.shape, bits.shape)


@pytest.mark.parametrize('shape', [(3, 3, 0, 4), (3, 3, 4, 0), (0, 5), (5, 0)], ids=str)
def test_of_nothing_there_is_a_range_with_a_gradient_and_a_factor(shape):
  w = jnp.ones(shape)
  assert lsq.initial_range(w, jnp.full(shape[-1:], 3.0)) == 1
  assert quantize.rescale(w).shape == shape
  assert jax.grad(lambda alpha: jnp.sum(lsq.kernel(w, 2.5, alpha)))(1.0) == 0
  x = jnp.ones((2, *shape))
  assert jax.grad(lambda alpha: jnp.sum(lsq.activation(x, 2.5, alpha)))(1.0) == 0


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('module', [quantize, lsq])
def test_the_scale_of_inputs_and_clip_changes_nothing(module, signed):
  x, ct = jax.random.normal(KEY, (2, 4, 50))
  loss = lambda x, b, alpha: jnp.sum(ct * module.activation(x, b, alpha, signed=signed))
  both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  at_1, (g_x, g_b, g_alpha) = both(x, 3.4, 1.3)
  for scale in (1e-30, 1e-10, 1e10, 1e30):
    found, (h_x, h_b, h_alpha) = both(x * scale, 3.4, 1.3 * scale)
    np.testing.assert_allclose([found / scale, h_b / scale, h_alpha], [at_1, g_b, g_alpha], rtol=1e-3, atol=1e-4)
    assert (g_x == h_x).mean() > 0.99, scale  # but for what a rounding moves over the edge


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('module', [quantize, lsq])
@pytest.mark.parametrize('alpha', [0.0, -0.0, 1e-40, 1e-30])
def test_a_clip_of_0_leaves_0_where_the_gradient_asks_for_more(module, signed, alpha):
  target = jnp.abs(jax.random.normal(KEY, (4, 50)))
  loss = lambda alpha: jnp.mean((module.activation(target, 3.4, alpha, signed=signed) - target) ** 2)
  value, gradient = jax.value_and_grad(loss)(jnp.float32(alpha))
  np.testing.assert_allclose(value, jnp.mean(target**2), rtol=1e-6)
  assert -100 < gradient < 0
