"""Bits per weight and the size of ranges of groups, counted by hand for layers of every shape."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax import cost, policy
from fracbits_jax.cost import Layer

CHOICES = (2, 3, 4, 8)


def _row(i, contracted, channels, size=None, **fields):
  how = dict(kind='dense', biases=channels, choices=CHOICES, input_bits=32, group_size=size)
  return Layer(name=f'layer{i}', macs=1, weights=contracted * channels, channels=channels, **how | fields)


@st.composite
def tables(draw):
  """Layers with and without groups, some of fixed bits, some with bits for each channel, and one that stays float."""
  rows = []
  for i in range(draw(st.integers(1, 5))):
    fields = {
      'size': draw(st.sampled_from([None, 1, 5, 32, 128])),
      'range_bits': draw(st.sampled_from([16, 32])),
      'per_channel': draw(st.booleans()),
      'kernel_bits': draw(st.sampled_from([None, None, 8])) if i else None,
    }
    rows.append(_row(i, draw(st.integers(1, 300)), draw(st.integers(1, 40)), **fields))
  return (*rows, _row(9, 7, 3, kernel_bits=32))


@given(table=tables(), bits=st.sampled_from(CHOICES[:-1]))
@settings(max_examples=100, deadline=None)
def test_bits_per_weight_are_kernels_and_ranges_over_all_quantized_weights(table, bits):
  weights, total = 0, 0
  for l in table[:-1]:
    groups = 0 if l.group_size is None else math.ceil(l.weights // l.channels / l.group_size)
    assert l.ranges == groups * l.channels
    weights += l.weights
    total += l.weights * (bits if l.kernel_bits is None else l.kernel_bits) + l.ranges * l.range_bits
  uniform = cost.uniform_bits(table, bits)
  assert cost.bits_per_weight(uniform, table) == pytest.approx(total / weights, rel=1e-14)
  rest = 21 * 4 + 4 * sum(l.biases for l in table)
  assert cost.model_size(uniform, table) == pytest.approx((total / 8 + rest) / 1e6, rel=1e-12)
  # What the budget of a uniform bit-width allows is that bit-width, and no more.
  budget = cost.budget('size', table, bits_per_weight=cost.bits_per_weight(uniform, table))
  assert budget.holds(uniform, table)
  found = policy.discretize(uniform, table, budget).bits()
  assert cost.bits_per_weight(found, table) <= total / weights * (1 + 1e-9)
  assert cost.equivalent_bits(budget, table) == pytest.approx(bits, rel=1e-6)


def test_the_slope_of_a_bit_width_is_its_share_of_the_weights():
  table = (_row(0, 30, 2, 32), _row(1, 20, 4, 8, per_channel=True), _row(9, 7, 3, kernel_bits=32))
  bits = jax.tree.map(np.float32, cost.uniform_bits(table, 3.5))
  slopes = jax.grad(lambda bits: cost.bits_per_weight(bits, table))(bits)
  np.testing.assert_allclose(slopes['layer0']['kernel'], 60 / 140, rtol=1e-6)
  np.testing.assert_allclose(slopes['layer1']['kernel'], np.full(4, 20 / 140), rtol=1e-6)


def test_a_float_network_has_none():
  assert cost.bits_per_weight({}, (_row(9, 7, 3, kernel_bits=32),)) == 0
  with pytest.raises(ValueError, match=r'bits_per_weight=4 is given to a network without quantized weights: quantize'):
    cost.budget('size', (_row(9, 7, 3, kernel_bits=32),), bits_per_weight=4)
  with pytest.raises(
    ValueError, match=r'leaves nothing to choose: the allowed bit-widths have one assignment, of 8 bits'
  ):
    cost.budget('size', (_row(0, 7, 3, kernel_bits=8),), bits_per_weight=4)
