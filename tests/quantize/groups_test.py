"""Ranges of groups: a plain NumPy loop over channels and groups gives the same values and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax.quantize import bitwidths, groups, lsq


def _parts(shape, size):
  """The places of each group of each channel in a kernel `[n, C_out]`, beside those of its range."""
  contracted, channels = int(np.prod(shape[:-1])), shape[-1]
  for i, start in enumerate(range(0, contracted, size)):
    for channel in range(channels):
      yield (i, channel), (slice(start, min(start + size, contracted)), channel)


def _levels(ratio, bits):
  """Levels of two's complement in units of the range, and where values are not clipped."""
  if bits == 0:
    return np.zeros_like(ratio), np.abs(ratio) <= 1
  if bits == 1:
    return np.where(ratio < 0, -0.5, 0.5), np.abs(ratio) <= 1
  half = 2 ** (bits - 1)
  return np.clip(np.round(ratio * half), -half, half - 1) / half, (ratio >= -1) & (ratio <= 1 - 1 / half)


def _reference(w, bits, alpha, size, g):
  """Values, and the gradients of weights and ranges by LSQ's rule, in float64, at integer bits `[C_out]`."""
  flat, g = w.reshape(-1, w.shape[-1]).astype(np.float64), g.reshape(-1, w.shape[-1]).astype(np.float64)
  values, towards_w, towards_alpha = np.zeros_like(flat), np.zeros_like(flat), np.zeros(alpha.shape)
  for at, place in _parts(w.shape, size):
    b = int(bits[at[1]])
    ratio = flat[place] / alpha[at]
    level, inside = _levels(ratio, b)
    values[place], towards_w[place] = alpha[at] * level, g[place] * inside
    slope = 0 if b == 0 else np.where(inside, level - ratio, level)
    q = 2.0 ** (b - 1)
    scale = q**2 / np.sqrt(len(ratio) * max(q - 1, 1))
    towards_alpha[at] = scale * np.sum(g[place] * slope)
  return values.reshape(w.shape), towards_w.reshape(w.shape), towards_alpha


@given(
  contracted=st.lists(st.integers(1, 5), min_size=1, max_size=3),
  channels=st.integers(1, 4),
  size=st.integers(1, 40),
  per_channel=st.booleans(),
  seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_groups_are_a_loop_over_parts_of_channels(contracted, channels, size, per_channel, seed):
  rng = np.random.default_rng(seed)
  shape = (*contracted, channels)
  w, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
  bits = rng.integers(0, 9, channels if per_channel else ()).astype(np.float32)
  number = groups.count(int(np.prod(contracted)), size)
  alpha = rng.uniform(0.3, 2, (number, channels)).astype(np.float32)

  @jax.jit
  def both(w, alpha, g):
    values, pull = jax.vjp(lambda *args: lsq.kernel(args[0], bits, args[1], group_size=size, learned=False), w, alpha)
    return values, *pull(g)

  expected = _reference(w, np.broadcast_to(bits, (channels,)), alpha, size, g)
  for found, by_hand in zip(both(w, alpha, g), expected, strict=True):
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('mixture', ['values', 'elements', 'drawn'])
def test_between_integers_each_group_is_a_kernel_of_its_own(mixture):
  """The gradient of a shared bit-width is the sum over the groups."""
  rng = np.random.default_rng(0)
  shape, size = (7, 3), 3
  w, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
  bits, alpha = jnp.array([2.3, 3.6, 4.0]), jnp.asarray(rng.uniform(0.3, 2, (3, 3)), jnp.float32)
  noise = {
    'values': None,
    'elements': bitwidths.thresholds(shape, by_channel=True),
    'drawn': bitwidths.draw_noise(jax.random.key(0), (3,)),
  }[mixture]
  how = dict(choices=(2, 3, 4, 8))
  quantize = lambda *args: lsq.kernel(*args, noise=noise, group_size=size, **how)
  values, pull = jax.vjp(quantize, w, bits, alpha)
  towards_w, towards_bits, towards_alpha = pull(g)
  sums = np.zeros(3)
  for at, place in _parts(shape, size):
    of_group = None if noise is None else noise[place][:, None] if mixture == 'elements' else noise[at[1]]
    alone = lambda *args, n=of_group: lsq.kernel(*args, noise=n, **how)
    found, pull = jax.vjp(alone, w[place][:, None], bits[at[1]], alpha[at])
    of_w, of_bits, of_alpha = pull(g[place][:, None])
    np.testing.assert_allclose(values[place], found[:, 0], rtol=1e-6)
    np.testing.assert_allclose(towards_w[place], of_w[:, 0], rtol=1e-6)
    np.testing.assert_allclose(towards_alpha[at], of_alpha, rtol=1e-5)
    sums[at[1]] += of_bits
  np.testing.assert_allclose(towards_bits, sums, rtol=1e-5, atol=1e-6)


def test_a_group_as_long_as_a_channel_is_the_range_of_the_channel():
  w = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
  alpha = lsq.initial_range(w, 3.5, each=True)
  for size in (18, 64):
    of_groups = lsq.initial_range(w, 3.5, group_size=size)
    np.testing.assert_allclose(of_groups, alpha[None], rtol=1e-6)
    np.testing.assert_array_equal(lsq.kernel(w, 3.5, alpha[None], group_size=size), lsq.kernel(w, 3.5, alpha))


def test_a_shorter_last_group_starts_at_the_mean_of_its_own_weights():
  w = jnp.concatenate([jnp.full((4, 2), 3.0), jnp.full((1, 2), 5.0), jnp.zeros((0, 2))])
  alpha = lsq.initial_range(w, 2, group_size=4)
  np.testing.assert_allclose(alpha, [[12, 12], [20, 20]])  # 2 |w| Q / sqrt(Q - 1) with Q = 2
  assert lsq.initial_range(w.at[4].set(0), 2, group_size=4).tolist() == [[12, 12], [12, 12]]


def test_ranges_are_stored_as_float16_has_them():
  sizes = np.concatenate([np.logspace(-12, 6, 997), [0, 2**-24, 2**-14, 2**-14 * (1 - 2**-12), 65504, 65519, 1e30]])
  x = np.concatenate([sizes, -sizes]).astype(np.float32)
  found = np.asarray(jax.jit(lambda x: groups.stored(x, 16))(x))
  expected = np.clip(np.abs(x), 2**-24, 65504).astype(np.float16).astype(np.float32)
  np.testing.assert_array_equal(found, np.where(x < 0, -expected, expected))
  np.testing.assert_array_equal(groups.stored(found, 16), found)
  np.testing.assert_array_equal(groups.stored(jnp.asarray(x), 32), x)
  assert jax.grad(lambda x: groups.stored(x, 16))(0.1) == 1


def test_ranges_of_another_shape_are_refused():
  with pytest.raises(
    ValueError, match=r'ranges of shape \(2, 5\) do not fit a kernel of shape \(9, 5\) in groups of 4'
  ):
    lsq.kernel(jnp.ones((9, 5)), 4, jnp.ones((2, 5)), group_size=4)
