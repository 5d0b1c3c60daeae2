"""Memory as a cost: what generated C declares, its gradient, policies that hold it."""

import dataclasses
import functools
import re

import fewer_blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost, layers, models, policy
from fracbits_jax.cost import Layer, LayerTable
from fracbits_jax.cost.memory import Memory, Tensor
from fracbits_jax.export import c_format
from fracbits_jax.export.source import source_of
from fracbits_jax.graph import schedule
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.policy import assignment, compact

QUANT = QuantConfig(scheme='lsq', init_bits=4.0, quantize_residuals=True)
PRUNED = QuantConfig(scheme='lsq', granularity='kernel', choices=range(9), input_choices=range(1, 9))


def declared(source, folder):
  """What the header of the C code says of its block of memory, in kB."""
  c_format.write(source, folder)
  (header,) = (path.read_text() for path in folder.glob('*.h') if path.stem not in ('fracbits', 'vectors'))
  return int(re.search(r'_ARENA_BYTES (\d+)', header)[1]) / 1e3


def random_bits(table, seed, least=1):
  rng = np.random.default_rng(seed)
  return cost.fill_bits(table, lambda layer, which, shape, choices: rng.integers(least, 9, shape))


@pytest.mark.parametrize(
  ('name', 'shape', 'quant'),
  [
    ('tiny_resnet8', (8, 8, 3), QUANT),
    ('mobilenet_v2', (32, 32, 3), QUANT),
    ('resnet8', (8, 8, 3), dataclasses.replace(QUANT, quantize_residuals=False)),
  ],
)
def test_it_is_what_the_c_code_declares(name, shape, quant, tmp_path):
  with fewer_blocks.mobilenets():
    model = models.create(name, num_classes=4, width=0.25, quant=quant)
    table = cost.trace(model, shape)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    bits = random_bits(table, 1, least=2)
    found = cost.peak_memory(bits, table)
    source = source_of(wrap.with_fixed_bits(model), {**variables, 'bits': bits}, shape, input_range=(0, 255))
    assert found == declared(source, tmp_path / 'net')


def test_pruned_channels_take_no_memory(tmp_path):
  shape = (8, 8, 3)
  model = models.create('tiny_resnet8', num_classes=4, width=0.25, quant=PRUNED)
  table = cost.trace(model, shape)
  bits = random_bits(table, 2)
  whole = cost.peak_memory(bits, table)
  kernel = bits['stage1_block1_conv1']['kernel']
  kernel[1::2] = 0
  found = cost.peak_memory(bits, table)
  assert found < whole
  # Half of the channels are gone: a smooth gate lies between.
  kernel[1::2] = 0.5
  assert found < cost.peak_memory(bits, table) < whole
  kernel[1::2] = 0
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  smaller, fewer = compact.compact(model, {**variables, 'bits': bits}, shape)
  assert declared(source_of(wrap.with_fixed_bits(smaller), fewer, shape, input_range=(0, 255)), tmp_path / 'c') == found


@functools.cache
def resnet():
  return cost.trace(models.create('tiny_resnet8', num_classes=4, width=0.25, quant=QUANT), (8, 8, 3))


def made_up(seed, *, kernels=False):
  """A table whose layers' inputs are stored over random steps, beside what has fixed bits."""
  rng = np.random.default_rng(seed)
  count, steps = int(rng.integers(2, 8)), int(rng.integers(2, 9))
  choices = tuple(range(2, 9)) if rng.random() < 0.7 else (2, 4, 8)
  rows, tensors = [], []
  for i in range(count):
    fixed = {} if kernels else {'kernel_bits': 8}
    rows.append(
      Layer(name=f'l{i}', macs=1000, weights=int(rng.integers(50, 500)), channels=4, input_choices=choices, **fixed)
    )
    first = int(rng.integers(steps))
    spans = {'first': first, 'last': int(rng.integers(first, steps))}
    tensors.append(Tensor(name=f't{i}', elements=int(rng.integers(3, 4000)), bits=f'l{i}', **spans))
  tensors += [
    Tensor(name='image', elements=int(rng.integers(3, 2000)), bits=8, first=0, last=int(rng.integers(steps))),
    Tensor(name='output', elements=10, bits=32, first=steps - 1, last=steps - 1),
  ]
  return LayerTable(rows, resnet().coverage, lambda: Memory(tensors))


def in_two_places():
  """Inputs of 1001 numbers in the first step, beside 100 bytes, and of 333 in the second; kernels at 8 bits."""
  rows = [Layer(name=name, macs=9, weights=9, channels=1, kernel_bits=8) for name in ('a', 'b')]
  tensors = [
    Tensor(name='image', elements=100, bits=8, first=0, last=0),
    Tensor(name='x', elements=1001, bits='a', first=0, last=0),
    Tensor(name='y', elements=333, bits='b', first=1, last=1),
  ]
  return LayerTable(rows, resnet().coverage, lambda: Memory(tensors))


def bits_at(a, b):
  return {'a': {'input': np.float64(a)}, 'b': {'input': np.float64(b)}}


@pytest.mark.parametrize(('a', 'b', 'count'), [(3, 2, 100 + 376), (1, 8, 333), (1, 1, 100 + 126), (2.5, 1, 100 + 313)])
def test_it_counts_whole_bytes_by_tensor_where_most_is_stored(a, b, count):
  assert cost.peak_memory(bits_at(a, b), in_two_places()) == count / 1e3


def test_inputs_that_are_stored_elsewhere_are_raised_though_the_memory_is_full():
  table = in_two_places()
  found = policy.discretize(bits_at(5.4, 3.2), table, cost.Budget(metric='memory', target=0.476))
  assert [e.input for e in found.layers] == [3, 4]
  assert found.cost == 0.476
  offset = policy.discretize(bits_at(5.4, 3.2), table, cost.Budget(metric='memory', target=0.476), method='offset')
  assert [e.input for e in offset.layers] == [3, 3]


def exact_steps(bits, table):
  memory = table.memory
  return memory.live @ np.array([float(x) / 8e3 for x in memory.bits(bits, table)])


def test_the_smooth_maximum_is_above_the_largest_by_a_few_percent_and_has_its_gradient():
  for seed in range(4):
    table = resnet() if seed == 0 else made_up(seed)
    rng = np.random.default_rng(seed)
    flat, tree = jax.tree.flatten(
      cost.fill_bits(table, lambda layer, which, shape, c, rng=rng: rng.uniform(2, 8, shape))
    )
    smooth = lambda x, table=table, tree=tree: cost.peak_memory(jax.tree.unflatten(tree, list(x)), table)
    at = jnp.asarray(flat)
    largest = exact_steps(jax.tree.unflatten(tree, flat), table).max()
    assert largest * 0.99999 <= float(smooth(at)) <= 1.04 * largest
    gradient = np.asarray(jax.grad(smooth)(at))
    assert (gradient >= 0).all()
    with jax.enable_x64(True):
      exact = lambda x, table=table, tree=tree: (
        (exact_steps(jax.tree.unflatten(tree, list(x)), table) ** 100.0).sum() ** 0.01
      )
      moved = [(exact(flat + 1e-6 * e) - exact(flat - 1e-6 * e)) / 2e-6 for e in np.eye(len(flat))]
    np.testing.assert_allclose(gradient, moved, rtol=2e-3, atol=1e-5 * gradient.max())


def test_a_search_s_penalty_moves_only_what_is_stored_where_most_is():
  table = resnet()
  budget = cost.budget('memory', table, equivalent_bits=3)
  assert (budget.unit, budget.target) == ('kB of RAM', cost.peak_memory(cost.uniform_bits(table, 3), table))
  assert cost.equivalent_bits(budget, table) == pytest.approx(3, abs=0.01)
  bits = jax.tree.map(jnp.asarray, cost.uniform_bits(table, 4.0))
  slope = jax.grad(lambda bits: budget.penalty(bits, table))(bits)
  at_peak = {name for name, leaves in slope.items() if leaves.get('input', 0) > 1e-3}
  assert at_peak == {'stage1_block1_input', 'stage1_block1_conv2', 'stage2_block1_input'}
  shares = dict(zip([l.name for l in table], budget.shares(cost.uniform_bits(table, 4), table), strict=True))
  assert {name for name, share in shares.items() if share} == at_peak
  assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize('with_size', [False, True])
def test_a_discretized_peak_is_never_above_the_target_and_no_input_is_lower_than_it_has_to_be(with_size):
  used = []
  for seed in range(50):
    table = made_up(seed, kernels=with_size)
    rng = np.random.default_rng(seed)
    least, most = cost.cost_range('memory', table)
    if least == most:
      continue
    bits = cost.fill_bits(table, lambda layer, which, shape, c, rng=rng: rng.uniform(2, 8, shape))
    also = [cost.Budget(metric='size', target=float(cost.model_size(cost.uniform_bits(table, 4), table)))]
    budget = cost.budget('memory', table, target=rng.uniform(least, 0.99 * most), also=also[: int(with_size)])
    found = policy.discretize(bits, table, budget)
    assert found.cost <= budget.target
    assert all(spent['cost'] <= spent['target'] for spent in found.also)
    for entry in found.layers:
      row = next(l for l in table if l.name == entry.name)
      if entry.input <= float(bits[entry.name]['input']) - 1 and entry.input < row.input_choices[-1]:
        higher = row.input_choices[row.input_choices.index(entry.input) + 1]
        raised = found.bits()
        raised[entry.name]['input'] = np.float64(higher)
        assert higher > float(bits[entry.name]['input']) or not budget.holds(raised, table)
    if found.cost < 0.99 * budget.target:  # as no input can be raised any more
      for entry, row in zip(found.layers, table, strict=True):
        for higher in [b for b in row.input_choices if b > entry.input][:1]:
          raised = found.bits()
          raised[entry.name]['input'] = np.float64(higher)
          assert not budget.holds(raised, table)
    used.append(max(found.cost / budget.target, *(s['cost'] / s['target'] for s in found.also), 0))
  assert len(used) > 30
  assert np.median(used) > (0.99 if with_size else 0.9)


def test_a_target_below_the_least_bits_is_refused_in_one_sentence():
  table = resnet()
  with pytest.raises(ValueError, match=r'cannot be met by any allowed assignment of bits: give a target of at least'):
    cost.budget('memory', table, target=0.2)
  tight = cost.Budget(metric='memory', target=0.2)
  with pytest.raises(ValueError, match=r'no allowed assignment of bits meets 0\.2 kB of RAM: they reach from'):
    policy.discretize(cost.uniform_bits(table, 4), table, tight)
  with pytest.raises(ValueError, match=r'the memory budget beside it, 0\.2 kB of RAM, cannot be met'):
    cost.budget('bitops', table, equivalent_bits=3, also=[tight])


def test_channels_are_pruned_where_the_least_inputs_are_too_much():
  with fewer_blocks.mobilenets():
    table = cost.trace(models.create('tiny_mobilenet', num_classes=4, small_images=True, quant=PRUNED), (8, 8, 1))
    assert table.memory.tensors  # found while the network is the one with fewer blocks
  tightest = cost.peak_memory(cost.least_bits(table), table)
  kept = cost.fill_bits(table, lambda layer, which, shape, choices: 1)
  target = (tightest + cost.peak_memory(kept, table)) / 2
  found = policy.discretize(cost.uniform_bits(table, 4), table, cost.Budget(metric='memory', target=target))
  assert found.cost <= target
  assert found.pruned_channels
  assert all(any(e.kernel) for e in found.layers if isinstance(e.kernel, tuple))


def test_scores_make_policies_that_hold_it():
  for seed in range(6):
    table = resnet() if seed == 0 else made_up(seed)
    least, most = cost.cost_range('memory', table)
    budget = cost.budget('memory', table, target=0.4 * least + 0.6 * most)
    slots = [(l.name, which, c) for l in table for which, (_, c) in cost.learned(l).items()]
    found = assignment.solve({(n, w): {b: 2.0**-b for b in c} for n, w, c in slots}, table, budget)
    assert 0.6 * budget.target < found.cost <= budget.target


def test_networks_that_others_wrote_have_it_too():
  from flax import linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Conv(4, (3, 3), name='a')(x))
      x = nn.relu(nn.Conv(4, (3, 3), name='b')(x))
      return nn.Dense(3, name='c')(x.mean((1, 2)))

  table = cost.trace(layers.quantize_model(Net(), (6, 6, 3)), (6, 6, 3))
  bits = cost.uniform_bits(table, 3)
  # Real inputs become codes of 8 bits first. While a runs: these, and its outputs, 6 x 6 x 4 of 3 bits.
  assert cost.peak_memory(bits, table) == max(108 + 108, 108 + 54) / 1e3


def test_what_is_no_program_of_integers_and_mere_rows_are_refused():
  table = cost.trace(models.create('vit_mini', quant=QuantConfig()), (32, 32, 3))
  with pytest.raises(ValueError, match='memory of VisionTransformer is not known, as it cannot run with integers'):
    cost.budget('memory', table, equivalent_bits=3)
  table = resnet()
  with pytest.raises(ValueError, match=r'memory is counted on the layer table that cost\.trace gives'):
    cost.peak_memory(cost.uniform_bits(table, 3), table[:2])
  other = LayerTable(table[:2], table.coverage, lambda: table.memory)
  with pytest.raises(ValueError, match=r'is counted on all of its layers, and .* is missing'):
    cost.peak_memory(cost.uniform_bits(table, 3), other)


def test_an_outline_is_scheduled_as_the_network_itself():
  from fracbits_jax.export.c_program import integer_graph

  model = models.create('tiny_resnet8', num_classes=4, width=0.25, quant=QUANT)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  bits = random_bits(resnet(), 3, least=2)
  graph = integer_graph(source_of(model, {**variables, 'bits': bits}, (8, 8, 3)).graph)
  buffers = schedule.schedule(graph).buffers
  found = resnet().memory.tensors
  assert [(b.name, b.elements, b.bits, b.first, b.last) for b in buffers] == [
    (t.name, t.elements, t.bits, t.first, t.last) for t in found
  ]
