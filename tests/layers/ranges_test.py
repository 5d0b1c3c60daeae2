"""A parameter of one's own that is called like a range, or ends like one, is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import cost
from fracbits_jax.layers import QuantConfig, QuantDense, calibrate, ranges, wrap

QUANT = QuantConfig(scheme='lsq', choices=(2, 4), init_bits=4, signed_input=True)
X = jax.random.normal(jax.random.key(0), (8, 5))


class Net(nn.Module):
  """A dense layer, a float one, and factors of its own."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x):
    own = [self.param(name, nn.initializers.zeros, (3,)) for name in ('alpha', 'my_alpha')]
    x = QuantDense(3, quant=self.quant, name='dense')(x) + sum(own)[None]
    return QuantDense(2, name='plain')(x)


@pytest.fixture(scope='module')
def variables():
  return Net().init(jax.random.key(1), X)


def test_ranges_are_known_by_their_layers(variables):
  names = ['alpha', 'my_alpha', 'dense/alpha', 'dense/kernel', 'dense/kernel_alpha', 'plain/alpha', 'w', 'w_alpha']
  assert ranges.range_names(['dense', 'w'], names) == {'dense/alpha', 'dense/kernel_alpha', 'w_alpha'}
  # A network that is one layer has them beside its kernel.
  assert ranges.range_names([''], ['kernel', 'alpha']) == {'alpha'}
  assert cost.range_names(cost.trace(Net(quant=QUANT), X), names) == {'dense/alpha', 'dense/kernel_alpha'}


def test_own_parameters_are_no_ranges_to_make_up(variables):
  params = {name: value for name, value in variables['params'].items() if name != 'my_alpha'}
  with pytest.raises(ValueError, match='parameters are those of another network: my_alpha do not fit'):
    wrap.from_float(Net(quant=QUANT), {'params': params}, X)


def test_own_parameters_are_counted(variables):
  table = cost.trace(Net(quant=QUANT), X)
  assert table.coverage.parameters == sum(x.size for x in jax.tree.leaves(variables['params']))
  assert table.coverage.left == {'alpha': 3, 'my_alpha': 3, 'dense/bias': 3, 'plain/bias': 2}


def test_own_parameters_stay_where_ranges_follow_the_bits(variables):
  net = Net(quant=QUANT)
  quantized = wrap.from_float(net, variables, X)
  configs = calibrate.quant_configs(net, X)
  samples = calibrate.sample_inputs(Net(), variables, [(X,)])
  after = jax.tree.map(lambda bits: bits - 2, quantized['bits'])
  found = calibrate.at_other_bits(quantized['params'], quantized['bits'], after, samples, configs)
  for name in ('alpha', 'my_alpha'):
    np.testing.assert_array_equal(found[name], np.zeros(3))
  assert found['dense']['kernel_alpha'] != quantized['params']['dense']['kernel_alpha']


def test_ranges_are_calibrated_at_the_bits_that_are_given(variables):
  net = Net(quant=QUANT)
  given = wrap.from_float(net, variables, X, bits={'dense': {'kernel': 2.0, 'input': 2.0}})
  expected = wrap.from_float(Net(quant=QuantConfig(**{**vars(QUANT), 'init_bits': 2})), variables, X)
  jax.tree.map(np.testing.assert_array_equal, given, expected)
  assert jnp.float32(2) == given['bits']['dense']['kernel']
  with pytest.raises(ValueError, match='bits are those of another network: dense/input, other/kernel do not fit'):
    wrap.from_float(net, variables, X, bits={'dense': {'kernel': 2.0}, 'other': {'kernel': 2.0}})
