"""Networks that Qwix serves, with the rules and the parameters of a folder."""

import dataclasses
import functools
import json

import export_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, traverse_util

pytest.importorskip('qwix', reason='the extra qwix is not installed')

import qwix

from fracbits_jax import models, quantize_model
from fracbits_jax.export import qwix_file, qwix_format, qwix_serve, qwix_types
from fracbits_jax.export.source import source_of
from fracbits_jax.graph.grid import Grid
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense, QuantIdentity, wrap
from fracbits_jax.layers.linen import watch_layers
from fracbits_jax.program import nnx_adapter

LSQ = QuantConfig(scheme='lsq', choices=(4, 8), alpha_init=2.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float32)


def with_bits(variables, choices):
  """Variables with bit-widths drawn among some."""
  rng = np.random.default_rng(1)
  drawn = lambda b: rng.choice(choices, np.shape(b)).astype(np.float32)
  return {**variables, 'bits': jax.tree.map(drawn, variables['bits'])}


@functools.cache
def shipped(name):
  """A network of the package at 4 and 8 bits with statistics of its own, as something to export."""
  quant = LSQ if name == 'resnet20' else dataclasses.replace(LSQ, granularity='kernel', kernel_ranges='channel')
  model = models.create(name, num_classes=5, small_images=True, quant=quant, width=0.5)
  variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
  if 'batch_stats' in variables:
    step = jax.jit(lambda v: model.apply(v, IMAGES, train=True, mutable=['batch_stats'])[1])
    for _ in range(8):
      variables = {**variables, **step(variables)}
  model = wrap.with_fixed_bits(model)
  return source_of(model, with_bits(variables, (4, 8)), IMAGES, input_range=(0, 255))


@functools.cache
def served(name):
  """What Qwix makes of its folder, read back."""
  source = shipped(name)
  content, _ = qwix_format.built(source)
  return qwix_serve.linen(content, source.model, IMAGES), content


@pytest.mark.parametrize(('name', 'layers'), [('resnet20', 20), ('vit_mini', 26)])
def test_each_layer_gives_the_same_for_the_same_inputs(name, layers):
  """But for the rounding of float32: Qwix scales sums of integers, the network sums scaled numbers."""
  source, ((net, variables), content) = shipped(name), served(name)
  assert len(content.rules) == layers
  seen = {}
  with watch_layers(lambda module, x, y: seen.update({module.path: (x, y)})):
    source.model.apply(source.variables, IMAGES)
  found = {}

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != '__call__' or module.path not in seen or module.path in found:
      return call(*args, **kwargs)
    found[module.path] = None
    found[module.path] = call(jnp.asarray(seen[module.path][0]))
    return found[module.path]

  with nn.intercept_methods(intercept):
    net.apply(variables, jnp.asarray(IMAGES))
  products = [path for path in seen if f'params/{"/".join(path)}/kernel' in content.qtypes]
  assert len(products) == layers
  for path in products:
    expected = np.asarray(seen[path][1])
    np.testing.assert_allclose(found[path], expected, atol=2e-6 * np.abs(expected).max(), err_msg='/'.join(path))


@pytest.mark.parametrize('name', ['resnet20', 'vit_mini'])
def test_answers_agree_and_the_parameters_are_a_quarter(name, tmp_path):
  source = shipped(name)
  said = qwix_format.write(source, tmp_path / 'net', examples=IMAGES)
  assert said.startswith(f'{tmp_path / "net"}: ')
  assert 'answers of Qwix for 4 examples differ by at most' in said
  net, variables = qwix_format.load(
    tmp_path / 'net', models.create(name, num_classes=5, small_images=True, width=0.5), IMAGES
  )
  found, expected = jax.jit(net.apply)(variables, IMAGES), jax.jit(source.model.apply)(source.variables, IMAGES)
  # A value between two codes may be rounded to either, and the layers behind it follow.
  assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
  assert np.mean(found.argmax(-1) == expected.argmax(-1)) >= 0.75
  floats = jax.eval_shape(wrap.without_quantization(source.model).init, jax.random.key(0), IMAGES)
  share = qwix_serve.parameter_bytes(variables['params']) / qwix_serve.parameter_bytes(floats['params'])
  assert share < 0.35


@pytest.mark.parametrize(('weight_only', 'group_size', 'tied'), [(True, 16, True), (False, None, False)])
def test_a_decoder_answers_the_same(weight_only, group_size, tied, tmp_path):
  """Groups of weights are tiles of Qwix; a head that is the table of embeddings stays real."""
  tokens = np.random.default_rng(0).integers(0, 20, (2, 8)).astype(np.int32)
  quant = dataclasses.replace(LSQ, weight_only=weight_only, group_size=group_size, kernel_ranges='channel')
  model = models.create('gpt_mini', num_classes=20, quant=quant, width=0.25, tied=tied, mlp='gelu', depth=1)
  variables = with_bits(jax.jit(model.init)(jax.random.key(0), tokens), (4, 8))
  source = source_of(wrap.with_fixed_bits(model), variables, tokens)
  qwix_format.write(source, tmp_path / 'net', examples=tokens)
  net, served = qwix_format.load(tmp_path / 'net', model, tokens)
  expected = jax.jit(source.model.apply)(source.variables, tokens)
  np.testing.assert_allclose(jax.jit(net.apply)(served, tokens), expected, atol=1e-5 * np.abs(expected).max())
  scale = served['params']['layers_0']['down']['kernel'].array.scale
  assert scale.shape == (8 if group_size else 1, 32)
  rules = json.loads((tmp_path / 'net' / 'rules.json').read_text())['rules']
  assert {rule.get('tile_size') for rule in rules} == {group_size}


def test_groups_that_do_not_divide_are_refused(tmp_path):
  layer = QuantDense(4, quant=dataclasses.replace(LSQ, group_size=8, weight_only=True))
  x = np.ones((2, 12), np.float32)
  source = source_of(layer, with_bits(layer.init(jax.random.key(0), x), (4,)), x)
  with pytest.raises(ValueError, match=r'groups of 8 weights, and Qwix has whole ones along one axis, of 12 here'):
    qwix_format.write(source, tmp_path / 'net')


def test_levels_of_a_kernel_are_exact():
  source = shipped('vit_mini')
  (_, variables), _ = served('vit_mini')
  qarrays = traverse_util.flatten_dict(variables['params'], sep='/')
  kernels = {node.params['layer']: node.params['kernel'] for node in source.graph.nodes if node.op == 'kernel'}
  for layer, kernel in kernels.items():
    found = qwix.dequantize(qarrays[f'{layer}/kernel'].array)
    np.testing.assert_array_equal(found, kernel.value, err_msg=layer)
  assert {qarrays[f'{layer}/kernel'].array.qvalue.dtype for layer in kernels} <= {jnp.dtype('int4'), jnp.dtype('int8')}


GRIDS = [
  *[(bits, False, 0, True) for bits in range(1, 9)],
  *[(bits, False, 0, False) for bits in (4, 8)],
  *[(bits, True, 0, False) for bits in range(2, 9)],
  *[(bits, True, moved, False) for bits in (4, 8) for moved in (-3, 5, 2 ** (bits - 1))],
]


@pytest.mark.parametrize(('bits', 'signed', 'moved', 'nonnegative'), GRIDS)
def test_qwix_rounds_inputs_to_the_levels_of_the_network(bits, signed, moved, nonnegative):
  grid = Grid(bits=bits, alpha=1.37, signed=signed, scheme='lsq', moved=moved)
  x = np.linspace(0 if nonnegative else -6, 6, 4001, dtype=np.float32)
  x = x[np.abs((x / grid.scale) % 1 - 0.5) > 1e-3]  # but for those in the middle between two
  taken = qwix_types.of_inputs('a', grid, nonnegative=nonnegative, is_conv=False)
  found = qwix.quantize(x[None], taken.qtype, calibration_method=taken.method)
  np.testing.assert_allclose(qwix.dequantize(found)[0], grid.quantize(x), rtol=3e-7, atol=3e-7)


class Plain(nnx.Module):
  """Convolutions, batch norms and dense layers of NNX."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), padding='SAME', rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.blocks = nnx.List([nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs), nnx.Linear(128, 12, rngs=rngs)])
    self.last = nnx.Linear(12, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    x = nnx.relu(self.blocks[0](x)).reshape(x.shape[0], -1)
    return self.last(nnx.gelu(self.blocks[1](x)))


def test_nnx_is_served_as_linen_is(tmp_path):
  x = np.random.default_rng(3).standard_normal((4, 8, 8, 3)).astype(np.float32)
  model = quantize_model(Plain(nnx.Rngs(0)), x, default=LSQ)
  model.norm.scale[...] = jnp.linspace(0.5, 1.5, 8)
  bits = with_bits({'bits': nnx_adapter.bits(model)}, (4, 8))['bits']
  bits['blocks']['0']['input'] = np.float32(8)
  nnx_adapter.set_bits(model, bits, fixed=True)
  said = qwix_format.write(source_of(model, None, x), tmp_path / 'net', examples=x)
  assert 'answers of Qwix for 4 examples' in said
  net = qwix_format.load_nnx(tmp_path / 'net', Plain(nnx.Rngs(1)), x)
  expected = np.asarray(model(x))
  np.testing.assert_allclose(net(x), expected, atol=1e-5 * np.abs(expected).max())
  assert net.blocks[1].kernel.array.qvalue[...].dtype in (jnp.int4, jnp.int8)


def test_a_network_of_ones_own_with_attention_is_served(tmp_path):
  source, x = export_nets.transformer()
  source = dataclasses.replace(source, variables=with_bits(source.variables, (2, 3, 4, 8)))
  qwix_format.write(source, tmp_path / 'net', examples=x)
  net, variables = qwix_format.load(tmp_path / 'net', source.model.model, x)
  found, expected = net.apply(variables, x), np.asarray(source.model.apply(source.variables, x))
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  query = variables['params']['MultiHeadDotProductAttention_0']['query']['kernel'].array
  assert query.shape == (8, 2, 4)


VECTORS = np.random.default_rng(0).uniform(-3, 3, (4, 6)).astype(np.float32)


class Only(nn.Module):
  """One layer, or two behind one another."""

  quant: QuantConfig | None
  conv: bool = False
  first: bool = False

  @nn.compact
  def __call__(self, x):
    if self.first:
      x = nn.Dense(6)(x)
    if self.conv:
      return QuantConv(4, (1,), quant=self.quant, name='layer')(x[:, :, None])
    return QuantDense(4, quant=self.quant, name='layer')(x)


def only(bits=8, kernel=8, net=Only, **how):
  """One layer as something to export."""
  fields = {name: how.pop(name) for name in ('conv', 'first') if name in how}
  model = net(QuantConfig(**{'scheme': 'lsq', 'alpha_init': 2.0, 'choices': None, **how}, learned=False), **fields)
  variables = jax.jit(model.init)(jax.random.key(0), VECTORS)
  widths = {'input': np.float32(bits), 'kernel': np.float32(kernel)}
  if how.get('input_offset'):
    variables['params']['layer']['alpha'] = jnp.asarray([2.0, 1.0])
  variables['bits']['layer'] = {name: widths[name] for name in variables['bits']['layer']}
  return source_of(model, variables, VECTORS)


@pytest.mark.parametrize(
  ('kernel', 'how'), [(2, {}), (1, {}), (3, {'weight_only': True}), (5, {'scheme': 'original', 'weight_only': True})]
)
def test_other_widths_and_weights_alone(kernel, how, tmp_path):
  source = only(kernel=kernel, **how)
  qwix_format.write(source, tmp_path / 'net', examples=VECTORS)
  net, variables = qwix_format.load(tmp_path / 'net', source.model, VECTORS)
  found, expected = net.apply(variables, VECTORS), source.model.apply(source.variables, VECTORS)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  act = json.loads((tmp_path / 'net' / 'rules.json').read_text())['rules'][0]['act_qtype']
  assert act == (None if how.get('weight_only') else 'int8')


class Residual(nn.Module):
  """A sum of quantized values."""

  quant: QuantConfig | None

  @nn.compact
  def __call__(self, x):
    x = QuantIdentity(quant=self.quant, name='layer')(x)
    of_layer = None if self.quant is None else dataclasses.replace(self.quant, kernel_bits=8)
    return x + QuantDense(6, quant=of_layer, input_from='layer', name='dense')(x)


SIGNED = dict(signed_input=True)
REFUSED = {
  r"kernel of layer has 12 bits, and Qwix takes up to 8: search with --config.quant.choices='\(4, 8\)'": dict(
    kernel=12
  ),
  r"inputs of layer have 9 bits, .*choices='\(4, 8\)'": dict(bits=9),
  r'kernel of layer has its zero between two levels of 8 bits, .* --config.quant.scheme=lsq and kernel_levels=': dict(
    scheme='original'
  ),
  r'inputs of layer have their zero between two levels, .* --config.quant.scheme=lsq': dict(
    scheme='modified', **SIGNED
  ),
  r"inputs of layer may be negative and are cut at 0 to 5 bits, .*input_choices='\(8,\)'": dict(bits=5),
  r"inputs of layer have a range with an offset at 5 bits, .*input_choices='\(8,\)'": dict(
    bits=5, input_offset=True, **SIGNED
  ),
  r"inputs of layer, a convolution, have 4 bits and would be int4, .*input_choices='\(8,\)'": dict(
    bits=4, conv=True, **SIGNED
  ),
  r'layer convolves inputs that are not quantized, .*weight_only=False': dict(conv=True, weight_only=True, first=True),
  r'no layer of the network has integers .*weight_only=False': dict(conv=True, weight_only=True),
  r'layer gives quantized values to what is no layer, .*quantize_residuals=False': dict(net=Residual, **SIGNED),
}


@pytest.mark.parametrize('words', REFUSED)
def test_what_qwix_does_not_take_is_refused(words, tmp_path):
  source = only(**REFUSED[words])
  with pytest.raises(ValueError, match=words) as caught:
    qwix_format.write(source, tmp_path / 'net')
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_functions_are_refused(tmp_path):
  net = quantize_model(
    lambda params, x: x @ params['w'], VECTORS, params={'w': np.ones((6, 4), np.float32)}, default=LSQ
  )
  source = source_of(net, net.init(params={'w': np.ones((6, 4), np.float32)}), VECTORS)
  with pytest.raises(ValueError, match='is no linen or NNX network'):
    qwix_format.write(source, tmp_path / 'net')


def test_folders_of_something_else_are_refused(tmp_path):
  source = only()
  qwix_format.write(source, tmp_path / 'net')
  with pytest.raises(ValueError, match='give the network of the file'):
    qwix_format.load(tmp_path / 'net', nn.Dense(4), VECTORS)
  with pytest.raises(ValueError, match=r'params/layer/(kernel|bias) has the shape .*5,?\), and '):
    qwix_format.load(tmp_path / 'net', Other(), VECTORS)
  (tmp_path / 'net' / qwix_file.RULES).write_text('{"format": "x"}')
  with pytest.raises(ValueError, match=r'net is no network for Qwix: .*; export it anew'):
    qwix_format.load(tmp_path / 'net', Only(None), VECTORS)


class Other(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(5, name='layer')(x)


def test_two_levels_are_in_a_byte(tmp_path):
  levels = np.array([[-8, 7, 0], [-1, 1, 3], [5, -6, -2]], np.int8)
  arrays = {'k/qvalue': levels, 'k/scale': np.ones((1, 1), np.float32)}
  content = qwix_file.Content(name='n', rules=(), qtypes={'k': 'int4'}, bits={'k': 4}, arrays=arrays, notes={})
  qwix_file.write(content, tmp_path)
  np.testing.assert_array_equal(qwix_file.read(tmp_path).arrays['k/qvalue'], levels)
