import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import quantize
from fracbits_jax.layers import GatedBatchNorm, QuantConfig, QuantConv, QuantDense, quantized_class, watch_layers
from fracbits_jax.layers.operands import apply_quantizer, replace_quantizers
from fracbits_jax.quantize import lsq

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


def test_without_quantization_the_layers_are_those_of_flax():
  for ours, theirs in (
    (QuantConv(5, (3, 3), strides=2, padding='SAME'), nn.Conv(5, (3, 3), strides=2, padding='SAME')),
    (QuantDense(5), nn.Dense(5)),
  ):
    variables = theirs.init(jax.random.key(1), X)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), X)) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(ours.apply(variables, X), theirs.apply(variables, X), rtol=1e-5, atol=1e-6)


def test_a_layer_is_the_float_layer_of_quantized_inputs_and_kernel():
  quant = QuantConfig(init_bits=2.6, scheme='modified', sat=True)
  layer = QuantConv(5, (3, 3), padding=1, quant=quant)
  variables = layer.init(jax.random.key(1), X)
  params = variables['params']
  kernel = quantize.rescale(quantize.kernel(params['kernel'], 2.6, scheme='modified', choices=quant.choices))
  x = quantize.activation(X, 2.6, params['alpha'], choices=quant.choices)
  expected = nn.Conv(5, (3, 3), padding=1).apply({'params': {'kernel': kernel, 'bias': params['bias']}}, x)
  np.testing.assert_allclose(layer.apply(variables, X), expected, rtol=1e-5, atol=1e-5)


def test_a_learned_step_has_a_range_of_its_own_for_the_kernel():
  quant = QuantConfig(init_bits=2.6, scheme='lsq', signed_input=True)
  layer = QuantDense(5, quant=quant)
  variables = layer.init(jax.random.key(1), X)
  params = variables['params']
  assert params['kernel_alpha'] == lsq.initial_range(params['kernel'], 2.6)
  kernel = lsq.kernel(params['kernel'], 2.6, params['kernel_alpha'], choices=quant.choices)
  x = lsq.activation(X, 2.6, params['alpha'], signed=True, choices=quant.choices)
  expected = nn.Dense(5).apply({'params': {'kernel': kernel, 'bias': params['bias']}}, x)
  np.testing.assert_allclose(layer.apply(variables, X), expected, rtol=1e-5, atol=1e-5)


def test_signed_inputs_can_have_an_offset():
  quant = QuantConfig(init_bits=2.6, scheme='lsq', signed_input=True, input_offset=True)
  layer = QuantDense(5, quant=quant)
  variables = layer.init(jax.random.key(1), X)
  params = variables['params']
  np.testing.assert_array_equal(params['alpha'], [8, 0])
  plain = QuantDense(5, quant=dataclasses.replace(quant, input_offset=False))
  without = {**variables, 'params': {**params, 'alpha': params['alpha'][0]}}
  np.testing.assert_array_equal(layer.apply(variables, X), plain.apply(without, X))
  moved = {**variables, 'params': {**params, 'alpha': jnp.array([2.0, 1.0])}}
  gradient = jax.grad(lambda v: jnp.sum(layer.apply(v, X) ** 2))(moved)['params']['alpha']
  assert (gradient != 0).all()
  unsigned = QuantDense(5, quant=dataclasses.replace(quant, signed_input=False))
  assert unsigned.init(jax.random.key(1), X)['params']['alpha'].shape == ()
  with pytest.raises(ValueError, match="input_offset=True is for learned step sizes, and scheme='original' has none"):
    QuantConfig(input_offset=True)


def test_each_channel_can_have_a_range_of_its_own():
  quant = QuantConfig(init_bits=2.6, scheme='lsq', kernel_ranges='channel', weight_only=True)
  x, width = jax.random.normal(jax.random.key(0), (2, 5, 5, 4)), 2.6
  for layer, axes in (
    (QuantConv(4, (3, 3), feature_group_count=4, quant=quant), (3,)),
    (quantized_class(nn.ConvTranspose)(6, (3, 3), transpose_kernel=True, quant=quant), (2,)),
    (quantized_class(nn.DenseGeneral)((2, 3), quant=quant), (1, 2)),
  ):
    variables = layer.init(jax.random.key(1), x)
    kernel, alpha = (variables['params'][name] for name in ('kernel', 'kernel_alpha'))
    channels = jnp.moveaxis(kernel, axes, range(len(axes))).reshape(alpha.size, -1)
    np.testing.assert_allclose(alpha, [lsq.initial_range(channel, width) for channel in channels], rtol=1e-6)
    gradient = jax.grad(lambda params, layer=layer: jnp.sum(layer.apply({**variables, 'params': params}, x) ** 2))  # noqa: B023
    assert (gradient(variables['params'])['kernel_alpha'] != 0).all()
  for fields in ({'scheme': 'original'}, {'scheme': 'modified'}):
    with pytest.raises(ValueError, match="kernel_ranges='channel' is for learned ranges, and scheme="):
      QuantConfig(kernel_ranges='channel', **fields)
  with pytest.raises(ValueError, match="kernel_ranges='each' is unknown: choose one of layer, channel"):
    QuantConfig(scheme='lsq', kernel_ranges='each')
  with pytest.raises(ValueError, match="kernel_levels='even' is unknown: choose one of twos_complement, balanced"):
    QuantConfig(scheme='lsq', kernel_levels='even')
  with pytest.raises(ValueError, match="kernel_levels='balanced' is for learned step sizes, and scheme='original' has"):
    QuantConfig(kernel_levels='balanced')


def test_bits_are_drawn_only_where_a_stream_for_them_is_given():
  layer = QuantDense(5, quant=QuantConfig(init_bits=2.6, stochastic=True, granularity='kernel'))
  plain = QuantDense(5, quant=QuantConfig(init_bits=2.6, granularity='kernel'))
  variables = layer.init(jax.random.key(1), X)
  np.testing.assert_array_equal(layer.apply(variables, X), plain.apply(variables, X))
  drawn = [layer.apply(variables, X, rngs={'bits': jax.random.key(seed)}) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any()
  assert (drawn[0] != plain.apply(variables, X)).any()


@pytest.mark.parametrize('scheme', ['original', 'lsq'])
def test_with_elements_mixed_each_weight_and_each_feature_takes_one_of_two_bit_widths(scheme):
  quant = QuantConfig(init_bits=2.6, mixture='elements', scheme=scheme, alpha_init=1.0)
  seen = {}

  def replacement(layer, which, x, bits, alpha, kept):
    del kept
    seen[which] = (x, bits, alpha)
    return x

  layer = QuantDense(5, quant=quant)
  variables = layer.init(jax.random.key(1), X)
  with replace_quantizers(replacement):
    layer.apply(variables, X)
  for which, (x, bits, alpha) in seen.items():
    found, low, high = (
      apply_quantizer(layer, which, x, b, alpha, choices=quant.choices) for b in (bits, jnp.float32(2), jnp.float32(3))
    )
    assert ((found == low) | (found == high)).all()
    upper = np.asarray(found == high)[np.asarray(low != high)]
    assert 0.45 < upper.mean() < 0.75, which


class Pruned(nn.Module):
  """A prunable convolution, its gated norm, and what consumes its channels."""

  quant: QuantConfig

  @nn.compact
  def __call__(self, x):
    keeps = dataclasses.replace(self.quant, choices=range(1, 9))
    x = QuantConv(4, (1, 1), quant=self.quant, name='first')(x)
    x = nn.relu(GatedBatchNorm(use_running_average=True, source='first', name='norm')(x))
    self.sow('intermediates', 'gated', x)
    x = QuantConv(4, (3, 3), feature_group_count=4, quant=keeps, source='first', name='depthwise')(x)
    return QuantDense(3, quant=dataclasses.replace(keeps, sat=True), source='first', name='last')(x.mean((1, 2)))


def test_a_pruned_channel_is_zero_behind_its_norm_and_leaves_no_trace():
  model = Pruned(QuantConfig(granularity='kernel', choices=range(9), init_bits=4.0))
  variables = model.init(jax.random.key(0), X)
  variables['params']['norm']['bias'] = jnp.ones(4)  # what batch norm would make of nothing
  variables['bits']['first']['kernel'] = jnp.array([4.0, 0.0, 0.6, 3.0])
  logits, state = model.apply(variables, X, mutable='intermediates')
  gated = state['intermediates']['gated'][0]
  assert not gated[..., 1].any()
  assert gated[..., 2].any()
  for name, at in (('first', (..., 1)), ('depthwise', (..., 1)), ('last', (1,))):
    changed = jax.tree.map(lambda x: x, variables)
    changed['params'][name]['kernel'] = variables['params'][name]['kernel'].at[at].mul(1000)
    np.testing.assert_allclose(model.apply(changed, X), logits, rtol=1e-6, err_msg=name)


def test_the_gate_of_a_channel_follows_its_bits_up_to_one():
  model = Pruned(QuantConfig(granularity='kernel', choices=range(9), init_bits=4.0))
  variables = model.init(jax.random.key(0), X)

  def gated(bits):
    variables['bits']['first']['kernel'] = jnp.full(4, bits)
    _, state = model.apply(variables, 0 * X, mutable='intermediates')
    return state['intermediates']['gated'][0]

  variables['params']['norm']['bias'] = jnp.ones(4)
  for bits, expected in ((0.0, 0), (0.25, 0.25), (1.0, 1), (5.0, 1)):
    np.testing.assert_allclose(gated(bits), expected)


@pytest.mark.parametrize(
  ('quant', 'bits'),
  [
    (QuantConfig(), {'kernel': (), 'input': ()}),
    (QuantConfig(granularity='kernel'), {'kernel': (5,), 'input': ()}),
    (QuantConfig(kernel_bits=8), {'input': ()}),
    (QuantConfig(input_bits=4), {'kernel': ()}),
    (QuantConfig(weight_only=True), {'kernel': ()}),
    (QuantConfig(kernel_bits=8, weight_only=True, input_bits=8), None),
  ],
)
def test_only_learned_bits_are_variables(quant, bits):
  variables = QuantDense(5, quant=quant).init(jax.random.key(0), X)
  shapes = jax.tree.map(jnp.shape, variables.get('bits'))
  assert shapes == bits
  assert ('alpha' in variables['params']) == (not quant.weight_only)


def test_bits_start_inside_the_allowed_range():
  quant = QuantConfig(choices=(2, 4), init_bits=9.5, input_choices=(4, 8))
  bits = QuantDense(5, quant=quant).init(jax.random.key(0), X)['bits']
  assert (bits['kernel'], bits['input']) == (4, 8)


def test_inputs_never_have_zero_bits_unless_asked():
  quant = QuantConfig(choices=range(9))
  assert quant.allowed_input_bits == tuple(range(1, 9))
  assert dataclasses.replace(quant, choices=(0, 2)).allowed_input_bits == (2,)


def test_signed_inputs_keep_their_sign():
  one = jnp.ones((1, 1))
  for signed, expected in ((True, -1.0), (False, 0.0)):
    layer = QuantDense(
      1, use_bias=False, quant=QuantConfig(signed_input=signed, input_bits=8, kernel_bits=8, alpha_init=1.0)
    )
    variables = layer.init(jax.random.key(0), one)
    variables['params']['kernel'] = one
    np.testing.assert_allclose(layer.apply(variables, -one), [[expected]], atol=1e-6)


@pytest.mark.parametrize('by_name', [False, True])
def test_each_call_is_seen_once_with_the_inputs_before_quantization(by_name):
  seen = []
  layer = QuantDense(5, quant=QuantConfig(), name='dense')
  with watch_layers(lambda module, x, y: seen.append((module.name, x, y.shape))):
    layer.init(jax.random.key(0), **{'inputs': X}) if by_name else layer.init(jax.random.key(0), X)
  assert [(name, shape) for name, _, shape in seen] == [('dense', (2, 6, 6, 5))]
  assert seen[0][1] is X


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(granularity='channel'), 'granularity'),
    (dict(scheme='log'), 'scheme'),
    (dict(choices=()), 'choices'),
    (dict(choices=(0,)), 'would leave nothing of a kernel'),
    (dict(input_choices=()), 'for inputs, choices'),
    (dict(choices=(0, 2), granularity='kernel', stochastic=True), 'cannot prune'),
    (dict(choices=(4, 2)), 'choices'),
    (dict(kernel_bits=17), 'kernel_bits=17'),
    (dict(kernel_bits=3.5), 'kernel_bits=3.5'),
    (dict(input_bits=32), 'input_bits=32'),
    (dict(init_bits=-1.0), 'init_bits'),
    (dict(alpha_init=0.0), 'alpha_init'),
  ],
)
def test_bad_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(QuantConfig(), **change)
