"""The quantizers, layers and costs against stored reference values (layout: channels first)."""

import csv
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost, layers, models, quantize

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CONV_CASES = sorted(path.stem for path in GOLDEN.glob('conv_*.npz'))
NETWORK_COSTS = list(csv.DictReader((GOLDEN / 'network_costs.csv').read_text().splitlines()))

to_last = functools.partial(jnp.moveaxis, source=1, destination=-1)


def load(case: str) -> dict[str, np.ndarray]:
  with np.load(GOLDEN / f'{case}.npz') as data:
    return dict(data)


def kernel_to_last(kernel: np.ndarray) -> jax.Array:
  return jnp.asarray(kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T)


def assert_gradient(actual: jax.Array, expected: np.ndarray) -> None:
  """Within 1e-3 of the largest entry: a rounding tie may fall the other way."""
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize('scheme', quantize.SCHEMES)
@pytest.mark.parametrize('zero_point', [0.0, 0.5])
@pytest.mark.parametrize('bits', range(9))
def test_uniform(scheme, zero_point, bits):
  data = load('quantize_k')
  expected = data[f'{scheme}_b{bits}_zp{"05" if zero_point else "0"}']
  actual = quantize.uniform(data['x'], bits, scheme=scheme, zero_point=zero_point)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def quant_config(data) -> layers.QuantConfig:
  weight_only = bool(data['weight_only'])
  lowest = int(data['bits_w_min'])
  return layers.QuantConfig(
    granularity='kernel' if data['bits_w'].ndim else 'layer',
    choices=range(max(lowest, 0), 17),
    input_choices=range(17),
    weight_only=weight_only,
    signed_input=bool(data['signed']),
    scheme=str(data['scheme']),
  )


@pytest.mark.parametrize('case', CONV_CASES)
def test_conv(case):
  data = load(case)
  kernel = kernel_to_last(data['kernel'])
  padding = int(data['padding'])
  conv = layers.QuantConv(
    kernel.shape[-1],
    kernel.shape[:2],
    strides=int(data['stride']),
    padding=((padding, padding),) * 2,
    feature_group_count=int(data['groups']),
    use_bias=False,
    quant=quant_config(data),
  )
  variables = {'params': {'kernel': kernel}, 'bits': {'kernel': jnp.asarray(data['bits_w'])}}
  if not data['weight_only']:
    variables['params']['alpha'] = jnp.asarray(data['alpha'])
    variables['bits']['input'] = jnp.asarray(data['bits_a'])

  @jax.jit
  def run(variables, x, ct):
    def loss(variables, x):
      y = conv.apply(variables, x)
      return jnp.sum(y * ct), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x)

  (g, g_x), y = run(variables, to_last(data['x']), to_last(data['ct']))
  np.testing.assert_allclose(y, to_last(data['y']), rtol=0, atol=1e-5)
  assert_gradient(g_x, to_last(data['g_x']))
  assert_gradient(g['params']['kernel'], kernel_to_last(data['g_kernel']))
  assert_gradient(g['bits']['kernel'], data['g_bits_w'])
  if not data['weight_only']:
    assert_gradient(g['params']['alpha'], data['g_alpha'])
    assert_gradient(g['bits']['input'], data['g_bits_a'])


@pytest.mark.parametrize('case', CONV_CASES)
def test_conv_cost(case):
  data = load(case)
  kernel = kernel_to_last(data['kernel'])
  out_h, out_w = data['y'].shape[2:]
  fixed = {}
  if data['bits_w_min'] > 0:
    fixed['kernel_bits'] = int(data['bits_w_min'])
  layer = cost.Layer(
    name='conv', macs=out_h * out_w * kernel.size, weights=kernel.size, channels=kernel.shape[-1], **fixed
  )
  bits = {'conv': {'kernel': jnp.asarray(data['bits_w']), 'input': jnp.asarray(data['bits_a'])}}
  value, gradient = jax.value_and_grad(cost.bitops)(bits, (layer,))
  np.testing.assert_allclose(value, data['bitops_g'], rtol=1e-4)
  np.testing.assert_allclose(cost.model_size(bits, (layer,)), data['size_mb'], rtol=1e-4)
  if 'g_bitops_bits_w' in data:
    assert_gradient(gradient['conv']['kernel'], data['g_bitops_bits_w'])
    assert_gradient(gradient['conv']['input'], data['g_bitops_bits_a'])


@pytest.mark.parametrize('case', ['dense_plain', 'dense_sat'])
def test_dense(case):
  data = load(case)
  kernel = kernel_to_last(data['kernel'])
  dense = layers.QuantDense(kernel.shape[-1], quant=layers.QuantConfig(sat=case == 'dense_sat'))
  variables = {
    'params': {'kernel': kernel, 'bias': jnp.asarray(data['bias']), 'alpha': jnp.asarray(data['alpha'])},
    'bits': {'kernel': jnp.asarray(data['bits_w']), 'input': jnp.asarray(data['bits_a'])},
  }

  def loss(variables, x):
    y = dense.apply(variables, x)
    return jnp.sum(y * data['ct']), y

  (g, g_x), y = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, jnp.asarray(data['x']))
  np.testing.assert_allclose(y, data['y'], rtol=0, atol=1e-5)
  assert_gradient(g_x, data['g_x'])
  assert_gradient(g['params']['kernel'], kernel_to_last(data['g_kernel']))
  for collection, name, key in (
    ('params', 'bias', 'g_bias'),
    ('params', 'alpha', 'g_alpha'),
    ('bits', 'kernel', 'g_bits_w'),
    ('bits', 'input', 'g_bits_a'),
  ):
    assert_gradient(g[collection][name], data[key])


@functools.cache
def network_layers(name: str, granularity: str) -> tuple[cost.Layer, ...]:
  model = models.create(name, quant=layers.QuantConfig(granularity=granularity, choices=range(17)))
  return cost.trace(model, (1, 224, 224, 3))


@pytest.mark.parametrize('granularity', layers.GRANULARITIES)
@pytest.mark.parametrize('row', NETWORK_COSTS, ids=lambda row: f'{row["model"]}-{row["bits"]}')
def test_network_costs(row, granularity):
  table = network_layers(row['model'], granularity)
  bits = cost.uniform_bits(table, float(row['bits']))
  np.testing.assert_allclose(cost.bitops(bits, table), float(row['bitops_g']), rtol=1e-4)
  np.testing.assert_allclose(cost.model_size(bits, table), float(row['size_mb']), rtol=1e-4)
