import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import calibrate, cost, lsq, models, quantize
from fracbits_jax.layers import QuantConfig, QuantDense

CHOICES = tuple(range(1, 9))


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', [2.0, 3.5])
def test_no_other_clip_quantizes_better(signed, bits):
  x = jax.random.normal(jax.random.key(0), (4000,))
  x = x if signed else jax.nn.relu(x)
  error = lambda alpha: float(jnp.mean((quantize.activation(x, bits, alpha, signed=signed, choices=CHOICES) - x) ** 2))
  best = calibrate.best_clip(x, jnp.float32(bits), signed=signed, choices=CHOICES)
  assert error(best) <= min(error(alpha) for alpha in np.linspace(0.2, 5, 30)) * 1.02
  assert 0 < best < jnp.max(jnp.abs(x))


def test_more_bits_want_a_wider_clip():
  x = jax.nn.relu(jax.random.normal(jax.random.key(0), (4000,)))
  found = [float(calibrate.best_clip(x, jnp.float32(b), signed=False, choices=CHOICES)) for b in (1, 2, 4, 8)]
  assert found == sorted(found)


def test_inputs_that_are_zero_throughout_get_a_usable_clip():
  assert calibrate.best_clip(jnp.zeros(10), jnp.float32(3), signed=False, choices=CHOICES) == 1


def test_the_sample_of_a_layer_holds_all_its_channels():
  class Network(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
      # The scale of a channel is its number, so the values tell their channels.
      return QuantDense(2, use_bias=False, name='dense')(jnp.ones_like(x) * jnp.arange(64.0)[None, None, None])

  images = jnp.ones((64, 32, 32, 64))
  network = Network()
  (sample,) = calibrate.sample_inputs(network, network.init(jax.random.key(0), images[:1]), [(images,)]).values()
  counts = np.bincount(sample.reshape(-1).astype(int), minlength=64)
  assert counts.min() > 20
  assert counts.max() < 120


def test_every_clip_of_a_network_is_set_from_its_own_inputs():
  shape = (32, 32, 1)
  quant = QuantConfig(init_bits=3.5)
  plain, quantized = (models.create('resnet8', num_classes=10, width=0.5, quant=q) for q in (None, quant))
  variables = plain.init(jax.random.key(0), jnp.zeros((1, *shape)))
  images = jax.random.uniform(jax.random.key(1), (8, *shape)) * 255
  samples = calibrate.sample_inputs(plain, variables, [(images,), (images,)])
  layers = cost.trace(quantized, shape)
  assert samples.keys() == {layer.name for layer in layers}
  assert samples['classifier'].shape == (2, 4096)
  np.testing.assert_allclose(samples['stem'].max(), images.max(), rtol=0.01)
  start = quantized.init(jax.random.key(0), jnp.zeros((1, *shape)))
  params = calibrate.clips(start['params'], start['bits'], samples, calibrate.quant_configs(quantized, shape))
  assert 'alpha' not in params['stem']
  for layer in layers[1:]:
    x = samples[layer.name]
    expected = calibrate.best_clip(x, jnp.float32(3.5), signed=False, choices=CHOICES)
    np.testing.assert_array_equal(params[layer.name]['alpha'], expected)


def test_the_range_of_a_kernel_is_the_best_for_its_bits():
  """At 2 bits the levels are -a, -a/2, 0, a/2; a kernel of these very levels is recovered without error."""
  levels = jnp.array([-0.6, -0.3, 0.0, 0.3])
  kernel = jax.random.choice(jax.random.key(0), levels, (20, 30))
  params = {'layer': {'kernel': kernel, 'kernel_alpha': jnp.float32(8)}}
  bits = {'layer': {'kernel': jnp.full(30, 2.0)}}
  config = QuantConfig(scheme='lsq', granularity='kernel', choices=range(1, 9))
  found = calibrate.kernel_ranges(params, bits, {'layer': config})['layer']['kernel_alpha']
  np.testing.assert_allclose(lsq.kernel(kernel, 2, found), kernel, atol=1e-6)
