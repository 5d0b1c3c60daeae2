"""Networks as others write them, in every format, executed by what others wrote."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import plain_nets
import pytest
from flax import linen as nn
from plain_nets import INPUTS

from benchmarks.robustness import onnx_networks
from fracbits_jax import from_float, quantize_model
from fracbits_jax.export import floats, integer, onnx_check, onnx_format, packed, qonnx_format, stablehlo
from fracbits_jax.export.source import policy_of, source_of
from fracbits_jax.graph import graph
from fracbits_jax.layers import QuantConfig

FINE = {'equal', 'equal but for ties'}
TRANSFORMERS = (plain_nets.Bert, plain_nets.Gpt2, plain_nets.Vit)


def given(found):
  return [np.asarray(x) for x in jax.tree.leaves(found)]


def assert_close(found, expected, tolerance=1e-5):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1))


def evaluated(found, inputs):
  """What a graph gives, as one program: by themselves its operations take longer to compile than all together."""
  return given(jax.jit(lambda x: graph.evaluate(found, x)[0])(inputs))


def written_and_read(source, path):
  """The graph of a packed file that is written and read."""
  packed.write(source, path)
  return packed.read(path).graph


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_transformers_give_their_answers_as_packed_qonnx_and_onnx(kind, tmp_path):
  source, expected = plain_nets.source(kind, (2, 4, 8))
  assert {2, 4, 8} <= {entry.kernel for entry in policy_of(source).layers}
  found = written_and_read(source, tmp_path / 'net')
  assert_close(evaluated(found, INPUTS[kind]), expected)
  assert '; checked with onnxruntime' in onnx_format.write(source, tmp_path / 'net.onnx')
  file = onnx_format.built(source)
  assert_close(onnx_check.run(file.content, file.orders, INPUTS[kind]), expected)
  first = tuple(x[:1] for x in INPUTS[kind])
  assert_close(onnx_check.run(file.content, file.orders, first), [x[:1] for x in expected])
  verdicts = dict(onnx_networks.qonnx_verdicts(source, INPUTS[kind]))
  assert set(verdicts.values()) <= FINE, verdicts


@pytest.mark.parametrize('kind', [plain_nets.Lstm, plain_nets.Scanned, plain_nets.Experts])
def test_loops_and_stacks_give_their_answers_in_every_format(kind, tmp_path):
  source, expected = plain_nets.source(kind, (2, 4, 8))
  found = written_and_read(source, tmp_path / 'net')
  assert_close(evaluated(found, INPUTS[kind]), expected)
  assert_close(given(integer.inference(found, integer_inputs=False)(INPUTS[kind])[0]), expected)
  for verdicts in (onnx_networks.onnx_verdicts, onnx_networks.qonnx_verdicts):
    wrong = {how: verdict for how, verdict in verdicts(source, INPUTS[kind]) if verdict not in FINE}
    assert wrong == {}


@pytest.mark.parametrize('kind', [*TRANSFORMERS, plain_nets.Lstm, plain_nets.Experts])
def test_stablehlo_gives_their_answers(kind, tmp_path):
  source, expected = plain_nets.source(kind, (2, 4, 8))
  assert 'any number of examples' in stablehlo.write(source, tmp_path / 'net')
  program = jax.export.deserialize((tmp_path / 'net').read_bytes())
  assert_close(given(program.call(*(x[:1] for x in INPUTS[kind]))), [x[:1] for x in expected])


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_integers_give_their_answers(kind):
  source, expected = plain_nets.source(kind, (8,))
  assert_close(given(integer.inference(source.graph, integer_inputs=False)(INPUTS[kind])[0]), expected, 1e-4)
  in_float = integer.float_operations(source.graph, integer_inputs=False)
  ops = {node.output: node.op for node in source.graph.nodes}
  kinds = [ops[name] for name in in_float]
  assert 'gather' not in kinds  # words are looked up among integers
  assert kinds.count('dot_general') <= 2  # those of attention alone


def test_inputs_and_outputs_have_the_networks_names(tmp_path):
  source, _ = plain_nets.source(plain_nets.Bert, (4,))
  names = ['input_ids', 'attention_mask', 'token_type_ids']
  for found in (source.graph, written_and_read(source, tmp_path / 'net')):
    assert [x.name for x in found.inputs] == names
    assert {x.dtype for x in found.inputs} == {'int32'}
    assert found.output_names == ('last_hidden_state', 'pooler_output')
  file = onnx.load_from_string(onnx_format.built(source).content).graph
  assert [x.name for x in file.input] == names
  assert [x.name for x in file.output] == ['last_hidden_state', 'pooler_output']


def test_a_tied_table_is_stored_once():
  source, _ = plain_nets.source(plain_nets.Gpt2, (4,))
  kernels = [node.params['kernel'] for node in source.graph.nodes if node.op == 'kernel']
  tables = [kernel for kernel in kernels if kernel.codes.shape == (plain_nets.WIDTH, plain_nets.WORDS)]
  assert len(tables) == 1
  assert tables[0].alpha.shape == (plain_nets.WORDS,)  # a range for each word


def test_each_layer_of_a_loop_has_its_name_and_its_bits():
  source, _ = plain_nets.source(plain_nets.Scanned, (2, 4, 8))
  names = {entry.name for entry in source.layers}
  kernels = {node.params['layer']: node.params['kernel'] for node in source.graph.nodes if node.op == 'kernel'}
  assert {'layers/0/Dense_0', 'layers/1/Dense_0'} < set(kernels) == names
  bits = source.variables['bits']['layers']['Dense_0']['kernel']
  assert [kernels[f'layers/{i}/Dense_0'].bits for i in range(2)] == list(bits)
  experts, _ = plain_nets.source(plain_nets.Experts, (4,))
  found = [node.params['layer'] for node in experts.graph.nodes if node.op == 'kernel']
  assert [name for name in found if name.startswith('experts')] == ['experts/0', 'experts/1', 'experts/2']


def test_products_that_a_rule_quantizes_are_products_of_integers():
  rule = ('.*product.*', QuantConfig(scheme='lsq', init_bits=4))
  source, expected = plain_nets.source(plain_nets.Vit, (4,), rule)
  layers = [node.params['layer'] for node in source.graph.nodes if node.op == 'quantize']
  assert sum('product' in name for name in layers) == 4
  found, _ = integer.inference(source.graph, integer_inputs=False)(INPUTS[plain_nets.Vit])
  assert_close([found], expected, 1e-4)
  in_float = integer.float_operations(source.graph, integer_inputs=False)
  assert not any(name.startswith('dot_general') for name in in_float)
  verdicts = dict(onnx_networks.onnx_verdicts(source, INPUTS[plain_nets.Vit]))
  assert set(verdicts.values()) <= FINE, verdicts


class Several(nn.Module):
  """Inputs of several kinds, by position, in a dictionary and by keyword; a flag; several outputs."""

  @nn.compact
  def __call__(self, state, more, *, keep, twice=False):
    x = nn.Dense(4)(state) + more['other'].astype(state.dtype)
    x = jnp.where(keep[:, None], x, 0.0)
    return (2 * x if twice else x), more['steps'] + 1


@functools.cache
def several():
  rng = np.random.default_rng(0)
  state, other = rng.standard_normal((3, 5)).astype(np.float32), rng.integers(0, 9, (3, 1)).astype(np.int32)
  inputs, keep = (state, {'other': other, 'steps': np.int32(7)}), np.array([True, False, True])
  model = Several()
  net = quantize_model(model, inputs, keep=keep, twice=True)
  variables = from_float(net, model.init(jax.random.key(0), *inputs, keep=keep), inputs, keep=keep, twice=True)
  variables = {**variables, 'bits': jax.tree.map(jnp.round, variables['bits'])}
  source = source_of(net, variables, inputs, keep=keep, twice=True)
  return source, inputs, keep, given(net.apply(variables, *inputs, keep=keep, twice=True))


def test_inputs_of_every_kind(tmp_path):
  source, (state, more), keep, expected = several()
  arrays = {'state': state, **more, 'keep': keep}
  found = written_and_read(source, tmp_path / 'net')
  assert {x.name: (x.shape, x.dtype) for x in found.inputs} == {
    'state': ((-1, 5), 'float32'),
    'other': ((-1, 1), 'int32'),
    'steps': ((), 'int32'),
    'keep': ((-1,), 'bool'),
  }
  assert found.output_names == ('output_0', 'output_1')
  assert_close(evaluated(found, arrays), expected)
  assert_close(given(integer.inference(found, integer_inputs=False)(arrays)[0]), expected)
  eight = dataclasses.replace(
    source, variables={**source.variables, 'bits': jax.tree.map(lambda b: b * 0 + 8, source.variables['bits'])}
  )
  assert set(dict(onnx_networks.onnx_verdicts(eight, arrays)).values()) <= FINE
  stablehlo.write(source, tmp_path / 'net.stablehlo')
  program = jax.export.deserialize((tmp_path / 'net.stablehlo').read_bytes())
  assert_close(given(program.call(state, more, keep=keep)), expected)
  with pytest.raises(ValueError, match='1 inputs for a network that takes 4: state, other, steps, keep'):
    graph.evaluate(found, state)


def test_a_quantized_function_is_exported(tmp_path):
  def function(params, x):
    return jnp.tanh(x @ params['kernel']['w'])

  x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
  params = {'kernel': {'w': jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)), jnp.float32)}}
  net = quantize_model(function, x, params=params)
  variables = from_float(net, {'params': params}, x)
  source = source_of(net, variables, x)
  assert_close(evaluated(written_and_read(source, tmp_path / 'net'), x), given(net.apply(variables, x)))


def test_stablehlo_takes_any_function(tmp_path):
  def function(variables, x, *, times):
    ordered = jnp.linalg.inv(variables['w']) @ jax.lax.while_loop(lambda y: (y < 9).all(), lambda y: y * times, x)
    return {'largest': jnp.cbrt(ordered), 'of': [x]}

  source = source_of(function, {'w': jnp.eye(3) * 2}, jnp.ones((3, 2)), batch_axes=None, times=3)
  stablehlo.write(source, tmp_path / 'net')
  found = jax.export.deserialize((tmp_path / 'net').read_bytes()).call(jnp.ones((3, 2)))
  np.testing.assert_allclose(found['largest'], np.cbrt(4.5), rtol=1e-5)
  with pytest.raises(ValueError, match=r"operation '\w+',? .*cannot be exported .* --format stablehlo"):
    packed.write(source, tmp_path / 'net')


class Halves(nn.Module):
  """A network in bfloat16."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4, dtype=jnp.bfloat16)(x)
    return nn.Dense(3, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))


def test_a_network_in_bfloat16(tmp_path):
  x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
  model = Halves()
  net = quantize_model(model, x)
  variables = from_float(net, model.init(jax.random.key(0), x), x)
  source = source_of(net, {**variables, 'bits': jax.tree.map(lambda b: b * 0 + 8, variables['bits'])}, x)
  expected = given(jax.jit(net.apply)(source.variables, x))[0].astype(np.float32)
  found = written_and_read(source, tmp_path / 'net')
  assert {node.dtype for node in found.nodes} >= {'bfloat16'}
  (in_bfloat16,) = (y.astype(np.float32) for y in evaluated(found, x))
  np.testing.assert_allclose(in_bfloat16, expected, atol=0.02 * np.abs(expected).max())
  assert 'computes in float32 what the network computes in bfloat16' in onnx_format.write(source, tmp_path / 'net.onnx')
  file, in_float32 = onnx_format.built(source), floats.in_float32(source.graph)
  (y,) = onnx_check.run(file.content, file.orders, x)
  assert_close([y], evaluated(in_float32, x))
  np.testing.assert_allclose(y, expected, atol=0.05 * np.abs(expected).max())
  qonnx_format.write(source, tmp_path / 'net.onnx')


def test_a_network_that_asks_for_its_number_of_examples_has_a_fixed_one(tmp_path):
  class Asks(nn.Module):
    @nn.compact
    def __call__(self, x):
      weights = np.arange(1, 1 + int(x.shape[0]), dtype=np.float32)[:, None]
      return nn.Dense(3)(x * weights)

  x, model = np.ones((4, 5), np.float32), Asks()
  net = quantize_model(model, x)
  variables = from_float(net, model.init(jax.random.key(0), x), x)
  source = source_of(net, variables, x)
  said = 'takes 4 examples at once, as the network cannot be traced for any number'
  for module in (packed, onnx_format, qonnx_format, stablehlo):
    assert said in module.write(source, tmp_path / 'net')
  packed.write(source, tmp_path / 'net')
  found = packed.read(tmp_path / 'net').graph
  assert found.inputs[0].shape == (4, 5)
  assert_close(evaluated(found, x), given(net.apply(variables, x)))


@pytest.mark.parametrize(
  ('function', 'words'),
  [
    (
      jnp.cbrt,
      "operation 'cbrt' in Outer/inner cannot be exported as packed, qonnx or onnx: export with --format stab",
    ),
    (jax.scipy.special.erfinv, "operation 'erf_inv' in Outer/inner .* as ONNX: export with --format packed or"),
    (lambda x: jax.lax.fori_loop(0, 999, lambda i, x: x + 1, x), "'scan' in Outer/inner, a loop of 999 passes"),
  ],
)
def test_what_a_format_cannot_express_is_named_with_its_place_and_the_formats_that_can(function, words, tmp_path):
  class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(function(x))

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Inner(name='inner')(x)

  x, model = np.full((2, 4), 0.5, np.float32), Outer()
  net = quantize_model(model, x)
  source = source_of(net, from_float(net, model.init(jax.random.key(0), x), x), x)
  with pytest.raises(ValueError, match=words):
    onnx_format.write(source, tmp_path / 'net.onnx')
  stablehlo.write(source, tmp_path / 'net')
  assert [path.name for path in tmp_path.iterdir()] == ['net']
