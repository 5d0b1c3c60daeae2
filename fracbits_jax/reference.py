"""What a network would cost otherwise, so that a report can say what was saved."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fracbits_jax import cost
from fracbits_jax.layers import FLOAT_BITS


def costs(budget: cost.Budget, layers: Sequence[cost.Layer]) -> dict[str, Any]:
  """The costs of the same network in float, and with the same bits everywhere.

  Args:
    budget: what the network is held to.
    layers: its layer table.

  Returns:
    `float`, `uniform_8` and `uniform`, each with `bits`, `bitops_g` and `size_mb`: all kernels and inputs at 32 bits;
    all that are learned at 8 bits; all that are learned at the largest bit-width with which they meet the budget.
    Nothing is pruned.
  """
  plain = [dataclasses.replace(l, kernel_bits=FLOAT_BITS, input_bits=FLOAT_BITS, source=None) for l in layers]
  uniform = lambda bits: {'bits': bits, **_both(cost.uniform_bits(layers, bits), layers)}
  return {
    'float': {'bits': FLOAT_BITS, **_both({}, plain)},
    'uniform_8': uniform(8),
    'uniform': uniform(round(cost.equivalent_bits(budget, layers), 6)),
  }


def _both(bits: Mapping[str, Any], layers: Sequence[cost.Layer]) -> dict[str, float]:
  return {'bitops_g': float(cost.bitops(bits, layers)), 'size_mb': float(cost.model_size(bits, layers))}
