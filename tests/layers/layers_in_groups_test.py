"""Layers whose kernels have a range for each group of weights: variables, calibration and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import from_float
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense, calibrate, quantized_class, wrap
from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.linen import DISTANCES
from fracbits_jax.quantize import groups, lsq

GROUPS = QuantConfig(scheme='lsq', group_size=6, choices=(2, 3, 4, 8), init_bits=3.4, weight_only=True)
X = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))


@pytest.mark.parametrize(
  ('layer', 'channels', 'summed'),
  [
    (QuantDense(5, quant=GROUPS), (1,), (0,)),
    (QuantConv(5, (3, 1), quant=GROUPS), (3,), (0, 1, 2)),
    (quantized_class(nn.DenseGeneral)((2, 3), axis=(-2, -1), quant=GROUPS), (2, 3), (0, 1)),
    (quantized_class(nn.Einsum)((4, 2, 8), 'nhtd,ktd->nhk', use_bias=False, quant=GROUPS), (0,), (1, 2)),
  ],
  ids=['dense', 'convolution', 'general', 'einsum'],
)
def test_groups_lie_along_the_contracted_axes_of_each_output_channel(layer, channels, summed):
  variables = layer.init(jax.random.key(1), X)
  kernel, alpha = (variables['params'][name] for name in ('kernel', 'kernel_alpha'))
  matrix = jnp.transpose(kernel, (*summed, *channels)).reshape(-1, np.prod([kernel.shape[a] for a in channels]))
  assert alpha.shape == (-(-len(matrix) // 6), matrix.shape[1])
  for i in range(len(alpha)):
    part = matrix[6 * i : 6 * i + 6]
    np.testing.assert_allclose(alpha[i], lsq.initial_range(part, 3.4, each=True), rtol=1e-6)
  y, state = layer.apply(variables, X, mutable=[DISTANCES])
  quantized = jnp.concatenate(
    [lsq.kernel(matrix[6 * i : 6 * i + 6], 3.4, groups.stored(alpha[i], 16), choices=GROUPS.choices)
     for i in range(len(alpha))]
  )  # fmt: skip
  back = jnp.transpose(
    quantized.reshape([kernel.shape[axis] for axis in (*summed, *channels)]), np.argsort((*summed, *channels))
  )
  plain = layer.clone(quant=None)
  params = {name: value for name, value in variables['params'].items() if name != 'kernel_alpha'}
  np.testing.assert_allclose(y, plain.apply({'params': {**params, 'kernel': back}}, X), rtol=1e-5, atol=1e-5)
  assert state[DISTANCES]['kernel'] >= 0
  gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, X) ** 2))(variables)
  assert gradient['params']['kernel_alpha'].shape == alpha.shape
  assert gradient['bits']['kernel'] != 0


def test_ranges_of_32_bits_are_taken_as_they_are():
  for bits, found in ((16, np.float32(np.float16(0.1))), (32, np.float32(0.1))):
    quant = QuantConfig(scheme='lsq', group_size=2, range_bits=bits, kernel_bits=2, weight_only=True)
    params = {'kernel': jnp.full((2, 1), -1.0), 'kernel_alpha': jnp.full((1, 1), 0.1)}
    y = QuantDense(1, use_bias=False, quant=quant).apply({'params': params}, jnp.array([[1.0, 0.0]]))
    assert y == -found


def test_calibration_searches_each_group_as_a_channel():
  kernel = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32) * np.logspace(-1, 1, 14).reshape(2, 7, 1)
  kernel = kernel.astype(np.float32)
  kernel[0, :6] = 0  # the first group of each channel, which starts at the mean of the others
  params = {'layer': {'kernel': kernel, 'kernel_alpha': jnp.ones((3, 3))}}
  bits = {'layer': {'kernel': jnp.array([2.0, 3.0, 4.0])}}
  found = np.asarray(calibrate.kernel_ranges(params, bits, {'layer': GROUPS})['layer']['kernel_alpha'])
  matrix = kernel.reshape(14, 3)
  of_channels = QuantConfig(scheme='lsq', kernel_ranges='channel', choices=GROUPS.choices)
  alone = [
    channel_ranges({'part': (matrix[start : start + 6].T, np.array([2, 3, 4]), of_channels)})['part']
    for start in (6, 12)
  ]
  np.testing.assert_allclose(found[1:], alone, rtol=1e-5)
  np.testing.assert_allclose(found[0], np.mean(alone), rtol=1e-5)


def test_a_network_of_layers_starts_from_a_float_one():
  class Net(nn.Module):
    quant: QuantConfig | None

    @nn.compact
    def __call__(self, x):
      return QuantDense(3, quant=self.quant)(
        nn.relu(quantized_class(nn.DenseGeneral)(20, axis=(-2, -1), quant=self.quant)(x))
      )

  quant = QuantConfig(scheme='lsq', group_size=8, choices=(2, 4, 8), init_bits=8, weight_only=True)
  net, x = Net(quant), np.asarray(X)
  float_variables = wrap.without_quantization(net).init(jax.random.key(1), x)
  variables = from_float(net, float_variables, x)
  shapes = {name: value['kernel_alpha'].shape for name, value in variables['params'].items()}
  assert sorted(shapes.values()) == [(2, 20), (3, 3)]
  expected = wrap.without_quantization(net).apply(float_variables, x)
  np.testing.assert_allclose(net.apply(variables, x), expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    (
      {'group_size': 0},
      'group_size=0 is no number of weights: give a positive integer, such as 32, 64 or 128, or None',
    ),
    ({'group_size': 3.5}, 'group_size=3.5 is no number of weights'),
    ({'group_size': True}, 'group_size=True is no number of weights'),
    ({'range_bits': 8}, 'range_bits=8 is unknown: a range is stored in 16 or in 32 bits'),
    ({'scheme': 'original'}, "group_size=32 is for learned ranges, and scheme='original' has none: set scheme='lsq'"),
    ({'granularity': 'kernel', 'choices': (0, 2, 4)}, 'group_size=32 cannot prune'),
  ],
)
def test_what_groups_cannot_be_is_said(fields, said):
  with pytest.raises(ValueError, match=said):
    QuantConfig(**{'scheme': 'lsq', 'group_size': 32, **fields})
