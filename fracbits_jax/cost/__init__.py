"""What a network costs in computation, size or what hardware charges, and the budgets that hold it.

Public: `trace`, from a network to its layer table of `Layer`s; `bitops`, `model_size`, `bits_per_weight`,
`lookup_cost`, `peak_memory`, pure functions of (bits, layer table); `range_names`, which parameters are ranges;
`budget` and `Budget`; `lookup`, tables of what a multiply-accumulate costs.
"""

from fracbits_jax.cost import lookup
from fracbits_jax.cost.budgets import METRICS, Budget, budget, cost_range, equivalent_bits
from fracbits_jax.cost.layer_table import (
  Bits,
  Layer,
  LayerTable,
  bits_of,
  bits_range,
  fill_bits,
  gates,
  groups,
  learned,
  least_bits,
  uniform_bits,
)
from fracbits_jax.cost.memory import peak_memory
from fracbits_jax.cost.metrics import bitops, bits_per_weight, format_table, lookup_cost, model_size
from fracbits_jax.cost.ranges import range_names
from fracbits_jax.cost.tracing import trace

__all__ = [
  'METRICS',
  'Bits',
  'Budget',
  'Layer',
  'LayerTable',
  'bitops',
  'bits_of',
  'bits_per_weight',
  'bits_range',
  'budget',
  'cost_range',
  'equivalent_bits',
  'fill_bits',
  'format_table',
  'gates',
  'groups',
  'learned',
  'least_bits',
  'lookup',
  'lookup_cost',
  'model_size',
  'peak_memory',
  'range_names',
  'trace',
  'uniform_bits',
]  # fmt: skip
