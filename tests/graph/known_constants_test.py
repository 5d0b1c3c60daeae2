"""Constants that follow from a few numbers: computed instead of stored, with equal values; all others as they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import models
from fracbits_jax.export import packed
from fracbits_jax.export.source import source_of
from fracbits_jax.graph import capture, graph
from fracbits_jax.layers import QuantConfig, QuantDense

X = np.random.default_rng(0).standard_normal((2, 24, 16)).astype(np.float32)


def positions(x):
  angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * jnp.exp(-jnp.arange(x.shape[2])[None] / 4.0)
  return x + (jnp.sin(angles) * jnp.cos(angles)[::-1])[None]


def causal(x):
  scores = jnp.einsum('nqf,npf->nqp', x, x)
  seen = nn.make_causal_mask(jnp.ones((1, x.shape[1])))[:, 0]
  return jax.nn.softmax(jnp.where(seen, scores, -1e9), -1) @ x


def window(x):
  at = jnp.arange(x.shape[1])
  near = (jnp.abs(at[:, None] - at[None]) < 4)[None]
  return jnp.where(near, jnp.einsum('nqf,npf->nqp', x, x), 0.0)


def sinusoids(x):
  table = np.sin(np.arange(24)[:, None] * np.linspace(0, 1, 16)).astype(np.float32)  # NumPy's, so no recipe is seen
  return x + table[None]


def constants(found):
  return [np.asarray(x) for node in found.nodes for x in node.inputs if not isinstance(x, str)]


@pytest.mark.parametrize('network', [positions, causal, window])
def test_what_follows_from_counting_is_computed(network):
  whole, brief = (capture.capture(lambda variables, x: network(x), {}, X, brief=brief) for brief in (False, True))
  assert max(x.nbytes for x in constants(whole)) >= 24 * 16
  assert sum(x.nbytes for x in constants(brief)) < 256
  assert [node.output for node in whole.nodes] == [n.output for n in brief.nodes if '_known_' not in n.output]
  for found in (whole, brief):
    np.testing.assert_allclose(graph.evaluate(found, X)[0], network(X), rtol=1e-5, atol=1e-5)


def test_what_blocks_share_is_computed_once_and_what_has_no_recipe_is_stored():
  found = capture.capture(lambda variables, x: causal(causal(x)), {}, X, brief=True)
  once = capture.capture(lambda variables, x: causal(x), {}, X, brief=True)
  count = lambda found, op: sum(node.op == op for node in found.nodes)
  assert count(found, 'ge') == count(once, 'ge') == 1
  found = capture.capture(lambda variables, x: sinusoids(x), {}, X, brief=True)
  assert max(x.nbytes for x in constants(found)) == 24 * 16 * 4
  weights = {'params': {'w': X[0]}}
  found = capture.capture(lambda variables, x: x * (2 * variables['params']['w'])[None], weights, X, brief=True)
  assert max(x.nbytes for x in constants(found)) == X[0].nbytes


class Twice(nn.Module):
  """Adds the same table before each of two layers."""

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = nn.relu(QuantDense(16, quant=QuantConfig(weight_only=True, init_bits=2.0))(sinusoids(x)))
    return x


def test_equal_arrays_are_stored_once(tmp_path):
  variables = jax.jit(Twice().init)(jax.random.key(0), X)
  packed.write(source_of(Twice(), variables, X), tmp_path / 'net')
  found = packed.read(tmp_path / 'net').graph
  first, second = (x for x in constants(found) if x.nbytes == 24 * 16 * 4)
  assert first is second
  assert not first.flags.writeable
  assert (tmp_path / 'net').stat().st_size < 2 * first.nbytes
  np.testing.assert_allclose(graph.evaluate(found, X)[0], Twice().apply(variables, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_a_packed_decoder_takes_what_it_reports(tmp_path, scan):
  quant = QuantConfig(scheme='lsq', group_size=32, weight_only=True, choices=range(1, 9))
  net = models.create('gpt_mini', num_classes=64, quant=quant, width=1.5, depth=4, scan=scan)
  tokens = np.random.default_rng(0).integers(0, 64, (2, 128))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32),
    jax.eval_shape(net.init, jax.random.key(0), tokens),
  )
  variables = {**variables, 'bits': jax.tree.map(lambda x: rng.integers(2, 5, x.shape).astype('f4'), variables['bits'])}
  net, variables = net.unrolled(variables)
  source = source_of(net, variables, tokens)
  packed.write(source, tmp_path / 'net')
  size = (tmp_path / 'net').stat().st_size
  assert source.size_mb * 1e6 < size < 1.02 * source.size_mb * 1e6
  found = graph.evaluate(packed.read(tmp_path / 'net').graph, tokens)[0]
  expected = jax.jit(net.apply)(variables, tokens)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
