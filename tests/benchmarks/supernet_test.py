"""The supernet that the study compares with: `benchmarks/shared/supernet.py`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import tiny

from benchmarks.shared import supernet
from fracbits_jax import cost, policy
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense
from fracbits_jax.run import progress, runner

CHOICES = (1, 2, 4, 8)
softmax = functools.partial(supernet.mixtures, lambda logits, choices: jax.nn.softmax(logits))
IMAGES = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))


class Net(nn.Module):
  """One layer with both bit-widths learned, and one with neither."""

  quant: QuantConfig

  @nn.compact
  def __call__(self, x):
    x = nn.relu(QuantConv(5, (3, 3), quant=self.quant, name='conv')(x))
    fixed = dataclasses.replace(self.quant, kernel_bits=8, input_bits=4)
    return QuantDense(3, quant=fixed, name='dense')(x.mean((1, 2)))


@pytest.mark.parametrize(('scheme', 'granularity'), [('original', 'layer'), ('lsq', 'kernel')])
def test_a_supernet_that_is_sure_of_its_branches_is_the_network_with_their_bits(scheme, granularity):
  model = Net(QuantConfig(choices=CHOICES, scheme=scheme, granularity=granularity, sat=True, alpha_init=1.0))
  table = cost.trace(model, (8, 8, 3))
  variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(table, lambda layer, which, shape, choices: rng.choice(choices, shape))
  sure = lambda b: jnp.float32(100 * np.equal.outer(b, CHOICES))
  logits = jax.tree.map(sure, bits)
  expected = jax.jit(model.apply)({**variables, 'bits': jax.tree.map(jnp.float32, bits)}, IMAGES)
  with softmax():
    found = jax.jit(model.apply)({**variables, 'bits': logits}, IMAGES)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), supernet.expected_bits(logits, table), bits)


def test_a_supernet_costs_what_its_expected_bits_cost():
  table = cost.trace(Net(QuantConfig(choices=CHOICES)), (8, 8, 3))
  budget = cost.budget('bitops', table, equivalent_bits=3)
  penalty = supernet.ExpectedPenalty(budget=budget, layers=table, kappa=2.0)
  term, ratio = penalty(supernet.first_logits(table), jnp.float32(0))
  expected = budget.ratio(cost.uniform_bits(table, np.mean(CHOICES)), table)
  np.testing.assert_allclose(ratio, expected, rtol=1e-6)
  np.testing.assert_allclose(term, 2 * (expected - 1), rtol=1e-5)


def test_the_bits_that_are_chosen_round_to_the_likeliest_and_lean_to_the_expected():
  table = (cost.Layer(name='a', macs=10, weights=10, channels=3, per_channel=True, choices=(2, 4, 8), input_bits=8),)
  logits = {'a': {'kernel': np.log([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.05, 0.05, 0.9]])}}
  found = supernet.chosen_bits(logits, table)['a']['kernel']
  np.testing.assert_allclose(found, [2 + 2 * 0.4, 4 + 4 * 0.2, 8 - 4 * 0.125], rtol=1e-3)
  found = supernet.chosen_bits({'a': {'kernel': np.log([[0.4, 0.3, 0.3]] * 3)}}, table)['a']['kernel']
  np.testing.assert_allclose(found, 2 + 2 * 0.499, rtol=1e-5)
  # A budget that the likeliest meet leaves them alone.
  budget = cost.Budget(metric='bitops', target=1.001 * 10 * 8 * (2 + 4 + 8) / 3 / 1e9)
  assert policy.discretize(supernet.chosen_bits(logits, table), table, budget).layers[0].kernel == (2, 4, 8)


def test_a_run_goes_on_from_a_supernet(tmp_path):
  changes = {'quant.choices': (2, 4, 8), 'search.epochs': 2.0, 'finetune.epochs': 1.0, 'quant.stochastic': False}
  config = tiny(**changes, phases=('search', 'finetune'))
  supernet.search(config, tmp_path / 'run')
  rows = progress.read_rows(tmp_path / 'run')
  assert [(row['phase'], row['step']) for row in rows] == [('search', 9), ('search', 18)]
  assert rows[0]['bits'] != rows[1]['bits']
  assert np.isfinite(rows[1]['loss'])
  result = runner.run(config, tmp_path / 'run')
  assert len(progress.read_rows(tmp_path / 'run')) == 3  # the finetuning added one
  assert 0.9 * result['target'] < result['cost'] <= result['target']
  widths = {b for e in policy.load(tmp_path / 'run' / 'policy.json').layers for b in (e.kernel, e.input)}
  assert widths <= {2, 4, 8}
