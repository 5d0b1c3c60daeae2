import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import cost, layers, models
from fracbits_jax.commands import cost as cost_command
from fracbits_jax.cost import Layer, lookup

TABLE = (
  Layer(name='stem', macs=1000, weights=100, channels=4, kernel_bits=8, input_bits=8),
  Layer(name='block/conv', macs=2000, weights=300, channels=4, biases=2, choices=(2, 4), input_choices=(2, 8)),
)


def test_costs_by_hand():
  bits = {'block': {'conv': {'kernel': 3.0, 'input': 5.0}}}
  np.testing.assert_allclose(cost.bitops(bits, TABLE), (1000 * 8 * 8 + 2000 * 3 * 5) / 1e9)
  np.testing.assert_allclose(cost.model_size(bits, TABLE), (100 * 8 / 8 + 300 * 3 / 8 + 2 * 4) / 1e6)


def test_bits_per_channel_enter_as_their_mean_and_each_has_its_share_of_the_gradient():
  table = (Layer(name='conv', macs=10**9, weights=8, channels=4, per_channel=True, input_bits=2),)
  bits = {'conv': {'kernel': jnp.array([1.0, 2.0, 3.0, 6.0])}}
  value, gradient = jax.value_and_grad(cost.bitops)(bits, table)
  np.testing.assert_allclose(value, 3.0 * 2)
  np.testing.assert_allclose(gradient['conv']['kernel'], 0.5)


def test_the_table_of_a_network_counts_positions_groups_and_biases():
  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      quant = layers.QuantConfig(choices=(2, 4))
      x = layers.QuantConv(
        6, (3, 3), strides=2, padding=1, feature_group_count=3, use_bias=False, quant=quant, name='a'
      )(x)
      shared = layers.QuantDense(6, quant=quant, name='b')
      x = shared(shared(x))
      return layers.QuantDense(5, name='c')(x.mean((1, 2)))

  a, b, c = cost.trace(Network(), (2, 9, 9, 3))
  assert (a.macs, a.weights, a.biases, a.kind) == (5 * 5 * 9 * 6, 9 * 6, 0, 'depthwise')
  assert (b.macs, b.weights, b.biases, b.kind) == (2 * 5 * 5 * 36, 36, 6, 'dense')  # used twice, stored once
  assert (c.macs, c.weights, c.biases, c.kernel_bits, c.input_bits) == (30, 30, 5, 32, 32)  # not quantized
  assert a.choices == (2, 4)


def test_one_image_may_be_given_without_a_batch_axis():
  model = models.create('resnet8', num_classes=10)
  assert cost.trace(model, (32, 32, 3)) == cost.trace(model, (4, 32, 32, 3))


def test_the_penalty_pulls_towards_the_target_from_both_sides():
  budget = cost.Budget(metric='bitops', target=1e-4)
  for width, sign in ((8.0, 1), (1.0, -1)):
    bits = {'block': {'conv': {'kernel': jnp.float32(width), 'input': jnp.float32(width)}}}
    value, gradient = jax.value_and_grad(budget.penalty)(bits, TABLE)
    np.testing.assert_allclose(value, abs(cost.bitops(bits, TABLE) / 1e-4 - 1), rtol=1e-5)
    assert np.sign(gradient['block']['conv']['kernel']) == sign


def test_a_budget_in_equivalent_bits_costs_what_uniform_bits_cost():
  budget = cost.budget('size', TABLE, equivalent_bits=3)
  assert budget.target == cost.model_size(cost.uniform_bits(TABLE, 3), TABLE)
  np.testing.assert_allclose(cost.equivalent_bits(budget, TABLE), 3, rtol=1e-9)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (dict(metric='flops', target=1.0), r"'flops' is unknown: choose one of bitops, size"),
    (dict(metric='bitops', target=1e-6), r'cannot be met .* at least 7.2e-05 and below 0.000128 GBitOPs'),
    (dict(metric='bitops', target=1.0), r'already met .* at least 7.2e-05 and below 0.000128 GBitOPs'),
    (dict(metric='size', equivalent_bits=1), 'cannot be met'),
    (dict(metric='size', equivalent_bits=4), 'already met'),
    (dict(metric='size'), 'give exactly one'),
    (dict(metric='size', target=1.0, equivalent_bits=3), 'give exactly one'),
  ],
)
def test_budgets_out_of_reach_are_refused_with_the_range(given, message):
  with pytest.raises(ValueError, match=message):
    cost.budget(given.pop('metric'), TABLE, **given)


def test_missing_bits_are_named():
  with pytest.raises(ValueError, match='no bits for block/conv/kernel'):
    cost.bitops({'block': {}}, TABLE)


@pytest.mark.parametrize(
  ('arguments', 'last_line'),
  [
    (['--model', 'mobilenet_v1', '--bits', '3'], 'bitops_g=5.730 size_mb=2.223'),
    (['--model', 'mobilenet_v2', '--bits', '4'], 'bitops_g=5.353 size_mb=2.379'),
    (['--model', 'resnet18', '--bits', '3'], 'bitops_g=22.825 size_mb=4.709'),
  ],
)
def test_command_line(arguments, last_line, capsys):
  assert cost_command.main(arguments) == 0
  output = capsys.readouterr().out.splitlines()
  assert output[-1] == last_line
  assert re.fullmatch(r'memory: \d+\.\d{3} kB of RAM', output[-2])
  assert output[-4].startswith('classifier')
  assert '100% of' in output[-3]  # multiply-accumulates are those of quantized layers


def test_command_line_refuses_an_unknown_model(capsys):
  assert cost_command.main(['--model', 'vgg', '--bits', '3']) == 2
  assert "error: model 'vgg' is unknown" in capsys.readouterr().err


def test_the_package_imports_nothing_but_jax_and_flax():
  code = (
    'import sys, fracbits_jax\n'
    'from fracbits_jax import quantize, layers, models, cost, policy\n'
    'heavy = {"tensorflow_datasets", "grain", "cv2", "sklearn", "matplotlib", "tensorboardX", "ml_collections"}\n'
    'print(sorted(heavy & sys.modules.keys()))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_of_several_budgets_the_one_used_most_decides():
  table = cost.trace(models.create('resnet8', num_classes=10, width=0.5, quant=layers.QuantConfig()), (16, 16, 1))
  size = cost.budget('size', table, equivalent_bits=3)
  both = cost.budget('bitops', table, equivalent_bits=4, also=[size])
  for width, ratio in ((3.0, 1.0), (4.0, cost.model_size(cost.uniform_bits(table, 4.0), table) / size.target)):
    bits = cost.uniform_bits(table, width)
    np.testing.assert_allclose(both.ratio(bits, table), ratio)
    np.testing.assert_allclose(both.penalty(jax.tree.map(jnp.float32, bits), table), ratio - 1, atol=1e-6)
  assert both.holds(cost.uniform_bits(table, 2.9), table)
  assert not both.holds(cost.uniform_bits(table, 3.5), table)  # within the BitOPs, over the size
  assert cost.equivalent_bits(both, table) == pytest.approx(3.0)


@pytest.mark.parametrize(('granularity', 'choices'), [('layer', (4, 8)), ('kernel', tuple(range(2, 9)))])
def test_a_lookup_budget_has_the_gradient_of_its_table(granularity, choices):
  quant = layers.QuantConfig(granularity=granularity, choices=choices)
  table = cost.trace(models.create('resnet8', num_classes=10, width=0.5, quant=quant), (16, 16, 1))
  bricks = lookup.load('bit_fusion')
  rng = np.random.default_rng(0)
  bits = cost.fill_bits(table, lambda layer, which, shape, c: rng.uniform(4.2, 4.8, shape))
  limit = cost.budget('lookup', table, equivalent_bits=4.2, table=bricks)
  assert limit.unit == bricks.total
  gradient = jax.grad(limit.cost)(jax.tree.map(jnp.float32, bits), table)
  for name, which in (('stage1_block1_conv2', 'kernel'), ('stage3_block1_conv1', 'input'), ('classifier', 'input')):
    at = (2,) if which == 'kernel' and granularity == 'kernel' else ()
    assert gradient[name][which][at] > 0
    shifted = []
    for step in (-1e-3, 1e-3):
      moved = jax.tree.map(np.copy, bits)
      moved[name][which][at] += step
      shifted.append(float(limit.cost(moved, table)))
    np.testing.assert_allclose(gradient[name][which][at], (shifted[1] - shifted[0]) / 2e-3, rtol=1e-4)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'metric': 'lookup'}, 'needs a lookup table'),
    ({'table': lookup.load('bit_serial')}, 'takes no lookup table'),
    ({'metric': 'flops'}, "metric 'flops' is unknown"),
    ({'target': 0.0}, 'is not a cost'),
  ],
)
def test_a_budget_that_makes_no_sense_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    cost.Budget(**{'metric': 'bitops', 'target': 1.0, **changes})


def test_between_allowed_bit_widths_a_layer_costs_a_mixture_of_what_they_cost():
  row = dict(name='a', macs=10**9, weights=10, channels=2, input_bits=4)
  bits = {'a': {'kernel': 6.0}}
  bricks = lookup.load('bit_fusion')  # (w / 2)(a / 2) bricks; 6 bits take those of 8
  wide, narrow = cost.Layer(**row, choices=(4, 8)), cost.Layer(**row, choices=(4, 6, 8))
  assert cost.lookup_cost(bits, (wide,), bricks) == pytest.approx((4 + 8) / 2)
  assert cost.lookup_cost(bits, (narrow,), bricks) == pytest.approx(8)


def test_a_lookup_table_has_to_cover_what_is_allowed():
  table = cost.trace(models.create('resnet8', quant=layers.QuantConfig(choices=(2, 12))), (16, 16, 1))
  with pytest.raises(ValueError, match='bit_fusion has no cost for'):
    cost.budget('lookup', table, equivalent_bits=4, table=lookup.load('bit_fusion'))


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('metric', ['bitops', 'size'])
def test_the_least_target_that_a_refusal_names_is_taken(metric, seed):
  """Though it has six digits, and the least cost rounds in a sum of many layers."""
  rng = np.random.default_rng(seed)
  rows = rng.integers(1, 10**5, (int(rng.integers(1, 40)), 2)).tolist()
  table = [cost.Layer(name=f'l{i}', macs=m, weights=n, channels=4) for i, (m, n) in enumerate(rows)]
  least = cost.cost_range(metric, table)[0]
  with pytest.raises(ValueError, match='cannot be met by any') as refusal:
    cost.budget(metric, table, target=0.9 * least)
  told = float(re.search(r'at least (\S+)', str(refusal.value))[1])
  assert told == pytest.approx(least, rel=1e-4)
  found = cost.budget(metric, table, target=told)
  assert found.target >= least
  assert cost.budget(metric, table, target=least * (1 - 1e-15), also=[found]).holds(cost.least_bits(table), table)
