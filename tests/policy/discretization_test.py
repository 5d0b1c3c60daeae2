import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from policy_tables import TABLE, network

from fracbits_jax import cost, policy
from fracbits_jax.cost import Layer, lookup


def budget(equivalent_bits=3.0, metric='bitops'):
  return cost.budget(metric, TABLE, equivalent_bits=equivalent_bits)


_BOTH = st.booleans()
_SETS = [tuple(range(1, 9)), tuple(range(9)), (2, 4, 8), (4, 8)]


@st.composite
def problems(draw, largest=12, per_channel=_BOTH, sets=_SETS):
  """Layer tables of random size with random bits, and a target somewhere in their range."""
  choices = draw(st.sampled_from(sets))
  input_choices = tuple(b for b in choices if b)
  per_channel = draw(per_channel)
  table = []
  for i in range(draw(st.integers(1, largest))):
    channels = draw(st.integers(1, 20))
    fixed = draw(st.sampled_from(['nothing', 'nothing', 'nothing', 'kernel', 'input']))
    table.append(
      Layer(
        name=f'block/{i}',
        macs=draw(st.integers(1, 10**7)),
        weights=draw(st.integers(1, 10**5)),
        channels=channels,
        biases=draw(st.sampled_from([0, channels])),
        kernel_bits=8 if fixed == 'kernel' else None,
        input_bits=8 if fixed == 'input' else None,
        per_channel=per_channel,
        choices=choices,
        input_choices=input_choices,
      )
    )
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  spread = draw(st.floats(0, 5))
  bits = cost.fill_bits(table, lambda l, which, shape, c: rng.uniform(-1, 9) + spread * rng.normal(size=shape))
  metric = draw(st.sampled_from(['bitops', 'size']))
  low, high = cost.cost_range(metric, table)
  hypothesis.assume(low < high)
  target = low + draw(st.floats(0, 0.999)) * (high - low)
  hypothesis.assume(target > 0)
  return bits, tuple(table), cost.Budget(metric=metric, target=target)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(problems())
def test_the_discretized_cost_never_exceeds_the_target(problem):
  bits, table, limit = problem
  found = policy.discretize(bits, table, limit)
  assert found.cost <= limit.target
  for layer in table:
    for which, (shape, choices) in cost.learned(layer).items():
      value = np.asarray(cost.bits_of(found.bits(), layer.name, which))
      assert value.shape == shape
      assert np.isin(value, choices).all()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(problems(largest=3, per_channel=st.just(False), sets=[(2, 4, 8), (4, 8), (1, 2, 3)]))
def test_99_percent_of_the_target_are_used_wherever_any_assignment_does(problem):
  bits, table, limit = problem
  found = policy.discretize(bits, table, limit)
  slots = [(layer.name, which, c) for layer in table for which, (_, c) in cost.learned(layer).items()]
  reachable = 0.0
  for widths in itertools.product(*(choices for *_, choices in slots)):
    at = {(name, which): width for (name, which, _), width in zip(slots, widths, strict=True)}
    trial = cost.fill_bits(table, lambda layer, which, shape, c, at=at: at[layer.name, which])
    spent = limit.cost(trial, table)
    reachable = max(reachable, spent if spent <= limit.target else 0.0)
  # One permille for the cells of the knapsack.
  assert found.cost >= min(0.99 * limit.target, reachable - 1e-3 * limit.target)


def test_bits_that_the_metric_does_not_price_are_only_rounded():
  bits = cost.fill_bits(TABLE, lambda layer, which, shape, c: 3.7 if which == 'input' else 5.2)
  for equivalent in (2.5, 4.0, 6.0):
    found = policy.discretize(bits, TABLE, budget(equivalent, 'size')).bits()
    assert [int(found[a]['input']) for a in ('head',)] == [4]
    assert int(found['block']['a']['input']) == 4
    assert int(found['block']['b']['input']) == 4  # of 2, 4 and 8


def test_bits_that_are_allowed_and_meet_the_target_stay():
  bits = cost.uniform_bits(TABLE, 4)
  found = policy.discretize(bits, TABLE, budget(4)).bits()
  for name in ('a', 'b'):
    for which in ('kernel', 'input'):
      np.testing.assert_array_equal(found['block'][name][which], bits['block'][name][which])


def test_the_largest_remainder_is_rounded_up_first():
  table = tuple(Layer(name=n, macs=1000, weights=10, channels=1, input_bits=8) for n in 'abc')
  bits = {'a': {'kernel': 3.4}, 'b': {'kernel': 3.45}, 'c': {'kernel': 3.1}}
  limit = cost.Budget(metric='bitops', target=10.5 * 8000 / 1e9)  # room for 10 bits, and 9 after rounding
  found = policy.discretize(bits, table, limit).bits()
  assert [int(found[n]['kernel']) for n in 'abc'] == [3, 4, 3]


def test_the_single_offset_spends_nothing_of_what_rounding_leaves():
  table = tuple(Layer(name=n, macs=1000, weights=10, channels=1, input_bits=8) for n in 'abc')
  bits = {'a': {'kernel': 3.6}, 'b': {'kernel': 3.7}, 'c': {'kernel': 3.1}}
  limit = cost.Budget(metric='bitops', target=10.5 * 8000 / 1e9)
  found = policy.discretize(bits, table, limit, method='offset').bits()
  assert [int(found[n]['kernel']) for n in 'abc'] == [3, 4, 3]  # an offset of -0.1 takes the first one down
  found = policy.discretize(bits, table, cost.Budget(metric='bitops', target=9.9 * 8000 / 1e9), method='offset').bits()
  assert [int(found[n]['kernel']) for n in 'abc'] == [3, 3, 3]
  found = policy.discretize({**bits, 'b': {'kernel': 3.6}}, table, limit, method='offset').bits()
  assert [int(found[n]['kernel']) for n in 'abc'] == [3, 3, 3]  # both of them go down, though one might stay
  with pytest.raises(ValueError, match=r"discretization 'nearest' is unknown: choose one of exact, offset"):
    policy.discretize(bits, table, limit, method='nearest')


def test_one_offset_lowers_all_when_the_search_ended_above_the_target():
  table = tuple(Layer(name=n, macs=1000, weights=10, channels=1, input_bits=8) for n in 'abc')
  bits = {'a': {'kernel': 7.9}, 'b': {'kernel': 5.6}, 'c': {'kernel': 4.2}}
  limit = cost.Budget(metric='bitops', target=12.01 * 8000 / 1e9)
  found = policy.discretize(bits, table, limit).bits()
  # With an offset of -1.6 they are 6, 4, 3; from -1.7 on 6, 4, 2.
  assert [int(found[n]['kernel']) for n in 'abc'] == [6, 4, 2]


def test_thousands_of_bit_widths_come_within_a_permille_of_the_target():
  rng = np.random.default_rng(0)
  table = tuple(
    Layer(name=f'{i}', macs=int(rng.integers(10**5, 10**7)), weights=1000, channels=300, per_channel=True)
    for i in range(40)
  )
  bits = cost.fill_bits(table, lambda l, which, shape, choices: rng.uniform(2, 6, shape))
  found = policy.discretize(bits, table, cost.budget('bitops', table, equivalent_bits=3.3))
  assert 0.999 < found.cost / found.target <= 1


def test_bits_that_are_missing_misshapen_or_not_finite_are_refused():
  good = cost.uniform_bits(TABLE, 3)
  with pytest.raises(ValueError, match='no bits for block/a/kernel'):
    policy.discretize({}, TABLE, budget())
  with pytest.raises(ValueError, match='have shape'):
    policy.discretize({**good, 'head': {'input': np.ones(2)}}, TABLE, budget())
  with pytest.raises(ValueError, match='not finite'):
    policy.discretize({**good, 'head': {'input': np.nan}}, TABLE, budget())
  with pytest.raises(ValueError, match='are not integers'):
    policy.from_bits(cost.uniform_bits(TABLE, 3.5), TABLE, budget())
  with pytest.raises(ValueError, match='no allowed assignment'):
    policy.discretize(good, TABLE, cost.Budget(metric='bitops', target=1e-9))


def test_a_lookup_budget_with_4_and_8_bits_yields_4s_and_8s_within_it():
  layers = network()
  limit = cost.budget('lookup', layers, equivalent_bits=6, table=lookup.load('tensor_core'))
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(layers, lambda layer, which, shape, c: rng.uniform(4, 8, shape))
  found = policy.discretize(bits, layers, limit)
  assert 0.99 * limit.target <= found.cost <= limit.target
  assert {getattr(e, which) for e in found.layers for which in e.learned} == {4, 8}
  assert found.unit == limit.unit


def test_a_policy_holds_every_budget():
  layers = network(choices=range(2, 9))
  size = cost.budget('size', layers, equivalent_bits=4)
  limit = cost.budget('bitops', layers, equivalent_bits=4.2, also=[size])
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(layers, lambda layer, which, shape, c: rng.uniform(2, 8, shape))
  found = policy.discretize(bits, layers, limit)
  assert limit.holds(found.bits(), layers)
  assert limit.ratio(found.bits(), layers) > 0.99
  with pytest.raises(ValueError, match='meets 1 MB'):
    policy.discretize(
      bits, layers, cost.Budget(metric='bitops', target=9.0, also=(cost.Budget(metric='size', target=1.0),))
    )


def test_a_second_budget_costs_no_bits_that_cannot_help_it():
  layers = network(choices=range(2, 9), width=0.5)
  size = cost.budget('size', layers, equivalent_bits=3)
  slack = cost.budget('bitops', layers, equivalent_bits=6.5, also=[size])
  bits = cost.uniform_bits(layers, 6.0)
  both, alone = (policy.discretize(bits, layers, limit) for limit in (slack, size))
  assert [(e.kernel, e.input) for e in both.layers] == [(e.kernel, e.input) for e in alone.layers]
  assert {e.input for e in both.layers if 'input' in e.learned} == {6}
  assert [b['metric'] for b in both.also] == ['size']


def test_a_policy_that_leaves_a_layer_no_channel_is_refused():
  layers = (Layer(name='a', macs=9, weights=9, channels=2, per_channel=True, choices=(0, 2, 4)),)
  bits = {'a': {'kernel': np.zeros(2), 'input': np.float64(4)}}
  with pytest.raises(ValueError, match='a has no channel left'):
    policy.from_bits(bits, layers, cost.Budget(metric='bitops', target=1.0)).check(layers)


@pytest.mark.parametrize('metric', ['bitops', 'size'])
def test_kernel_wise_discretization_is_never_worse_than_the_single_offset(metric):
  """The paper's way: the largest d in [-1, 0] with which round(bits + d) meets the target."""
  layers = network('kernel', range(2, 9), width=0.5)
  limit = cost.budget(metric, layers, equivalent_bits=4)
  rng = np.random.default_rng(0)
  for spread in (0.1, 1.0):
    bits = cost.fill_bits(layers, lambda layer, which, shape, c: rng.normal(4, spread, shape))  # noqa: B023
    moved = lambda d: cost.fill_bits(
      layers,
      lambda l, which, shape, c: np.clip(np.round(cost.bits_of(bits, l.name, which) + d), c[0], c[-1]),  # noqa: B023
    )
    offsets = [d for d in np.linspace(-1, 0, 100) if limit.holds(moved(d), layers)]
    paper = max(float(limit.cost(moved(d), layers)) for d in offsets)
    ours = policy.discretize(bits, layers, limit).cost
    assert paper <= ours <= limit.target
    assert ours >= 0.999 * limit.target
