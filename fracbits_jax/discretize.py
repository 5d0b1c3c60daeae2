"""Discretization: from fractional bit-widths to allowed ones that meet a budget.

It works on positions: a bit-width's position counts the allowed values below it and adds the fraction of the way to the
next one, so sets such as (2, 4, 8) and runs of integers are treated alike.
"""

from collections.abc import Sequence

import numpy as np

from fracbits_jax import cost as costs
from fracbits_jax.cost import Bits, Budget, Layer

CLOSE = 0.99  # the share of the target that a policy should use
ENOUGH = 0.9999  # no further unit is tried beyond this share
_BISECTIONS = 50
_REFUSALS = 256
_EXCHANGES = 50


class Vector:
  """The learned bit-widths of a network as one vector of positions."""

  def __init__(self, layers: Sequence[Layer]):
    self.layers = layers
    self.slots = [(l, which, *spec) for l in layers for which, spec in costs.learned(l).items()]
    self.last = np.concatenate([np.full(_size(shape), len(c) - 1) for _, _, shape, c in self.slots] or [np.zeros(0)])

  def positions(self, bits: Bits) -> np.ndarray:
    """Real positions of fractional bits; bits outside the allowed range are clipped."""
    found = []
    for layer, which, shape, choices in self.slots:
      value = np.asarray(costs.lookup(bits, layer, which), np.float64)
      if value.shape != shape:
        raise ValueError(f'bits of {layer.name}/{which} have shape {value.shape}, the layer table says {shape}')
      if not np.isfinite(value).all():
        raise ValueError(f'bits of {layer.name}/{which} are not finite: {value}')
      found.append(np.interp(value.reshape(-1), choices, np.arange(len(choices))))
    return np.concatenate(found) if found else np.zeros(0)

  def bits(self, positions: np.ndarray) -> dict:
    """The collection `bits` at integer positions."""
    pieces = iter(np.split(positions.astype(int), np.cumsum([_size(shape) for _, _, shape, _ in self.slots])[:-1]))
    return costs.fill_bits(self.layers, lambda layer, which, shape, c: np.asarray(c)[next(pieces)].reshape(shape))

  def cost(self, positions: np.ndarray, budget: Budget) -> float:
    """The cost at integer positions."""
    return float(budget.cost(self.bits(positions), self.layers))

  def round(self, positions: np.ndarray) -> np.ndarray:
    """The nearest integer positions inside the range; a tie rounds down."""
    return np.clip(np.ceil(positions - 0.5), 0, self.last)


def _size(shape: tuple[int, ...]) -> int:
  return int(np.prod(shape, dtype=int))


def _raise(vector: Vector, budget: Budget, at: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Moves the units in `order` up by one position each, in that order, leaving out those that would not fit."""

  def raised(count: int) -> np.ndarray:
    result = at.copy()
    result[order[:count]] += 1
    return result

  for _ in range(_REFUSALS):
    if not order.size or vector.cost(at, budget) >= ENOUGH * budget.target:
      break
    # The cost grows with every unit, so the longest prefix that fits is found by bisection.
    low, high = 0, order.size
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if vector.cost(raised(middle), budget) <= budget.target else (low, middle - 1)
    at, order = raised(low), order[low + 1 :]
  return at


def _exchange(vector: Vector, budget: Budget, at: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Lowers one unit to raise others, where that comes closer to the target; the last resort of coarse networks."""
  best, best_cost = at, vector.cost(at, budget)
  for unit in np.argsort(wanted - at)[:_EXCHANGES]:
    if at[unit] > 0:
      trial = at.copy()
      trial[unit] -= 1
      others = np.flatnonzero((trial < vector.last) & (np.arange(at.size) != unit))
      trial = _raise(vector, budget, trial, others[np.argsort(trial[others] - wanted[others], kind='stable')])
      trial_cost = vector.cost(trial, budget)
      if best_cost + (1 - ENOUGH) * budget.target < trial_cost <= budget.target:
        best, best_cost = trial, trial_cost
  return best


def discretize_bits(bits: Bits, layers: Sequence[Layer], budget: Budget) -> dict:
  """Turns fractional bit-widths into allowed ones that meet a budget.

  An offset is bisected so that round(position + offset) meets the target; then single bit-widths that this rounded
  down are rounded up, largest remainder first, while the budget allows. Where that leaves more than 1% unused, others
  are raised as well, those nearest to their searched value first.

  Args:
    bits: the searched collection `bits`, fractional.
    layers: the layer table.
    budget: metric and target.

  Returns:
    The collection `bits` with allowed values only, in NumPy float64. Its cost never exceeds the target.

  Raises:
    ValueError: if bits are missing, misshapen or not finite, or if no allowed assignment meets the target.
  """
  vector = Vector(layers)
  wanted = vector.positions(bits)
  if vector.cost(np.zeros_like(wanted), budget) > budget.target:
    least, largest = costs.cost_range(budget.metric, layers)
    raise ValueError(
      f'no allowed assignment of bits meets {budget.target:.6g} {budget.unit}: they reach from {least:.6g} to '
      f'{largest:.6g} {budget.unit}'
    )
  low, high = -(wanted.max(initial=0) + 1), 0.0
  if vector.cost(vector.round(wanted), budget) <= budget.target:
    low = 0.0
  for _ in range(_BISECTIONS):
    middle = (low + high) / 2
    low, high = (middle, high) if vector.cost(vector.round(wanted + middle), budget) <= budget.target else (low, middle)
  at = vector.round(wanted + low)
  rounded_down = np.flatnonzero((at < wanted) & (at < vector.last))
  at = _raise(vector, budget, at, rounded_down[np.argsort(at[rounded_down] - wanted[rounded_down], kind='stable')])
  while vector.cost(at, budget) < CLOSE * budget.target:
    open_units = np.flatnonzero(at < vector.last)
    raised = _raise(vector, budget, at, open_units[np.argsort((at - wanted)[open_units], kind='stable')])
    if np.array_equal(raised, at):
      raised = _exchange(vector, budget, at, wanted)
      if np.array_equal(raised, at):
        break
    at = raised
  return vector.bits(at)
