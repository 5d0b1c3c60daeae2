"""Layers within a scan are those of the unrolled network: the same outputs, costs, gradients of bits and policies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import cost, from_float, policy, quantize_model
from fracbits_jax.layers import QuantConfig

LAYERS, TOKENS = 3, jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
QUANT = QuantConfig(
  scheme='lsq', choices=range(2, 9), init_bits=4.5, granularity='kernel', kernel_ranges='channel', input_offset=True
)
BY_LAYER = dataclasses.replace(QUANT, kernel_ranges='layer')


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    x = x + nn.MultiHeadDotProductAttention(2, name='attention')(nn.LayerNorm()(x))
    return x + nn.Dense(8, name='down')(nn.gelu(nn.Dense(16, name='up')(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
  """A language model whose head is its embedding."""

  scanned: bool

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(11, 8)
    x = embed(tokens)
    if self.scanned:
      layers = nn.scan(nn.remat(Block), variable_axes={'params': 0}, split_rngs={'params': True}, length=LAYERS)
      x, _ = layers(name='layers')(x, None)
    else:
      for i in range(LAYERS):
        x, _ = Block(name=f'layers_{i}')(x)
    return embed.attend(nn.LayerNorm()(x))


@pytest.fixture(scope='module')
def both():
  """Both networks, quantized, with the same parameters; attention multiplies quantized activations."""
  variables = jax.jit(Transformer(False).init)(jax.random.key(1), TOKENS)
  layers = [variables['params'][f'layers_{i}'] for i in range(LAYERS)]
  rest = {name: value for name, value in variables['params'].items() if not name.startswith('layers')}
  stacked = {'params': {**rest, 'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}}
  found = []
  for scanned, float_variables in ((False, variables), (True, stacked)):
    rules = [('.*product.*', QUANT), ('.*/(up|query)', BY_LAYER)]  # ranges of layers and of channels in one program
    net = quantize_model(Transformer(scanned), TOKENS, rules, default=QUANT)
    found.append((net, from_float(net, float_variables, TOKENS), cost.trace(net, TOKENS, strict=True)))
  return found


def _value_and_gradient(net, variables, table):
  def loss(bits):
    logits = net.apply({**variables, 'bits': bits}, TOKENS)
    return jnp.sum(logits**2) + cost.bitops(bits, table) / 1e-6, logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['bits'])


def _by_layer(bits, table):
  return {(l.name.replace('_0', '/0').replace('_1', '/1').replace('_2', '/2'), which): cost.bits_of(bits, l, which)
          for l in table for which in cost.learned(l)}  # fmt: skip


def test_scanned_and_unrolled_layers_are_the_same_network(both):
  (net, variables, table), (net_scanned, variables_scanned, table_scanned) = both
  names = [layer.name for layer in table_scanned]
  assert names[0] == 'Embed_0'
  assert [name for name in names if name.startswith('layers/1/')] == [
    f'layers/1/{part}'
    for part in ('attention/query', 'attention/key', 'attention/value', 'attention/product', 'attention/product:2',
                 'attention/out', 'up', 'down')
  ]  # fmt: skip
  assert variables_scanned['bits']['layers']['up']['kernel'].shape == (LAYERS, 16)
  (value, logits), gradient = _value_and_gradient(net, variables, table)
  (value_scanned, logits_scanned), gradient_scanned = _value_and_gradient(net_scanned, variables_scanned, table_scanned)
  np.testing.assert_allclose(logits_scanned, logits, atol=1e-6)
  np.testing.assert_allclose(value_scanned, value, rtol=1e-6)
  of_layer, of_layer_scanned = _by_layer(gradient, table), _by_layer(gradient_scanned, table_scanned)
  assert of_layer.keys() == of_layer_scanned.keys()
  largest = max(float(jnp.abs(leaf).max()) for leaf in of_layer.values())
  for key, expected in of_layer.items():
    np.testing.assert_allclose(of_layer_scanned[key], expected, atol=1e-6 * largest, err_msg=str(key))
    assert np.isfinite(expected).all(), key
    assert np.abs(expected).max() > 0, key


def test_ranges_lie_in_a_stack_and_are_those_of_the_unrolled_layers(both):
  (_, variables, _), (_, variables_scanned, _) = both
  stacked = variables_scanned['params']['layers']
  assert stacked['up']['kernel_alpha'].shape == (LAYERS,)
  assert stacked['down']['kernel_alpha'].shape == (LAYERS, 8)
  for layer in ('up', 'down'):
    unrolled = [variables['params'][f'layers_{i}'][layer]['kernel_alpha'] for i in range(LAYERS)]
    np.testing.assert_allclose(stacked[layer]['kernel_alpha'], unrolled, rtol=1e-6)


def test_a_policy_of_one_is_one_of_the_other(both, tmp_path):
  (net, variables, table), (net_scanned, variables_scanned, table_scanned) = both
  for source, target in (((table, variables), table_scanned), ((table_scanned, variables_scanned), table)):
    budget = cost.budget('bitops', source[0], equivalent_bits=3.5)
    found = policy.discretize(source[1]['bits'], source[0], budget)
    found.save(tmp_path / 'policy.json')
    loaded = policy.load(tmp_path / 'policy.json', target)
    assert loaded.cost == found.cost
    assert float(cost.bitops(loaded.bits(), target)) == pytest.approx(found.bitops_g, rel=1e-12)
    logits = [
      jax.jit(lambda bits, n=n, v=v: n.apply({**v, 'bits': bits}, TOKENS))(jax.tree.map(jnp.float32, p.bits()))
      for n, v, p in (
        (net, variables, found if source[0] is table else loaded),
        (net_scanned, variables_scanned, loaded if source[0] is table else found),
      )
    ]
    np.testing.assert_allclose(*logits, atol=1e-6)


def test_a_table_counts_what_the_numbers_say(both):
  _, (_, _, table) = both
  macs = {layer.name: layer.macs for layer in table}
  assert macs['Embed_0'] == 6 * 8 * 11  # as the head; a look-up multiplies nothing
  assert macs['layers/2/up'] == macs['layers/2/down'] == 6 * 8 * 16
  assert macs['layers/0/attention/product'] == 6 * 6 * 8
  assert str(table.coverage).startswith('19 of 19 weights, 100% of')


def test_rules_that_part_a_stack_are_refused():
  with pytest.raises(ValueError, match=r'layers/0/up and layers/1/up are layers of one stack, and the rules tell them'):
    quantize_model(Transformer(True), TOKENS, [('layers/0/up', None)])


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.OptimizedLSTMCell(6))(x)


def _in_loops(jaxpr, name, inside=False):
  """How many equations of that name there are within the loops of a program."""
  count = 0
  for equation in jaxpr.eqns:
    count += inside and equation.primitive.name == name
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        count += _in_loops(inner, name, inside or equation.primitive.name == 'scan')
  return count


def test_a_weight_that_all_passes_share_is_quantized_once():
  x = jax.random.normal(jax.random.key(2), (2, 5, 4))
  variables = Recurrent().init(jax.random.key(3), x)

  def quantizations(weight_only):
    quant = QuantConfig(scheme='lsq', kernel_bits=4, input_bits=32 if weight_only else 4, weight_only=weight_only)
    net = quantize_model(Recurrent(), x, default=quant)
    program = jax.make_jaxpr(lambda variables: net.apply(variables, x))(net.init(jax.random.key(4), x))
    return net, _in_loops(program.jaxpr, 'round')

  net, of_inputs = quantizations(weight_only=False)
  assert of_inputs == 2  # those of the cell, its inputs and its state
  assert quantizations(weight_only=True)[1] == 0
  start = from_float(net, variables, x)
  error = jax.jit(net.apply)(start, x) - jax.jit(Recurrent().apply)(variables, x)
  assert 0 < float(jnp.abs(error).max()) < 0.2
