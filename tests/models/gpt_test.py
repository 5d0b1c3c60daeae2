"""Decoders of language: scanned and unrolled blocks, what a token sees, tables that are quantized once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost, from_float, models, policy
from fracbits_jax.layers import QuantConfig, linen, wrap
from fracbits_jax.models import gpt

TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
QUANT = QuantConfig(scheme='lsq', kernel_ranges='channel', choices=range(2, 9), init_bits=4.5, input_offset=True)


def create(quant=QUANT, **how):
  how = {'depth': 3, 'width': 0.25, 'head_dim': 8, 'kv_heads': 2, **how}
  return models.create('gpt_mini', num_classes=11, quant=quant, **how)


@functools.cache
def float_variables(**how):
  return jax.jit(create(None, **how).init)(jax.random.key(1), TOKENS)


@pytest.fixture(scope='module')
def both():
  """The decoder without a loop and with one: its network, its variables from the same float ones, its table."""
  found = []
  for scan, variables in ((False, float_variables()), (True, gpt.stacked(float_variables()))):
    net = create(scan=scan)
    found.append((net, from_float(net, variables, TOKENS), cost.trace(net, TOKENS)))
  return found


def test_one_loop_over_the_blocks_gives_the_same_with_bits_of_its_own_for_each(both):
  (net, variables, table), (net_scanned, scanned, table_scanned) = both
  # Ranges are calibrated layer by layer in both.
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), gpt.stacked(variables), scanned)
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(table, lambda layer, which, shape, choices: rng.uniform(2, 8, shape))
  bits = jax.tree.map(jnp.float32, bits)
  logits = jax.jit(net.apply)({**variables, 'bits': bits}, TOKENS)
  of_scanned = {**scanned, 'bits': gpt.stacked({'bits': bits})['bits']}
  np.testing.assert_allclose(jax.jit(net_scanned.apply)(of_scanned, TOKENS), logits, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, gpt.unstacked(of_scanned)['bits'], bits)
  assert of_scanned['bits']['layers']['up']['kernel'].shape == (3,)
  assert {l.name for l in table_scanned} == {l.name.replace('layers_', 'layers/') for l in table}
  for metric in (cost.bitops, cost.model_size):
    np.testing.assert_allclose(metric(of_scanned['bits'], table_scanned), metric(bits, table), rtol=1e-6)


def test_policies_of_both_are_the_same(both, tmp_path):
  (_, _, table), (_, _, table_scanned) = both
  rng = np.random.default_rng(1)
  bits = cost.fill_bits(table, lambda layer, which, shape, choices: rng.uniform(2, 8, shape))
  stacked = jax.tree.map(np.asarray, gpt.stacked({'bits': bits})['bits'])
  found = policy.discretize(bits, table, cost.budget('size', table, equivalent_bits=4))
  of_scanned = policy.discretize(stacked, table_scanned, cost.budget('size', table_scanned, equivalent_bits=4))
  plain = lambda p: {e.name.replace('layers/', 'layers_'): (e.kernel, e.input, e.macs) for e in p.layers}
  assert plain(of_scanned) == plain(found)
  found.save(tmp_path / 'policy.json')
  assert plain(policy.load(tmp_path / 'policy.json', table_scanned)) == plain(found)


@pytest.mark.parametrize(
  'how',
  [
    {'norm': 'layer', 'positions': 'learned', 'mlp': 'gelu', 'tied': False, 'kv_heads': None},
    {'scan': True, 'depth': 2},
  ],
)
def test_a_token_sees_those_before_it_alone(how):
  net, variables = create(None, **how), float_variables(**how)
  later = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % 11)
  logits, changed = jax.jit(net.apply)(variables, TOKENS), jax.jit(net.apply)(variables, later)
  assert logits.shape == (2, 6, 11)
  np.testing.assert_array_equal(logits[:, :4], changed[:, :4])
  assert (logits[:, 4:] != changed[:, 4:]).any(axis=(0, 2)).all()


def test_rotary_scores_depend_on_how_far_positions_are_apart():
  query, key = (jnp.tile(jax.random.normal(jax.random.key(i), (1, 1, 1, 8)), (1, 6, 1, 1)) for i in range(2))
  scores = jnp.einsum('nqhf,nphf->qp', gpt.rotated(query), gpt.rotated(key))
  for apart in range(-5, 6):
    along = np.diagonal(scores, apart)
    np.testing.assert_allclose(along, along[0], rtol=1e-4, atol=1e-5)


def test_shared_heads_attend_as_copies_of_them_do():
  query = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
  key, value = (jax.random.normal(jax.random.key(i), (2, 5, 2, 8)) for i in (1, 2))
  copies = [jnp.repeat(x, 2, axis=2) for x in (key, value)]
  expected = jax.nn.dot_product_attention(query, *copies, is_causal=True)
  np.testing.assert_allclose(gpt.causal_attention(query, key, value), expected, atol=1e-5)


def test_a_tied_table_is_quantized_once_and_counts_once(monkeypatch):
  seen = []
  original = linen.apply_quantizer
  keep = lambda layer, which, *args, **how: seen.append((layer.name, which)) or original(layer, which, *args, **how)
  monkeypatch.setattr(linen, 'apply_quantizer', keep)
  tied, untied = (create(depth=1, tied=is_tied) for is_tied in (True, False))
  table, other = cost.trace(tied, TOKENS), cost.trace(untied, TOKENS)
  seen.clear()
  jax.eval_shape(tied.init, jax.random.key(0), TOKENS)
  assert seen.count(('embed', 'kernel')) == seen.count(('embed', 'input')) == 1
  rows, others = ({l.name: l for l in t} for t in (table, other))
  assert (rows['embed'].kind, rows['embed'].macs, rows['embed'].weights) == ('dense', 6 * 11 * 32, 11 * 32)
  assert (others['embed'].kind, others['embed'].macs, others['head'].weights) == ('embedding', 0, 11 * 32)
  assert set(cost.learned(others['embed'])) == {'kernel'}
  in_float = lambda t: [dataclasses.replace(l, kernel_bits=32, input_bits=32) for l in t]
  head = cost.model_size({}, in_float(other)) - cost.model_size({}, in_float(table))
  assert head == pytest.approx(11 * 32 * 4e-6)


def test_sizes_are_those_of_their_names():
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  sizes = {}
  for name in ('gpt_mini', 'gpt_small', 'gpt_medium', 'gpt_base'):
    net = models.create(name, num_classes=256, scan=True)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)
    sizes[name] = round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 1)
  assert sizes == {'gpt_mini': 0.8, 'gpt_small': 6.3, 'gpt_medium': 25.3, 'gpt_base': 85.2}


@pytest.mark.parametrize(
  ('how', 'said'),
  [
    ({'norm': 'batch'}, r"norm='batch' is unknown: choose one of rms, layer"),
    ({'kv_heads': 3}, r'kv_heads=3 do not divide the 4 heads of queries: give a divisor'),
    ({'head_dim': 7}, r"head_dim=7 is odd, and positions='rotary' turns pairs: give an even number"),
    ({'image_mean': (1.0,)}, r'a decoder takes tokens and no images: leave image_mean at None'),
  ],
)
def test_settings_that_are_not_possible_are_said(how, said):
  with pytest.raises(ValueError, match=said):
    jax.eval_shape(create(None, **how).init, jax.random.key(0), TOKENS)


def test_the_float_network_of_a_quantized_one_has_the_same_parameters(both):
  (net, variables, _), _ = both
  plain = wrap.without_quantization(net)
  names = lambda tree: {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
  new = names(variables['params']) - names(float_variables()['params'])
  assert all(name.endswith(("'alpha']", "'kernel_alpha']")) for name in new)
  assert names(jax.eval_shape(plain.init, jax.random.key(0), TOKENS)['params']) <= names(variables['params'])
