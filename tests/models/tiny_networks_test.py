"""The networks of MLPerf Tiny from calibration to packed integers, which compute what the network does."""

import functools

import fewer_blocks
import jax
import numpy as np
import pytest

from fracbits_jax import cost, models, policy
from fracbits_jax.export import comparison, integer, packed
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig, calibrate, wrap
from fracbits_jax.policy import compact

SHAPES = {
  'tiny_resnet8': (16, 16, 3),
  'tiny_mobilenet': (32, 32, 3),
  'ds_cnn': (49, 10, 1),
  'autoencoder': (5, 128, 1),  # five frames of a spectrogram, 640 numbers
}
OUTPUTS = {'tiny_resnet8': 10, 'tiny_mobilenet': 2, 'ds_cnn': 12, 'autoencoder': 640}


@pytest.fixture(autouse=True, scope='module')
def _fewer_blocks():
  with fewer_blocks.mobilenets():
    yield


def create(name, quant=None):
  # Features are signed numbers of 8 bits: as integers from 0 they have a mean of 128.
  mean = (128.0,) if SHAPES[name][-1] == 1 else ()
  width = 1.0 if name == 'tiny_mobilenet' else 0.25
  return models.create(name, num_classes=OUTPUTS[name], quant=quant, width=width, image_mean=mean)


def inputs(name):
  return np.random.default_rng(0).integers(0, 256, (8, *SHAPES[name])).astype(np.float32)


@functools.cache
def float_network(name):
  """The float network, and variables whose batch statistics are those of the inputs."""
  model, x = create(name), inputs(name)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  step = jax.jit(lambda v: model.apply(v, x, train=True, mutable=['batch_stats'])[1])
  for _ in range(30):
    variables = {**variables, **step(variables)}
  return model, variables


@functools.cache
def discretized(name, scheme='lsq'):
  """The network calibrated at 4.5 bits and discretized: model, variables, policy, budget."""
  quant = QuantConfig(scheme=scheme, init_bits=4.5)
  (plain, variables), model, x = float_network(name), create(name, quant), inputs(name)
  layers = cost.trace(model, SHAPES[name])
  start = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)
  bits = cost.fill_bits(layers, lambda layer, which, shape, choices: rng.uniform(3, 6, shape))
  params = jax.tree.map(lambda leaf: np.full(leaf.shape, 8.0, np.float32), start['params'])
  for layer, leaves in variables['params'].items():
    params[layer] = {**params[layer], **leaves}
  samples = calibrate.sample_inputs(plain, variables, [(x,)])
  configs = calibrate.quant_configs(model, SHAPES[name])
  params = calibrate.clips(params, bits, samples, configs)
  params = calibrate.kernel_ranges(params, bits, configs)
  budget = cost.budget('bitops', layers, equivalent_bits=4)
  found = policy.discretize(bits, layers, budget)
  return wrap.with_fixed_bits(model), {**variables, 'params': params, 'bits': found.bits()}, found, budget


@pytest.mark.parametrize('name', SHAPES)
def test_calibration_sets_a_clip_for_every_layer_behind_the_first(name):
  _, variables, _, _ = discretized(name)
  clips = {layer: float(leaves['alpha']) for layer, leaves in variables['params'].items() if 'alpha' in leaves}
  layers = [layer.name for layer in cost.trace(create(name), SHAPES[name])]
  assert set(clips) == set(layers[1:])
  assert all(0 < clip != 8.0 for clip in clips.values())


@pytest.mark.parametrize('name', SHAPES)
def test_a_policy_meets_the_budget_with_integers(name):
  _, variables, found, budget = discretized(name)
  assert found.cost <= budget.target
  assert found.cost > 0.95 * budget.target
  assert all(bits == round(bits) for bits in map(float, jax.tree.leaves(variables['bits'])))


@pytest.mark.parametrize('name', SHAPES)
def test_packed_integers_compute_what_the_network_does(name, tmp_path):
  model, variables, _, _ = discretized(name)
  x, source = inputs(name), source_of(model, variables, inputs(name), input_range=(0, 255))
  packed.write(source, tmp_path / 'net.fracbits')
  read = packed.read(tmp_path / 'net.fracbits')
  assert integer.float_operations(read.graph) == ()
  found = comparison.compare(read.graph, x, reference=source.graph)
  assert found.codes > 0
  assert found.different <= 2
  assert found.farthest_from_tie < 1e-3
  np.testing.assert_allclose(
    integer.inference(read.graph)(x)[0], jax.jit(model.apply)(variables, x), atol=0.02 * found.largest_output
  )


@pytest.mark.parametrize('name', ['tiny_resnet8', 'ds_cnn', 'autoencoder'])
def test_the_network_without_its_pruned_channels_gives_the_same(name):
  quant = QuantConfig(scheme='lsq', granularity='kernel', choices=range(9), init_bits=4.0)
  (_, variables), model, x = float_network(name), create(name, quant), inputs(name)
  layers = cost.trace(model, SHAPES[name])
  rng = np.random.default_rng(2)

  def draw(layer, which, shape, choices):
    bits = rng.integers(3, 7, shape).astype(np.float32)
    return (
      np.where(np.arange(bits.size).reshape(shape) % 3 == 1, 0, bits) if layer.prunes and which == 'kernel' else bits
    )

  start = jax.eval_shape(model.init, jax.random.key(0), x)
  params = jax.tree.map(lambda leaf: np.full(leaf.shape, 2.0, np.float32), start['params'])
  for layer, leaves in variables['params'].items():
    params[layer] = {**params[layer], **leaves}
  full = {**variables, 'params': params, 'bits': cost.fill_bits(layers, draw)}
  smaller, fewer = compact.compact(model, full, SHAPES[name])
  table = cost.trace(smaller, SHAPES[name])
  assert sum(layer.weights for layer in table) < 0.95 * sum(layer.weights for layer in layers)
  expected = jax.jit(model.apply)(full, x)
  largest = np.abs(expected).max()
  np.testing.assert_allclose(jax.jit(smaller.apply)(fewer, x) / largest, expected / largest, rtol=0, atol=1e-5)
