"""What comes into a residual block is quantized once: layer table, gradients, policies, integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost, models, policy
from fracbits_jax.export import comparison, integer, packed
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig, watch_layers, wrap
from fracbits_jax.models.mobilenet_v2 import MobileNetV2
from fracbits_jax.models.resnet import ResNet
from fracbits_jax.policy import assignment, discretization

SHAPE = (8, 8, 3)
QUANT = QuantConfig(scheme='lsq', init_bits=4.5, quantize_residuals=True)
create = functools.partial(models.create, 'tiny_resnet8', num_classes=4, width=0.25)


@functools.cache
def images():
  return jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, *SHAPE)), jnp.float32)


@functools.cache
def network():
  """The network at 4.5 bits, calibrated, and its layer table."""
  model = create(quant=QUANT)
  variables = jax.jit(create().init)(jax.random.key(0), images())
  return model, wrap.from_float(model, variables, images()), cost.trace(model, SHAPE)


def test_the_bits_of_a_block_are_those_of_its_input():
  _, variables, layers = network()
  rows = {l.name: l for l in layers}
  inputs = [name for name, row in rows.items() if row.kind == 'identity']
  assert inputs == [f'stage{i}_block1_input' for i in (1, 2, 3)]
  for name in ('stage2_block1_conv1', 'stage2_block1_shortcut'):
    assert rows[name].input_path == 'stage2_block1_input'
    assert tuple(cost.learned(rows[name])) == ('kernel',)
    assert set(variables['params'][name]) == {'kernel', 'kernel_alpha'}
  assert set(variables['params']['stage2_block1_input']) == {'alpha'}
  assert tuple(cost.learned(rows['stage2_block1_input'])) == ('input',)
  assert jax.tree.structure(variables['bits']) == jax.tree.structure(cost.uniform_bits(layers, 4.5))
  # The same multiply-accumulates, weights and, at uniform bits, costs as without.
  plain = cost.trace(create(quant=QuantConfig(scheme='lsq')), SHAPE)
  for metric in (cost.bitops, cost.model_size):
    assert metric(cost.uniform_bits(layers, 3), layers) == metric(cost.uniform_bits(plain, 3), plain)
  assert layers.coverage == plain.coverage
  table = cost.format_table(variables['bits'], layers).split('\n')
  assert next(line.split() for line in table if 'block1_input' in line)[1:3] == ['4.50', '0.000']


def test_a_float_network_and_one_without_the_setting_have_no_such_layer():
  for model in (create(), create(quant=QuantConfig())):
    assert not [l for l in cost.trace(model, SHAPE) if l.kind == 'identity']


def test_a_convolution_and_its_shortcut_see_the_same_quantized_values():
  model, variables, _ = network()
  seen = {}

  def watch(module, x, y):
    seen[module.name] = np.asarray(x), np.asarray(y)

  with watch_layers(watch):
    model.apply({**variables, 'bits': jax.tree.map(lambda b: jnp.full_like(b, 2.0), variables['bits'])}, images())
  codes = seen['stage2_block1_input'][1]
  assert np.unique(codes).size <= 4 < np.unique(seen['stage2_block1_input'][0]).size
  for name in ('stage2_block1_conv1', 'stage2_block1_shortcut'):
    np.testing.assert_array_equal(seen[name][0], codes)


def test_bits_of_what_comes_in_have_gradients_of_loss_and_budget():
  model, variables, layers = network()
  budget = cost.budget('bitops', layers, equivalent_bits=3)

  def loss(bits):
    logits = model.apply({**variables, 'bits': bits}, images())
    return jnp.sum(jnp.square(logits)), budget.penalty(bits, layers)

  of_loss, of_budget = jax.jit(jax.jacobian(loss))(variables['bits'])
  for name in ('stage1_block1_input', 'stage2_block1_input'):
    assert of_loss[name]['input'] != 0
    assert of_budget[name]['input'] > 0
  # d (M w a) / d a is that of the convolution and of the shortcut together.
  rows = {l.name: l for l in layers}
  macs = rows['stage2_block1_conv1'].macs + rows['stage2_block1_shortcut'].macs
  expected = macs * 4.5e-9 / budget.target
  np.testing.assert_allclose(of_budget['stage2_block1_input']['input'], expected, rtol=1e-5)


def test_a_policy_is_written_read_and_checked(tmp_path):
  _, _, layers = network()
  rng = np.random.default_rng(1)
  bits = cost.fill_bits(layers, lambda layer, which, shape, choices: rng.uniform(2, 7, shape))
  budget = cost.budget('bitops', layers, equivalent_bits=3)
  found = policy.discretize(bits, layers, budget)
  assert 0.98 * budget.target < found.cost <= budget.target
  found.save(tmp_path / 'policy.json')
  read = policy.load(tmp_path / 'policy.json', layers)
  assert read == found
  entries = {e.name: e for e in read.layers}
  assert entries['stage2_block1_conv1'].input == entries['stage2_block1_input'].input
  text = (tmp_path / 'policy.json').read_text()
  line = next(line for line in text.split('\n') if 'stage2_block1_shortcut' in line)
  wrong = line.replace(f'"input": {entries["stage2_block1_input"].input}', '"input": 1')
  (tmp_path / 'policy.json').write_text(text.replace(line, wrong))
  with pytest.raises(ValueError, match='shortcut has 1 input bits in the policy, where stage2_block1_input makes'):
    policy.load(tmp_path / 'policy.json', layers)


def test_searches_over_whole_layers_take_common_bits_as_one():
  _, _, layers = network()
  budget = cost.budget('bitops', layers, equivalent_bits=3)
  slots = [(l.name, which, c) for l in layers for which, (_, c) in cost.learned(l).items()]
  scores = {(name, which): {b: 2.0**-b for b in choices} for name, which, choices in slots}
  solved = assignment.solve(scores, layers, budget)
  assert 0.98 * budget.target < solved.cost <= budget.target
  vector = discretization.Vector(layers, budget)
  wanted = vector.positions(cost.uniform_bits(layers, 3.4))
  filled = discretization._knapsack(vector, wanted, vector.round(wanted - 1))
  assert 0.99 <= vector.cost(filled) <= 1


def discretized():
  model, variables, layers = network()
  rng = np.random.default_rng(2)
  bits = cost.fill_bits(layers, lambda layer, which, shape, choices: rng.integers(3, 7, shape))
  return wrap.with_fixed_bits(model), {**variables, 'bits': bits}


def test_packed_integers_compute_what_the_network_does(tmp_path):
  model, variables = discretized()
  source = source_of(model, variables, images(), input_range=(0, 255))
  packed.write(source, tmp_path / 'net.fracbits')
  read = packed.read(tmp_path / 'net.fracbits')
  rows = {row['name']: row for row in read.layers}
  assert rows['stage2_block1_input']['kernel'] == 0
  assert integer.float_operations(read.graph) == ()
  found = comparison.compare(read.graph, np.asarray(images()), reference=source.graph)
  assert found.codes > 0
  assert found.different <= 1
  logits = integer.inference(read.graph)(images())[0]
  np.testing.assert_allclose(logits, model.apply(variables, images()), atol=0.02 * found.largest_output)


def test_files_for_others_have_one_quantizer_for_all_that_read_it(tmp_path):
  onnx = pytest.importorskip('onnx')
  from fracbits_jax.export import onnx_format, qonnx_format

  model, variables, layers = network()
  variables = {**variables, 'bits': cost.uniform_bits(layers, 4)}
  source = source_of(wrap.with_fixed_bits(model), variables, images(), input_range=(0, 255))
  onnx_format.write(source, tmp_path / 'net.onnx')  # if onnxruntime gives the same answers
  qonnx_format.write(source, tmp_path / 'net.qonnx')
  nodes = onnx.load(tmp_path / 'net.qonnx').graph.node
  activations = {x for node in nodes if node.op_type != 'Quant' for x in node.output}
  quantizers = [node for node in nodes if node.op_type == 'Quant' and node.input[0] in activations]
  assert len(quantizers) == len([l for l in layers if l.owns_input and l.input_bits is None])


@pytest.mark.parametrize(
  ('model', 'inputs'),
  [
    (functools.partial(ResNet, stages=(1, 1), bottleneck=True), {'stage1_block1', 'stage2_block1'}),
    (functools.partial(MobileNetV2), {f'block{i}' for i in (1, 3, 5, 6, 8, 9, 10, 12, 13, 15, 16)}),
  ],
)
def test_other_networks_with_residual_sums(model, inputs):
  model = model(num_classes=4, width=0.125, small_images=True, quant=QUANT)
  rows = {l.name: l for l in cost.trace(model, (32, 32, 3))}
  assert {name.removesuffix('_input') for name, row in rows.items() if row.kind == 'identity'} == inputs
  for block in inputs:
    readers = {name for name, row in rows.items() if row.input_path == f'{block}_input'} - {f'{block}_input'}
    assert readers <= {f'{block}_{part}' for part in ('conv1', 'shortcut', 'expand', 'depthwise')}
    assert readers


@pytest.mark.parametrize('name', ['mobilenet_v1', 'preact_resnet18', 'vit_mini'])
def test_networks_without_such_sums_refuse_the_setting(name):
  with pytest.raises(ValueError, match='has no residual sums of quantized values: leave quantize_residuals=False'):
    cost.trace(models.create(name, quant=QUANT), (32, 32, 3))
  with pytest.raises(ValueError, match='weight_only=True leaves as they are'):
    QuantConfig(quantize_residuals=True, weight_only=True)
