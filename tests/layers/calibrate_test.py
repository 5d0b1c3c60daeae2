import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import cost, models, quantize
from fracbits_jax.layers import QuantConfig, QuantDense, calibrate, operands, quantized_class, wrap
from fracbits_jax.layers.channel_ranges import channel_ranges
from fracbits_jax.layers.quant_config import CALIBRATIONS
from fracbits_jax.quantize import lsq

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


GRIDS = {  # by scheme and side: the levels of a clip of 1
  ('original', False): lambda b: np.arange(2**b) / (2**b - 1),
  ('original', True): lambda b: 2 * np.arange(2**b) / (2**b - 1) - 1,
  ('lsq', True): lambda b: np.arange(-(2 ** (b - 1)), 2 ** (b - 1)) / 2 ** (b - 1) if b > 1 else np.array([-0.5, 0.5]),
  ('balanced', True): lambda b: (2 * np.arange(2**b) + 1) / 2**b - 1,
}


QUANTIZERS = {
  'lsq': lsq.activation,
  'balanced': lambda x, bits, clip, *, signed, choices: lsq.kernel(x, bits, clip, choices=choices, balanced=True),
}


@pytest.mark.parametrize('criterion', CALIBRATIONS)
@pytest.mark.parametrize(('scheme', 'signed'), GRIDS)
def test_values_on_a_grid_get_a_clip_that_leaves_no_error(scheme, signed, criterion):
  """Whatever their scale, and whichever of the levels they take."""
  rng = np.random.default_rng(0)
  quantizer = QUANTIZERS.get(scheme, quantize.activation)
  for bits, scale in itertools.product((1, 2, 3, 4, 6, 8), (1e-30, 0.7, 1e30)):
    levels = GRIDS[scheme, signed](bits)
    taken = rng.choice(levels, size=max(1, rng.integers(1, len(levels) + 1)), replace=False)
    x = jnp.asarray(scale * rng.choice(taken, 200), jnp.float32)
    how = dict(signed=signed, choices=CHOICES)
    clip = calibrate.best_clip(x, jnp.float32(bits), scheme=scheme, criterion=criterion, **how)
    error = (quantizer(x, bits, clip, **how) - x) / scale
    assert jnp.abs(error).max() < 1e-5, (bits, scale, taken)


@pytest.mark.parametrize('bits', [1.0, 2.0, 2.5])
def test_a_kernel_of_1_and_its_negative_gets_a_range_of_2(bits):
  x = jnp.tile(jnp.array([1.0, -1.0]), 50)
  assert calibrate.best_clip(x, bits, signed=True, choices=CHOICES, scheme='lsq') == 2


@pytest.mark.parametrize('criterion', CALIBRATIONS)
def test_the_clip_follows_the_scale_of_its_values(criterion):
  x = np.random.default_rng(0).normal(size=500).astype(np.float32)
  clip = lambda scale: calibrate.best_clip(x * scale, 3.5, signed=True, choices=CHOICES, criterion=criterion) / scale
  for scale in np.float32([1e-36, 1e-30, 1e-10, 1e10, 1e30]):
    np.testing.assert_allclose(clip(scale), clip(np.float32(1)), rtol=0.02)


@pytest.mark.parametrize('bits', [2, 4])
@pytest.mark.parametrize('outlier', [100, 1e6])
def test_one_value_among_thousands_moves_the_clip_of_squares_and_not_of_the_others(bits, outlier):
  x = np.maximum(np.random.default_rng(0).normal(size=4096), 0).astype(np.float32)
  # A million times the others, it is more than the absolute error of all of them.
  for criterion in CALIBRATIONS if outlier == 100 else ('squares', 'trimmed'):
    clip = functools.partial(calibrate.best_clip, signed=False, choices=CHOICES, criterion=criterion)
    alone, beside = clip(x, bits), clip(np.append(x[1:], np.float32(outlier)), bits)
    assert (beside > 10 * alone) if criterion == 'squares' else abs(beside - alone) < 0.1 * alone


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_the_name_of_their_layer(bad):
  x, quant = np.array([1, bad], np.float32), QuantConfig(scheme='lsq', kernel_bits=4, input_bits=4)
  with pytest.raises(ValueError, match='there are values that are not finite'):
    calibrate.best_clip(x, 3, signed=True, choices=CHOICES)
  params = {'layer': {'kernel': x[:, None], 'kernel_alpha': 1.0, 'alpha': 1.0}}
  with pytest.raises(ValueError, match='kernel of layer: there are values'):
    calibrate.kernel_ranges(params, {}, {'layer': quant})
  with pytest.raises(ValueError, match='inputs of layer: there are values'):
    calibrate.clips(params, {}, {'layer': x}, {'layer': quant})


def test_an_unknown_criterion_is_refused():
  with pytest.raises(ValueError, match="calibration='cubes' is unknown: choose one of 'squares'"):
    QuantConfig(calibration='cubes')
  with pytest.raises(ValueError, match="calibration='cubes' is unknown"):
    calibrate.best_clip(jnp.ones(3), 3, signed=True, choices=CHOICES, criterion='cubes')


def test_of_nothing_the_clip_and_the_range_are_1():
  quant = QuantConfig(scheme='lsq', kernel_bits=4, input_bits=4)
  params = {'layer': {'kernel': np.ones((3, 0)), 'kernel_alpha': 8.0, 'alpha': 8.0}}
  params = calibrate.kernel_ranges(params, {}, {'layer': quant})
  params = calibrate.clips(params, {}, {'layer': calibrate.sample(jnp.ones((0, 3)))}, {'layer': quant})
  assert params['layer']['kernel_alpha'] == params['layer']['alpha'] == 1


def test_each_layer_is_calibrated_by_its_own_criterion():
  x = np.append(np.random.default_rng(0).normal(size=4095), 100).astype(np.float32)
  configs = {name: QuantConfig(input_bits=4, signed_input=True, calibration=name) for name in CALIBRATIONS}
  params = calibrate.clips({name: {'alpha': 1.0} for name in configs}, {}, dict.fromkeys(configs, x), configs)
  assert params['squares']['alpha'] > 10
  assert max(params['absolute']['alpha'], params['trimmed']['alpha']) < 5


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
  variables = jax.jit(plain.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  images = jax.random.uniform(jax.random.key(1), (8, *shape)) * 255
  samples = calibrate.sample_inputs(plain, variables, [(images,), (images,)])
  layers = cost.trace(quantized, shape)
  assert samples.keys() >= {layer.name for layer in layers}  # and what comes into residual blocks
  assert samples['classifier'].shape == (2, 4096)
  np.testing.assert_allclose(samples['stem'].max(), images.max(), rtol=0.01)
  start = jax.jit(quantized.init)(jax.random.key(0), jnp.zeros((1, *shape)))
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


@pytest.mark.parametrize('kept', [3, 16, 32])
def test_pruned_channels_do_not_count_in_the_range_of_a_kernel(kept):
  w = np.random.default_rng(0).normal(size=(3, 3, 8, 32)).astype(np.float32)
  quant = QuantConfig(scheme='lsq', granularity='kernel', choices=tuple(range(9)))
  found = []
  for bits in (np.where(np.arange(32) < kept, 4, 0), np.full(32, 4)):
    params, widths = {'l': {'kernel': w, 'kernel_alpha': 1.0}}, {'l': {'kernel': bits.astype(np.float32)}}
    found.append(float(calibrate.kernel_ranges(params, widths, {'l': quant})['l']['kernel_alpha']))
  assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize('size', [1, 7, 3000, 4096])
def test_a_sample_of_few_values_has_all_of_them(size):
  values = np.random.default_rng(1).normal(size=size).astype(np.float32)
  np.testing.assert_array_equal(np.unique(calibrate.sample(values)), np.unique(values))
  np.testing.assert_array_equal(calibrate.sample(values), calibrate.resized(values))


BY_CHANNEL = QuantConfig(scheme='lsq', kernel_ranges='channel', choices=CHOICES)


def least_error(w, bits):
  """The least mean square that any range leaves: the codes change where |w| / s is half an integer."""
  half = 2 ** (bits - 1)
  borders = np.sort((np.abs(w)[:, None] / (np.arange(half) + 0.5)).ravel())
  steps = np.concatenate([borders[:1] / 2, (borders[1:] + borders[:-1]) / 2, borders[-1:] * 2])[:, None]
  codes = np.clip(np.round(w / steps), -half, half - 1)
  squares = (codes**2).sum(1)
  best = np.where(squares > 0, (codes * w).sum(1) / np.maximum(squares, 1), 0)[:, None]
  return np.mean((codes * best - w) ** 2, axis=1).min()


@pytest.mark.parametrize(('bits', 'within'), [(2, 1.001), (3, 1.001), (4, 1.001), (8, 1.5)])
def test_no_other_range_quantizes_a_channel_of_few_weights_better(bits, within):
  w = np.random.default_rng(0).normal(size=(30, 9)).astype(np.float32) * np.logspace(-20, 20, 30)[:, None]
  w = w.astype(np.float32)
  ranges = channel_ranges({'layer': (w, bits, BY_CHANNEL)})['layer']
  found = np.asarray(lsq.kernel(w.T, bits, ranges)).T
  for channel, quantized in zip(w.astype(np.float64), found, strict=True):
    assert np.mean((quantized - channel) ** 2) <= within * least_error(channel, bits)


def test_channels_of_zeros_have_the_ranges_of_the_others():
  w = np.random.default_rng(0).normal(size=(2, 4, 9)).astype(np.float32)
  w[0, 1:3], w[1] = 0, 0
  ranges = channel_ranges({'layer': (w, 3.5, BY_CHANNEL)})['layer']
  np.testing.assert_allclose(ranges[0, 1:3], (ranges[0, 0] + ranges[0, 3]) / 2, rtol=1e-6)
  np.testing.assert_array_equal(ranges[1], 1)
  start = lsq.initial_range(jnp.asarray(w[0].T), 4, each=True)
  np.testing.assert_allclose(start[1:3], (start[0] + start[3]) / 2, rtol=1e-6)
  np.testing.assert_array_equal(lsq.initial_range(jnp.zeros((9, 4)), 4, each=True), 1)
  assert channel_ranges({'none': (np.ones((3, 0)), 4, BY_CHANNEL)})['none'].tolist() == [1, 1, 1]
  with pytest.raises(ValueError, match='kernel of layer: there are values that are not finite'):
    channel_ranges({'layer': (np.full((2, 3), np.nan), 4, BY_CHANNEL)})


@pytest.mark.parametrize('criterion', CALIBRATIONS)
def test_channels_of_every_length_are_recovered_from_their_own_grids(criterion):
  """Also where channels of several layers are searched at once, with bit-widths of their own."""
  rng, kernels = np.random.default_rng(0), {}
  quant = QuantConfig(**{**vars(BY_CHANNEL), 'calibration': criterion})
  for length in (1, 9, 70, 5000):
    bits = rng.choice([2, 4], 6)
    levels = [2.0**i * rng.choice(GRIDS['lsq', True](b), length) for i, b in enumerate(bits)]
    kernels[length] = (np.stack(levels).astype(np.float32), bits.astype(np.float32), quant)
  for length, ranges in channel_ranges(kernels).items():
    w, bits, _ = kernels[length]
    np.testing.assert_allclose(np.asarray(lsq.kernel(w.T, bits, ranges)).T, w, rtol=0, atol=1e-5 * np.abs(w).max())


def test_layers_whose_channels_are_not_last_are_calibrated_by_channel():
  class Net(nn.Module):
    quant: QuantConfig | None = None

    @nn.compact
    def __call__(self, x):
      x = quantized_class(nn.ConvTranspose)(3, (2, 2), transpose_kernel=True, quant=self.quant, name='transposed')(x)
      return quantized_class(nn.DenseGeneral)((2, 3), quant=self.quant, name='general')(x)

  x, rng = np.ones((1, 4, 4, 5), np.float32), np.random.default_rng(0)
  quant = QuantConfig(**{**vars(BY_CHANNEL), 'kernel_bits': 2})
  variables = Net().init(jax.random.key(0), x)
  kernels = {name: variables['params'][name]['kernel'] for name in ('transposed', 'general')}
  axes = {'transposed': [0, 1, 3], 'general': [0]}  # that are no channels
  for name, kernel in kernels.items():
    scale = np.expand_dims(2.0 ** np.arange(kernel.size).reshape(-1)[: 3 if name == 'transposed' else 6], 0)
    shape = [1 if axis in axes[name] else size for axis, size in enumerate(kernel.shape)]
    kernels[name] = jnp.asarray(rng.choice([-1, -0.5, 0, 0.5], kernel.shape) * scale.reshape(shape), jnp.float32)
    variables['params'][name]['kernel'] = kernels[name]
  found = wrap.from_float(Net(quant), variables, x)
  for name, kernel in kernels.items():
    alpha = found['params'][name]['kernel_alpha']
    assert alpha.shape == (3 if name == 'transposed' else 6,)
    flat = operands.with_last_channels(kernel, (2,) if name == 'transposed' else (1, 2))
    np.testing.assert_array_equal(lsq.kernel(flat, 2, alpha), flat)


@pytest.mark.parametrize('bits', [2.0, 3.5, 8.0])
def test_a_range_with_an_offset_is_where_the_values_are(bits):
  """Those of an activation function that is seldom negative, and those of a normal distribution."""
  x = jax.random.normal(jax.random.key(0), (4000,))
  quant = QuantConfig(scheme='lsq', input_bits=None, signed_input=True, input_offset=True, choices=CHOICES)
  error = lambda x, alpha: float(jnp.mean((lsq.activation(x, bits, alpha, signed=True, choices=CHOICES) - x) ** 2))
  for values, factor in ((nn.swish(3 * x), 0.6), (x, 1.0), (-nn.swish(3 * x), 0.6)):
    params = calibrate.clips(
      {'layer': {'alpha': np.ones(2)}}, {'layer': {'input': np.float32(bits)}}, {'layer': values}, {'layer': quant}
    )
    clip = calibrate.best_clip(values, bits, signed=True, choices=CHOICES, scheme='lsq')
    assert error(values, params['layer']['alpha']) <= factor * error(values, clip)
