"""Networks made whole with ranges by group: embeddings, tied heads, stacks, NNX, sizes and packed files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fracbits_jax import cost, from_float, policy, quantize_model
from fracbits_jax.export import c_format, integer, litert_format, onnx_format, packed, qonnx_format, stablehlo
from fracbits_jax.export.source import source_of
from fracbits_jax.graph.graph import evaluate
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.program import nnx_adapter
from fracbits_jax.quantize import groups, lsq

WORDS, WIDTH, LAYERS = 100, 48, 2
TOKENS = jax.random.randint(jax.random.key(0), (2, 5), 0, WORDS)
QUANT = QuantConfig(scheme='lsq', group_size=32, choices=(2, 3, 4, 8), init_bits=4, weight_only=True)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    heads = nn.DenseGeneral((4, 24))(nn.LayerNorm()(x))
    return x + nn.DenseGeneral(WIDTH, axis=(-2, -1))(nn.gelu(heads)), None


class Model(nn.Module):
  """A scan of blocks between an embedding and a head that is the embedding."""

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(WORDS, WIDTH)
    layers = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=LAYERS)
    x, _ = layers(name='layers')(embed(tokens), None)
    return embed.attend(x)


@pytest.fixture(scope='module')
def made():
  """The network, its variables, its layer table and the float network's answers."""
  model = Model()
  variables = jax.jit(model.init)(jax.random.key(1), TOKENS)
  net = quantize_model(model, TOKENS, default=QUANT, edge_bits=None)
  return net, from_float(net, variables, TOKENS), cost.trace(net, TOKENS), jax.jit(model.apply)(variables, TOKENS)


def test_every_weight_has_a_range_for_each_group(made):
  net, variables, table, answers = made
  shapes = jax.tree.map(jnp.shape, variables['params'])
  assert shapes['Embed_0'] == {'embedding': (WORDS, WIDTH), 'kernel_alpha': (2, WORDS)}  # along the features
  assert shapes['layers']['DenseGeneral_0']['kernel_alpha'] == (LAYERS, 2, 96)
  assert shapes['layers']['DenseGeneral_1']['kernel_alpha'] == (LAYERS, 3, WIDTH)
  assert {(l.name, l.ranges) for l in table} == {
    ('Embed_0', 2 * WORDS),
    *((f'layers/{i}/DenseGeneral_0', 2 * 96) for i in range(LAYERS)),
    *((f'layers/{i}/DenseGeneral_1', 3 * WIDTH) for i in range(LAYERS)),
  }
  found = jax.jit(net.apply)(variables, TOKENS)
  assert float(jnp.abs(found - answers).max()) < 0.3 * float(jnp.abs(answers).max())


def test_the_rows_that_are_looked_up_are_those_of_the_head(made):
  _, variables, _, _ = made
  table = variables['params']['Embed_0']
  alpha = groups.stored(table['kernel_alpha'], 16)
  expected = lsq.kernel(table['embedding'].T, 4, alpha, choices=QUANT.choices, group_size=32).T
  ends = lambda params, tokens, x: (params['embed']['table'][tokens], x @ params['embed']['table'].T)
  params, x = {'embed': {'table': table['embedding']}}, jnp.eye(WIDTH)
  net = quantize_model(ends, (TOKENS, x), default=QUANT, edge_bits=None, params=params)
  given = {'params': {'embed': {'table': table['embedding'], 'kernel_alpha': table['kernel_alpha']}}}
  rows, head = net.apply({**given, 'bits': {'embed': variables['bits']['Embed_0']}}, TOKENS, x)
  np.testing.assert_allclose(rows, expected[TOKENS], rtol=1e-6)
  np.testing.assert_allclose(head, expected.T, rtol=1e-5)


def test_groups_lie_alike_wherever_a_parameter_is_used():
  """As far as its axes are there: in a reshaped one the groups would be others, which is refused."""
  x, rng = jnp.ones((2, 4, 3)), np.random.default_rng(0)
  w = {'w': rng.normal(size=(3, 4, 5)).astype(np.float32)}
  plain = lambda params, x: jnp.einsum('nba,abc->nc', x, params['w'])
  turned = lambda params, x: jnp.einsum('nba,bac->nc', x, params['w'].swapaxes(0, 1))
  reshaped = lambda params, x: x.reshape(2, 12) @ params['w'].swapaxes(0, 1).reshape(12, 5)
  quant = QuantConfig(scheme='lsq', group_size=5, weight_only=True, kernel_bits=2)
  both = lambda second: quantize_model(
    lambda params, x: (plain(params, x), second(params, x)), x, default=quant, edge_bits=None, params=w
  )
  net = both(turned)
  variables = net.from_float({'params': w}, x)
  assert variables['params']['kernel_alpha' if 'kernel_alpha' in variables['params'] else 'w_kernel_alpha'].shape == (
    3,
    5,
  )
  one, other = net.apply(variables, x)
  np.testing.assert_allclose(one, other, rtol=1e-5)
  with pytest.raises(ValueError, match='w is used twice, with the axes along which its groups lie in another order'):
    both(reshaped).apply(variables, x)


def test_nnx_models_have_them_as_well():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(10, WIDTH, rngs=rngs)
      self.out = nnx.Linear(WIDTH, 6, rngs=rngs)

    def __call__(self, tokens):
      return self.out(self.embed(tokens))

  model = Net(nnx.Rngs(0))
  tokens = TOKENS % 10
  before = model(tokens)
  nnx_adapter.quantize_model(model, tokens, default=QUANT, edge_bits=8)
  assert model.embed.kernel_alpha[...].shape == (2, 10)
  assert model.out.kernel_alpha[...].shape == (2, 6)
  np.testing.assert_allclose(model(tokens), before, atol=0.05)


def test_the_size_counts_the_ranges_and_bits_per_weight_are_the_size(made):
  _, variables, table, _ = made
  weights = sum(l.weights for l in table)
  ranges = 2 * WORDS + LAYERS * (2 * 96 + 3 * WIDTH)
  per_weight = (4 * weights + 16 * ranges) / weights
  uniform = cost.uniform_bits(table, 4)
  assert cost.bits_per_weight(uniform, table) == pytest.approx(per_weight, rel=1e-12)
  biases = LAYERS * (96 + WIDTH)
  assert cost.model_size(uniform, table) == pytest.approx((weights * per_weight / 8 + 4 * biases) / 1e6, rel=1e-12)
  slopes = jax.grad(lambda bits: cost.bits_per_weight(bits, table))(variables['bits'])
  assert sum(float(jnp.sum(g)) for g in jax.tree.leaves(slopes)) == pytest.approx(1, rel=1e-5)
  budget = cost.budget('size', table, bits_per_weight=per_weight)  # what 4 bits take is within it
  assert budget.holds(uniform, table)
  assert cost.equivalent_bits(budget, table) == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize('per_weight', [3.0, 4.1, 5.5])
def test_a_policy_holds_a_budget_of_bits_per_weight(made, per_weight):
  _, _, table, _ = made
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(table, lambda layer, which, shape, choices: rng.uniform(2, 8, shape))
  budget = cost.budget('size', table, bits_per_weight=per_weight)
  found = policy.discretize(bits, table, budget).bits()
  assert per_weight - 1.1 < cost.bits_per_weight(found, table) <= per_weight * (1 + 1e-9)


@pytest.mark.parametrize(
  ('metric', 'amounts', 'said'),
  [
    ('size', {'bits_per_weight': 4.5, 'target': 0.1}, 'target=0.1, equivalent_bits=None and bits_per_weight=4.5: give'),
    ('bitops', {'bits_per_weight': 4.5}, 'bits_per_weight=4.5 is about the size of the weights, and metric=bitops is'),
    ('size', {'bits_per_weight': 2.0}, r'bits_per_weight=2.0 cannot be met by any allowed .* give at least 2\.\d+ and'),
    ('size', {'bits_per_weight': 9.0}, 'bits_per_weight=9.0 is already met by the largest allowed assignment'),
  ],
)
def test_a_budget_of_bits_per_weight_that_cannot_be_is_refused(made, metric, amounts, said):
  with pytest.raises(ValueError, match=said):
    cost.budget(metric, made[2], **amounts)


def test_a_packed_file_gives_the_same_weights_and_is_as_large_as_reported(tmp_path):
  """Of a network large enough for its graph to be little beside its weights."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(800, 128)
      return embed.attend(nn.Dense(128, use_bias=False)(nn.relu(nn.Dense(512, use_bias=False)(embed(tokens)))))

  rng = np.random.default_rng(0)
  net = quantize_model(Net(), TOKENS, default=QUANT, edge_bits=None)
  random = lambda s: rng.normal(size=s.shape).astype(np.float32)
  variables = jax.tree.map(random, dict(net.shapes((TOKENS,), {})))
  variables['bits'] = jax.tree.map(lambda b: rng.choice(np.float32([2, 3, 4, 8]), b.shape), variables['bits'])
  fixed = wrap.with_fixed_bits(net)
  source = source_of(fixed, variables, TOKENS)
  path = tmp_path / 'net.fracbits'
  said = packed.write(source, path)
  assert 'of kernels, ranges of groups and biases, as reported' in said
  assert path.stat().st_size == pytest.approx(source.size_mb * 1e6, rel=0.02)
  read = packed.read(path).graph
  kernels = [[node.params['kernel'] for node in graph.nodes if node.op == 'kernel'] for graph in (read, source.graph)]
  for ours, theirs in zip(*kernels, strict=True):
    assert ours.exact is None
    assert (ours.group_size, ours.range_bits) == (32, 16)
    np.testing.assert_array_equal(ours.value, theirs.exact)
  np.testing.assert_allclose(evaluate(read, TOKENS)[0], fixed.apply(variables, TOKENS), rtol=1e-4, atol=1e-2)
  assert stablehlo.write(source, tmp_path / 'net.stablehlo')
  said = r'Embed_0 has a range for each group of 32 weights, and .* has none for groups: export with --format packed, '
  with pytest.raises(ValueError, match=said):
    integer.inference(read)
  for module in (onnx_format, qonnx_format, litert_format, c_format):
    with pytest.raises(ValueError, match=said):
      module.write(source, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()
