"""LiteRT files, run by LiteRT's interpreter and by tflite-micro's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_nets import IMAGES
from flax import linen as nn

pytest.importorskip('ai_edge_litert', reason='the extra litert is not installed')

from benchmarks.shared import litert_codes, litert_runtimes
from fracbits_jax.export import integer, litert_format, litert_plan
from fracbits_jax.export.source import source_of
from fracbits_jax.graph.graph import Graph, Node, evaluate
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense, QuantIdentity

RUNTIMES = [
  *('XNNPACK', 'LiteRT'),
  pytest.param(
    litert_runtimes.MICRO,
    marks=pytest.mark.skipif(litert_runtimes.micro is None, reason='tflite-micro has wheels for Linux on x86-64 alone'),
  ),
]
PIXELS = IMAGES[:4]


def with_bits(source, kernel, inputs=8):
  """A source with other bit-widths: a function of those of kernels, and those of inputs."""
  change = lambda path, b: np.full(b.shape, inputs) if path[-1].key == 'input' else kernel(np.asarray(b))
  bits = jax.tree_util.tree_map_with_path(lambda path, b: change(path, b).astype(np.float32), source.variables['bits'])
  return dataclasses.replace(source, variables={**source.variables, 'bits': bits})


def to_standard_widths(bits):
  return 2.0 ** np.clip(np.round(np.log2(bits)), 1, 3)


class Layers(nn.Module):
  """Layers of all kinds, sums, and what stands between them; channels of the batch norm have all signs."""

  quant: QuantConfig

  @nn.compact
  def __call__(self, x):
    on_images = dataclasses.replace(self.quant, kernel_bits=8, input_bits=8, weight_only=True)
    conv = lambda *args, **how: lambda x: nn.relu(QuantConv(*args, quant=self.quant, bias_init=_bias, **how)(x))
    whole = dataclasses.replace(self.quant, kernel_ranges='layer')  # dense layers of one range
    x = QuantConv(8, (3, 3), padding=1, quant=on_images, use_bias=False)(x - 128.0)
    x = jnp.minimum(nn.BatchNorm(use_running_average=True, scale_init=_signs)(0.08 * x), 6.0)
    x = conv(16, (3, 3), strides=2, padding=1, feature_group_count=8)(x)
    x = conv(12, (3, 3), padding='SAME', feature_group_count=2)(x)
    x = QuantIdentity(quant=self.quant)(x)
    y = QuantConv(12, (3, 3), kernel_dilation=2, padding='SAME', quant=self.quant, input_from='QuantIdentity_0')(x)
    x = 8 * nn.BatchNorm(use_running_average=True, scale_init=_signs)(x + y)
    x = nn.max_pool(x, (2, 2), (1, 1), padding=((1, 0), (0, 0)))
    signed = dataclasses.replace(self.quant, signed_input=True)
    x = nn.relu(QuantConv(16, (2, 2), padding='VALID', quant=signed, bias_init=_bias)(x))
    x = nn.avg_pool(x[:, :, 1:], (2, 2), (2, 1))
    x = jnp.concatenate([conv(4, (1, 1))(x), conv(4, (1, 1))(x)], -1).reshape(x.shape[0], -1)
    x = nn.relu(QuantDense(16, quant=whole, bias_init=_bias)(x))
    return QuantDense(5, quant=dataclasses.replace(whole, kernel_bits=8))(x)


def _signs(key, shape, dtype=jnp.float32):
  return jnp.resize(jnp.asarray([1, -1, 0, 0.5], dtype), tuple(shape))


_bias = nn.initializers.normal(0.3)


ROUNDED_TWICE = ('QuantConv_4', 'QuantConv_5', 'QuantConv_6')


@pytest.fixture(scope='module')
def source():
  """`Layers` with 2, 4 and 8 bits side by side, but for those with 16 outputs, and some clips of their own."""
  model = Layers(QuantConfig(scheme='lsq', granularity='kernel', kernel_ranges='channel', alpha_init=6.0))
  variables = jax.jit(model.init)(jax.random.key(0), PIXELS)
  for layer, alpha in (('QuantConv_1', 8.0), ('QuantConv_4', 8.0), ('QuantConv_5', 1.5), ('QuantConv_6', 1.0)):
    variables['params'][layer]['alpha'] = jnp.float32(alpha)
  found = source_of(model, variables, PIXELS, input_range=(0, 255))
  rng = np.random.default_rng(0)
  return with_bits(found, lambda b: np.full(b.shape, 4) if b.shape == (16,) else rng.choice([2, 4, 8], b.shape))


@pytest.fixture(scope='module')
def file(source):
  return litert_format.built(source, examples=PIXELS)


@pytest.fixture(scope='module')
def inference(file):
  return integer.inference(file.graph, keep=tuple(litert_codes.layers_of(file)))


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_codes_differ_by_a_rounding(file, inference, runtime):
  """Each layer's codes, given the runtime's own before it, and the outputs."""
  outputs, codes = litert_codes.codes_of(file, runtime, litert_codes.as_int8(PIXELS))
  expected, own = inference(PIXELS, codes)
  layers = litert_codes.layers_of(file)
  assert len(layers) == 8
  for name, layer in layers.items():
    assert np.ptp(codes[name]) > 40, layer
    # Behind the sum and the average pool, numbers have been rounded that no quantizer of the network rounds.
    assert np.abs(codes[name] - own[name]).max() <= (3 if layer in ROUNDED_TWICE else 1), layer
    assert np.mean(codes[name] != own[name]) < 0.4, layer
  to = file.plan.outputs[0].quantization
  assert np.abs(outputs - np.clip(expected, *to.interval)).max() <= to.scale
  np.testing.assert_array_equal(outputs.argmax(-1), expected.argmax(-1))


@pytest.fixture(scope='module')
def wide(source):
  return litert_format.built(source, examples=PIXELS, narrow=False)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_weights_of_four_bits_take_four_and_give_the_same(file, wide, runtime):
  assert set(file.weights) == {'int4', 'int8'}
  assert set(wide.weights) == {'int8'}
  assert sum(file.weights.values()) == sum(wide.weights.values())
  assert len(wide.content) - len(file.content) > 0.4 * file.weights['int4']
  images = litert_codes.as_int8(PIXELS)
  found, (expected,) = (
    litert_runtimes.in_order(litert_runtimes.loaded(f.content, runtime), images) for f in (file, wide)
  )
  np.testing.assert_array_equal(found[0].argmax(-1), expected.argmax(-1))
  assert np.mean(np.abs(found[0].astype(int) - expected)) < 8  # biases are rounded to other steps, and that adds up


def test_operations_are_those_of_int8(file):
  """Nothing but the operations that the docs name, and no floating point anywhere."""
  ops = [operation.op for operation in file.plan.operations]
  assert ops.count('CONV_2D') == 5 + 1  # with a dense layer that has four bits
  assert ops.count('DEPTHWISE_CONV_2D') == 3  # with an average pool and the batch norm behind the sum
  assert ops.count('ADD') == ops.count('MAX_POOL_2D') == ops.count('CONCATENATION') == 1
  assert ops.count('QUANTIZE') == 1  # for the smaller of two clips
  tensors = {x for operation in file.plan.operations for x in (*operation.inputs, operation.output)}
  assert {x.dtype for x in tensors} == {'int8', 'int4', 'int32'}
  assert file.plan.inputs[0].zero == 0  # 128 is taken from the images


def test_the_arena_is_that_of_the_recording_allocator(file):
  if litert_runtimes.micro is None:
    pytest.skip('tflite-micro has wheels for Linux on x86-64 alone')
  assert 2_000 < litert_runtimes.arena_bytes(file.content) < 30_000


def test_a_file_says_what_it_is(source, tmp_path):
  said = litert_format.write(source, tmp_path / 'net.tflite', examples=PIXELS)
  size = (tmp_path / 'net.tflite').stat().st_size
  assert said.startswith(f'{tmp_path / "net.tflite"}: {size:,} bytes, ')
  assert 'loaded by LiteRT' in said


def test_weights_of_minus_128_are_one_more():
  """LiteRT's specification leaves -128 out."""
  kernel = Kernel(codes=np.array([[0, 128], [5, 0]], np.int32), bits=np.asarray(8), scheme='lsq', alpha=1.0)
  node = Node(
    op='kernel', inputs=(), output='k', shape=(2, 2), dtype='float32', params={'layer': 'a', 'kernel': kernel}
  )
  graph, changed = litert_format.narrowed(Graph(nodes=(node,), inputs=(), outputs=('k',)))
  assert changed == 2
  np.testing.assert_array_equal(graph.nodes[0].params['kernel'].codes, [[1, 128], [5, 1]])
  np.testing.assert_allclose(graph.nodes[0].params['kernel'].value, [[-127 / 128, 0], [-123 / 128, -127 / 128]])


class Only(nn.Module):
  """Something before one layer."""

  before: Any = lambda x: x
  layer: Any = QuantDense(4, quant=QuantConfig(scheme='lsq', alpha_init=2.0))
  behind: Any = lambda x: x

  def __call__(self, x):
    return self.behind(self.layer(self.before(x)))


def only(x, input_range=None, **parts):
  """`Only` with 8 bits as something to export."""
  model = Only(**parts)
  return source_of(model, jax.jit(model.init)(jax.random.key(0), x), x, input_range=input_range)


@pytest.mark.parametrize('levels', ['twos_complement', 'balanced'])
def test_real_inputs_have_the_quantizer_of_the_layer(levels):
  quant = QuantConfig(scheme='lsq', alpha_init=2.0, kernel_levels=levels, kernel_bits=4)
  source = only(VECTORS, layer=QuantDense(4, quant=quant))
  file = litert_format.built(source, examples=VECTORS)
  assert [operation.op for operation in file.plan.operations] == ['FULLY_CONNECTED']
  assert file.plan.inputs[0].quantization.scale == pytest.approx(2 / 255)
  integers = litert_codes.quantized(file, VECTORS)
  (found,) = litert_runtimes.in_order(litert_runtimes.loaded(file.content, 'LiteRT'), integers)
  expected, _ = evaluate(source.graph, VECTORS)
  np.testing.assert_allclose(litert_codes.real(file, found), expected, atol=file.plan.outputs[0].scale[0])


IMAGE_CONV = QuantConfig(scheme='lsq', kernel_bits=8, input_bits=8, weight_only=True)
COLOURS = np.array([[[[123.7, 116.3, 103.5]]]], np.float32)


def test_means_of_colours_are_in_the_bias_where_nothing_is_padded():
  layer = QuantConv(4, (3, 3), padding='VALID', quant=IMAGE_CONV)
  source = only(PIXELS, (0, 255), before=lambda x: (x - COLOURS) / 64, layer=layer)
  file = litert_format.built(source, examples=PIXELS)
  (found,) = litert_runtimes.in_order(litert_runtimes.loaded(file.content, 'LiteRT'), litert_codes.as_int8(PIXELS))
  expected, _ = evaluate(source.graph, PIXELS)
  np.testing.assert_allclose(litert_codes.real(file, found), expected, atol=file.plan.outputs[0].scale[0])


VECTORS = np.random.default_rng(0).uniform(-3, 3, (4, 6)).astype(np.float32)
dense = lambda **quant: only(VECTORS, layer=QuantDense(4, quant=QuantConfig(**quant)))
REFUSED = {
  r"inputs of layer have 4 bits, and LiteRT computes with int8: search with --config.quant.input_choices='\(8,\)'": (
    lambda: with_bits(dense(scheme='lsq'), lambda b: b, inputs=4)
  ),
  r"kernel of layer has 3 bits, .* of 2, 4 and 8: search with .*choices='\(4, 8\)'": (
    lambda: with_bits(dense(scheme='lsq'), lambda b: np.full(b.shape, 3))
  ),
  r'kernel of layer has its zero between two codes of 8 bits, .*kernel_levels=twos_complement, or ': dense,
  r'inputs of layer have their zero between two codes, .* --config.quant.scheme=lsq': (
    lambda: dense(scheme='modified', signed_input=True)
  ),
  r'network has no examples: give write\(source, path, examples=images\)': lambda: dense(scheme='lsq'),
}


@pytest.mark.parametrize('words', REFUSED)
def test_what_int8_does_not_have_is_refused(words, tmp_path):
  source = REFUSED[words]()
  with pytest.raises(ValueError, match=words) as caught:
    litert_format.write(source, tmp_path / 'net.tflite')
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


CONV = lambda **how: QuantConv(4, (3, 3), quant=IMAGE_CONV, **how)
UNWRITABLE = {
  "operation 'exp' .*has no counterpart": dict(behind=jnp.exp, layer=CONV()),
  r'the inputs of layer have a 0 that is no int8, .*image_mean': dict(before=lambda x: x - COLOURS, layer=CONV()),
  r'layer is a transposed convolution, which LiteRT files are not written for': dict(
    layer=CONV(input_dilation=2, padding=1)
  ),
  r'the inputs of layer are real numbers, .*weight_only=False': dict(before=lambda x: nn.relu(x - 9), layer=CONV()),
}


@pytest.mark.parametrize('words', UNWRITABLE)
def test_what_has_no_counterpart_is_refused(words):
  images = PIXELS[:2, :6, :6]
  source = only(images, (0, 255), **UNWRITABLE[words])
  with pytest.raises(ValueError, match=words):
    litert_format.built(source, examples=images)


def test_limits_that_no_activation_function_has_are_refused():
  with pytest.raises(ValueError, match=r'layer/input is limited to \[0.5, 1\], and LiteRT has the limits 0'):
    litert_format.built(only(VECTORS, before=lambda x: jnp.clip(x, 0.5, 1.0)), examples=VECTORS)


def test_what_litert_does_not_load_is_not_written(source, monkeypatch, tmp_path):
  monkeypatch.setattr(litert_plan.Builder, 'plan', _with_other_inputs(litert_plan.Builder.plan))
  with pytest.raises(ValueError, match=r'net.tflite is not written, for LiteRT does not run it: .* export as packed'):
    litert_format.write(source, tmp_path / 'net.tflite', examples=PIXELS)
  assert not list(tmp_path.iterdir())


def _with_other_inputs(function):
  def changed(*given):
    plan = function(*given)
    last = dataclasses.replace(plan.operations[-1], inputs=plan.operations[-1].inputs[:2] * 2)
    return dataclasses.replace(plan, operations=(*plan.operations[:-1], last))

  return changed
