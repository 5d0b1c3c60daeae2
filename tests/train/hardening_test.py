import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost
from fracbits_jax.train.hardening import Hardening

LAYERS = (
  cost.Layer(name='a', macs=10, weights=9, channels=3, per_channel=True, choices=(1, 2, 4, 8)),
  cost.Layer(name='b/c', macs=10, weights=9, channels=3, choices=(2, 3, 4), input_choices=(2, 3, 4)),
)
BITS = {
  'a': {'kernel': jnp.array([1.2, 3.1, 5.9]), 'input': jnp.float32(2.5)},
  'b': {'c': {'kernel': jnp.float32(2.4), 'input': jnp.float32(4.0)}},
}


def hardened(step, **how):
  return Hardening(layers=LAYERS, **{'start': 10, 'steps': 20, **how})(BITS, jnp.int32(step))


def test_before_its_start_it_does_nothing():
  found = hardened(8)
  np.testing.assert_array_equal(found['a']['kernel'], BITS['a']['kernel'])


def test_at_the_end_every_bit_width_is_the_nearest_allowed_one():
  found = hardened(19)
  np.testing.assert_array_equal(found['a']['kernel'], [1, 4, 4])
  assert (float(found['b']['c']['kernel']), float(found['b']['c']['input'])) == (2, 4)


def test_half_way_it_goes_an_eighth_of_what_is_left():
  found = hardened(14)
  np.testing.assert_allclose(found['a']['kernel'], BITS['a']['kernel'] + np.array([-0.2, 0.9, -1.9]) / 8, rtol=1e-6)


@pytest.mark.parametrize('steps', [1, 7, 100])
def test_its_strength_grows_from_its_start_to_1(steps):
  found = [float(Hardening(layers=(), start=3, steps=3 + steps).strength(jnp.int32(i))) for i in range(3 + steps)]
  assert found[:3] == [0, 0, 0]
  assert found[-1] == 1
  assert np.all(np.diff(found[2:]) > 0)
