import itertools

import numpy as np
import pytest

from fracbits_jax import cost, models
from fracbits_jax.cost import Layer
from fracbits_jax.layers import QuantConfig
from fracbits_jax.policy import assignment

TABLE = (
  Layer(name='stem', macs=1000, weights=100, channels=4, kernel_bits=8, input_bits=8),
  Layer(name='block/a', macs=3000, weights=300, channels=3, per_channel=True, choices=(0, 1, 2, 4)),
  Layer(name='block/b', macs=9000, weights=900, channels=5, choices=(2, 4, 8), input_choices=(2, 3, 8)),
  Layer(
    name='head', macs=500, weights=500, channels=5, biases=5, kernel_bits=8, input_choices=(2, 3, 4), source='block/a'
  ),
)


def slots():
  return [(l.name, which, [b for b in c if b]) for l in TABLE for which, (_, c) in cost.learned(l).items()]


def random_scores(seed):
  rng = np.random.default_rng(seed)
  scales = {(name, which): 10.0 ** rng.uniform(-6, 2) for name, which, _ in slots()}
  return {(n, w): {b: scales[n, w] * rng.uniform(0.5, 1) * 4.0**-b for b in c} for n, w, c in slots()}


@pytest.mark.parametrize('also', [(), (cost.Budget(metric='size', target=1.1e-3),)])
@pytest.mark.parametrize('seed', range(8))
def test_the_integer_program_finds_what_trying_everything_finds(seed, also):
  scores, rng = random_scores(seed), np.random.default_rng(seed)
  low, high = cost.cost_range('bitops', TABLE)
  budget = cost.Budget(metric='bitops', target=low + rng.uniform(0.3, 0.7) * (high - low), also=also)
  best = np.inf
  for widths in itertools.product(*(choices for *_, choices in slots())):
    at = {(name, which): width for (name, which, _), width in zip(slots(), widths, strict=True)}
    bits = cost.fill_bits(TABLE, lambda layer, which, shape, c, at=at: at[layer.name, which])
    if budget.holds(bits, TABLE):
      best = min(best, sum(scores[slot][width] for slot, width in at.items()))
  found = assignment.solve(scores, TABLE, budget)
  assert np.isfinite(best)
  assert budget.holds(found.bits(), TABLE)
  entries = {entry.name: entry for entry in found.layers}
  assert len(set(entries['block/a'].kernel)) == 1
  total = sum(scores[n, w][int(np.max(getattr(entries[n], w)))] for n, w, _ in slots())
  np.testing.assert_allclose(total, best, rtol=1e-9)


def test_a_target_that_one_assignment_meets_to_the_last_digit_is_met():
  scores = random_scores(0)
  budget = cost.Budget(
    metric='bitops', target=cost.bitops(cost.fill_bits(TABLE, lambda l, w, s, c: c[c[0] == 0]), TABLE)
  )
  assert assignment.solve(scores, TABLE, budget).cost == budget.target


def test_a_budget_that_nothing_meets_and_scores_that_are_missing_are_refused():
  scores = random_scores(0)
  with pytest.raises(ValueError, match='no allowed assignment of bits meets 1e-06 GBitOPs'):
    assignment.solve(scores, TABLE, cost.Budget(metric='bitops', target=1e-6))
  budget = cost.Budget(metric='bitops', target=3e-4)
  for broken in ({}, {2: np.nan, 4: 1.0, 8: 1.0}):
    with pytest.raises(ValueError, match='a score of block/b is missing or not finite'):
      assignment.solve({**scores, ('block/b', 'kernel'): broken}, TABLE, budget)


@pytest.mark.parametrize(('metric', 'granularity'), [('bitops', 'layer'), ('size', 'kernel')])
def test_a_random_policy_costs_what_the_budget_allows_and_depends_on_its_seed(metric, granularity):
  model = models.create('mobilenet_v1', quant=QuantConfig(granularity=granularity, choices=range(1, 9)), width=0.25)
  table = cost.trace(model, (32, 32, 3))
  budget = cost.budget(metric, table, equivalent_bits=3)
  first, again, other = (assignment.draw(table, budget, seed) for seed in (0, 0, 1))
  assert first == again != other
  for found in (first, other):
    assert 0.99 * budget.target <= found.cost <= budget.target
  assert len({entry.input for entry in first.layers}) > 2
