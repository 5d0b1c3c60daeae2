import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import quantize
from fracbits_jax.quantize import lsq


def paper(x, s, low, high):
  """LSQ at integer bits as its paper writes it, without the gradient scale; the rounding is straight-through."""
  v = jnp.clip(x / s, low, high)
  return s * (v + jax.lax.stop_gradient(jnp.round(v) - v))


@pytest.mark.parametrize(
  ('bits', 'expected'),
  [
    # s = 1: levels -2 to 1; ties go to even.
    (2, [-2, -2, 0, 0, 1, 1]),
    # s = 1/2: levels -2, -1.5, ..., 1.5.
    (3, [-2, -1.5, -0.5, 0, 1.5, 1.5]),
    (1, [-1, -1, -1, 1, 1, 1]),
    (0, [0, 0, 0, 0, 0, 0]),
  ],
)
def test_levels_ties_saturation_and_zero_bits(bits, expected):
  w = jnp.array([[-5], [-1.6], [-0.5], [0.2], [1.4], [5]])
  np.testing.assert_allclose(lsq.kernel(w, bits, 2.0)[:, 0], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize('bits', [2, 4, 7])
def test_at_integer_bits_values_and_gradients_are_those_of_the_paper(bits):
  w, ct = jax.random.normal(jax.random.key(0), (2, 20, 30))
  q, alpha = 2.0 ** (bits - 1), jnp.float32(1.1)
  slow = lambda w, s: jnp.sum(ct * paper(w, s, -q, q - 1))
  fast = lambda w, alpha: jnp.sum(ct * lsq.kernel(w, bits, alpha))
  np.testing.assert_allclose(fast(w, alpha), slow(w, alpha / q), rtol=1e-4)
  (w_slow, s_slow), (w_fast, alpha_fast) = jax.grad(slow, (0, 1))(w, alpha / q), jax.grad(fast, (0, 1))(w, alpha)
  np.testing.assert_allclose(w_fast, w_slow, rtol=0, atol=1e-6)
  # Relative to its size the range moves as LSQ moves the step: g dL/ds / s, g = 1 / sqrt(N Q_P).
  expected = s_slow / np.sqrt(w.size * (q - 1)) / (alpha / q)
  np.testing.assert_allclose(alpha_fast / alpha, expected, rtol=1e-3)


def balanced(x, s, most):
  """Levels half a step from 0, as a plain formula; straight-through within `most` steps, constant beyond."""
  v = x / s
  level = jnp.floor(v) + 0.5
  inside = v + jax.lax.stop_gradient(level - v)
  return s * jnp.where(jnp.abs(v) <= most, inside, jnp.sign(v) * (most - 0.5))


@pytest.mark.parametrize('bits', [1, 2, 4, 7])
def test_balanced_levels_have_the_values_and_gradients_of_their_formula(bits):
  w, ct = jax.random.normal(jax.random.key(0), (2, 20, 30))
  q, alpha = 2.0 ** (bits - 1), jnp.float32(1.1)
  slow = lambda w, s: jnp.sum(ct * balanced(w, s, q))
  fast = lambda w, alpha: jnp.sum(ct * lsq.kernel(w, bits, alpha, balanced=True))
  np.testing.assert_allclose(lsq.kernel(w, bits, alpha, balanced=True), balanced(w, alpha / q, q), atol=1e-6)
  (w_slow, s_slow), (w_fast, alpha_fast) = jax.grad(slow, (0, 1))(w, alpha / q), jax.grad(fast, (0, 1))(w, alpha)
  np.testing.assert_allclose(w_fast, w_slow, rtol=0, atol=1e-6)
  expected = s_slow / np.sqrt(w.size * (q - 0.5)) / (alpha / q)
  np.testing.assert_allclose(alpha_fast / alpha, expected, rtol=1e-3)


def test_balanced_levels_are_as_many_on_either_side_and_better_with_few_bits():
  w = jax.random.normal(jax.random.key(0), (200, 100))
  least = lambda bits, on: min(
    jnp.mean((lsq.kernel(w, bits, a, balanced=on) - w) ** 2) for a in np.arange(0.5, 3, 0.02)
  )
  for bits, error in ((1, 0.363), (2, 0.119), (3, 0.037)):
    levels = np.unique(lsq.kernel(w, bits, 2.0, balanced=True))
    assert len(levels) == 2**bits
    np.testing.assert_allclose(levels, -levels[::-1])
    np.testing.assert_allclose(least(bits, True), error, rtol=0.03)
    assert bits == 1 or least(bits, True) < 0.95 * least(bits, False)
  np.testing.assert_array_equal(lsq.kernel(w, 1, 2.0, balanced=True), lsq.kernel(w, 1, 2.0))
  np.testing.assert_array_equal(lsq.kernel(w, 0, 2.0, balanced=True), 0)


def test_at_one_bit_weights_of_either_sign_have_a_gradient():
  w = jnp.array([[-2.0, -0.5, 0.5, 2.0]])
  np.testing.assert_array_equal(jax.grad(lambda w: jnp.sum(lsq.kernel(w, 1, 1.0)))(w), [[0, 1, 1, 0]])


def test_unsigned_inputs_move_their_step_as_the_paper_does():
  x, ct = jax.random.normal(jax.random.key(0), (2, 8, 50))
  alpha, n = jnp.float32(1.3), 7.0
  slow = lambda s: jnp.sum(ct * paper(x, s, 0, n))
  fast = lambda alpha: jnp.sum(ct * lsq.activation(x, 3, alpha))
  np.testing.assert_allclose(fast(alpha), slow(alpha / n), rtol=1e-4)
  expected = jax.grad(slow)(alpha / n) / np.sqrt(50 * n) / (alpha / n)
  np.testing.assert_allclose(jax.grad(fast)(alpha) / alpha, expected, rtol=1e-3)


@pytest.mark.parametrize('signed', [False, True])
def test_fractional_bits_interpolate_and_have_the_slope_between_their_neighbours(signed):
  x = jax.random.normal(jax.random.key(1), (40, 5))
  at = lambda b: lsq.activation(x, b, 1.5, signed=signed, choices=(2, 4, 8))
  np.testing.assert_allclose(at(2.5), 0.75 * at(2) + 0.25 * at(4), atol=1e-6)
  slope = jax.grad(lambda b: jnp.sum(at(b)))(jnp.float32(2.5))
  np.testing.assert_allclose(slope, jnp.sum(at(4) - at(2)) / 2, rtol=1e-4)


def test_every_output_channel_can_have_its_own_bits():
  w = jax.random.normal(jax.random.key(2), (3, 3, 4, 3))
  bits = jnp.array([2.0, 3.5, 0.0])
  together = lsq.kernel(w, bits, 1.2)
  for i in range(3):
    np.testing.assert_array_equal(together[..., i], lsq.kernel(w, bits[i], 1.2)[..., i])
  gradient = jax.grad(lambda b: jnp.sum(w * lsq.kernel(w, b, 1.2)))(bits)
  assert gradient.shape == (3,)
  assert (gradient != 0).all()


def test_inputs_are_kept_once_for_the_backward_pass():
  x = jax.random.uniform(jax.random.key(0), (32, 32))
  for signed in (False, True):
    _, backward = jax.vjp(lambda x, b, a: lsq.activation(x, b, a, signed=signed), x, jnp.float32(2.5), jnp.float32(1))  # noqa: B023
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward) if hasattr(leaf, 'size'))
    assert x.size <= kept <= x.size + 8


def test_the_initial_range_is_the_papers():
  w = jax.random.normal(jax.random.key(0), (64, 64))
  step = lsq.initial_range(w, 4) / 8
  np.testing.assert_allclose(step, 2 * jnp.mean(jnp.abs(w)) / np.sqrt(7), rtol=1e-6)
  assert lsq.initial_range(jnp.zeros((3, 3)), 4) == 1


def test_bad_arguments_are_refused():
  w = jnp.ones((3, 4))
  with pytest.raises(ValueError, match='do not fit a kernel'):
    lsq.kernel(w, jnp.ones(3), 1.0)
  with pytest.raises(ValueError, match=r'ranges of shape \(3,\) do not fit a kernel'):
    lsq.kernel(w, 3, jnp.ones(3))
  with pytest.raises(ValueError, match='alpha of shape'):
    lsq.activation(w, 3, jnp.ones(4))
  with pytest.raises(ValueError, match='choices'):
    lsq.activation(w, 3.0, 1.0, choices=(4, 2))
  assert 'lsq' not in quantize.SCHEMES  # those are grids on the unit interval


def test_ranges_of_channels_are_those_of_kernels_by_themselves():
  """Values, and the gradients of weights, bits and ranges, with a range for each output channel."""
  w = jax.random.normal(jax.random.key(0), (5, 3))
  alpha, g = jnp.array([0.5, 1.0, 2.5]), jax.random.normal(jax.random.key(1), (5, 3))
  for bits in (jnp.array([2.5, 3.0, 1.25]), jnp.float32(2.75)):
    value, pull = jax.vjp(lambda *arguments: lsq.kernel(*arguments), w, bits, alpha)
    of_w, of_bits, of_alpha = pull(g)
    each = [jax.vjp(lsq.kernel, w[:, i : i + 1], jnp.broadcast_to(bits, 3)[i], alpha[i]) for i in range(3)]
    np.testing.assert_allclose(value, jnp.concatenate([found for found, _ in each], 1), rtol=1e-6)
    parts = [pull(g[:, i : i + 1]) for i, (_, pull) in enumerate(each)]
    np.testing.assert_allclose(of_w, jnp.concatenate([part[0] for part in parts], 1), rtol=1e-6)
    expected = jnp.stack([part[1] for part in parts])
    np.testing.assert_allclose(of_bits, expected if bits.shape else expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(of_alpha, jnp.stack([part[2] for part in parts]), rtol=1e-5)


def around(x, s, middle, bits):
  """LSQ+ as its paper writes it, but for an offset that is rounded to steps, straight-through."""
  half = 2.0 ** (bits - 1)
  m = jnp.clip(middle / s, 1 - half, half)
  m = m + jax.lax.stop_gradient(jnp.round(m) - m)
  v = jnp.clip(x / s - m, -half, half - 1) + m
  return s * (v + jax.lax.stop_gradient(jnp.round(v) - v))


@pytest.mark.parametrize('middle', [0.0, 0.7, -0.4, 1.5])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_ranges_with_an_offset_have_the_values_and_gradients_of_the_paper(bits, middle):
  x, ct = jax.random.normal(jax.random.key(0), (2, 8, 50))
  alpha, half = jnp.float32(1.1), 2.0 ** (bits - 1)
  fast = lambda x, alpha: lsq.activation(x, bits, alpha, signed=True)
  both = jnp.stack([alpha, jnp.float32(middle)])
  np.testing.assert_allclose(fast(x, both), around(x, alpha / half, middle, bits), atol=1e-6)
  slow = lambda x, s, middle: jnp.sum(ct * around(x, s, middle, bits))
  of_x, of_step, of_middle = jax.grad(slow, (0, 1, 2))(x, alpha / half, jnp.float32(middle))
  found_x, found = jax.grad(lambda x, alpha: jnp.sum(ct * fast(x, alpha)), (0, 1))(x, both)
  np.testing.assert_allclose(found_x, of_x, atol=1e-6)
  scale = half**2 / np.sqrt(50 * max(half - 1, 1))
  np.testing.assert_allclose(found, scale * jnp.stack([of_step / half, of_middle]), rtol=2e-3, atol=1e-4)
  if not middle:
    np.testing.assert_array_equal(fast(x, both), fast(x, alpha))


def test_a_range_with_an_offset_has_0_as_a_level():
  for bits in range(2, 9):
    for middle in (-3.0, -1.0, -0.33, 0.2, 1.0, 5.0):
      alpha = jnp.array([1.0, middle])
      levels = np.unique(lsq.activation(jnp.linspace(-9, 9, 5001)[:, None], bits, alpha, signed=True))
      assert len(levels) == 2**bits
      assert 0 in levels
  at = lambda b: lsq.activation(jnp.linspace(-2, 2, 41)[:, None], b, jnp.array([1.0, 0.5]), signed=True)
  np.testing.assert_allclose(at(2.25), 0.75 * at(2) + 0.25 * at(3), atol=1e-6)
  np.testing.assert_array_equal(at(1), jnp.where(jnp.linspace(-2, 2, 41) < 0, -0.5, 0.5)[:, None])


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('bits', [1, 2, 3, 5])
def test_the_ends_are_where_the_gradient_of_a_weight_stops(bits, balanced):
  w = jnp.linspace(-2.0, 2.0, 401).reshape(1, -1) + 1e-3
  lowest, largest = lsq.ends(jnp.float32(-1.3), bits, w, balanced=balanced)
  passed = jax.grad(lambda w: lsq.kernel(w, bits, -1.3, learned=False, balanced=balanced).sum())(w)
  np.testing.assert_array_equal((w >= lowest) & (w <= largest), passed)
