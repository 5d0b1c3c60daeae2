"""Discretization: from fractional bit-widths to allowed ones that meet a budget.

It works on positions: a bit-width's position counts the allowed values below it and adds the fraction of the way to the
next one, so sets such as (2, 4, 8) and runs of integers are treated alike. Bit-widths that the metric does not price,
such as those of inputs under a size budget, are rounded to the nearest and otherwise left alone. Costs are counted in
targets, so that 1 is what may be spent; where several budgets hold, the one that is used most counts.

Memory is no sum over the layers: only what is stored where most is counts, so that inputs are lowered there alone, and
raised elsewhere as far as other budgets let them.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from fracbits_jax import cost as costs
from fracbits_jax.cost import Bits, Budget, Layer
from fracbits_jax.cost.memory import Memory, memory_of

METHODS = ('exact', 'offset')
CLOSE = 0.99  # the part of the budget that a policy should use
ENOUGH = 0.9999  # no further unit is tried beyond this
_BISECTIONS = 50
_REFUSALS = 256
_CELLS = 20_000  # into which the knapsack divides the target


class Vector:
  """The learned bit-widths of a network as one vector of positions, and what they cost under a budget."""

  def __init__(self, layers: Sequence[Layer], budget: Budget):
    self.layers, self.budget = layers, budget
    self.slots = [(l, which, *spec) for l in layers for which, spec in costs.learned(l).items()]
    sizes = [int(np.prod(shape, dtype=int)) for _, _, shape, _ in self.slots]
    self.starts = np.cumsum([0, *sizes])
    self.last = np.repeat([len(choices) - 1 for *_, choices in self.slots], sizes).astype(float)
    self.lowest = np.zeros_like(self.last)
    self.priced_by = np.zeros((len(budget.all), self.last.size), bool)
    self.memory: Memory | None = None if all(b.is_sum for b in budget.all) else memory_of(layers)
    self.stored_in = self._stored_in()
    self.is_input = np.repeat([which == 'input' for _, which, *_ in self.slots], sizes)
    least, most = self._costs(self.lowest), self._costs(self.last)
    for i in range(len(self.slots)):
      # From both ends: nothing depends on the kernels that a pruned layer feeds, and 4-bit inputs may cost as much as
      # 8-bit ones where the kernel has 8 bits.
      lowered, raised = self.last.copy(), self.lowest.copy()
      lowered[self.units(i)], raised[self.units(i)] = 0, self.last[self.units(i)]
      matters = (self._costs(lowered) < most) | (self._costs(raised) > least)
      self.priced_by[:, self.units(i)] = matters[:, None]
    for k, held in enumerate(budget.all):
      if not held.is_sum:
        self.priced_by[k] = self.stored_in.any(0)
    self.priced: np.ndarray = np.logical_or.reduce(self.priced_by)

  def _costs(self, positions: np.ndarray) -> np.ndarray:
    """The cost under each budget, in targets."""
    bits = self.bits(positions)
    return np.array([float(b.cost(bits, self.layers)) / b.target for b in self.budget.all])

  def _stored_in(self) -> np.ndarray:
    """For each tensor that is stored whether a bit-width matters to its size, `[tensors, bit-widths]`."""
    if self.memory is None:
      return np.zeros((0, self.last.size), bool)
    by_slot = {(layer.name, which): self.units(i) for i, (layer, which, *_) in enumerate(self.slots)}
    found = np.zeros((len(self.memory.tensors), self.last.size), bool)
    for row, slots in zip(found, self.memory.slots(self.layers), strict=True):
      for slot in slots:
        row[by_slot[slot]] = True
    return found

  def crowd(self, positions: np.ndarray, most: float = 0.0) -> np.ndarray:
    """The tensors that are live where more than `most` bytes are, or else where most are, `[tensors]`."""
    assert self.memory is not None
    stored = self.memory.live @ np.array(self.memory.sizes(self.bits(positions), self.layers))
    steps = stored > most if most and (stored > most).any() else stored >= ENOUGH * stored.max()
    return self.memory.live[steps].any(0)

  def open(self, positions: np.ndarray) -> np.ndarray:
    """The bit-widths that are priced, and whose rise costs nothing of a budget that is used up."""
    priced, closed = np.zeros((2, self.last.size), bool)
    for held, mine, spent in zip(self.budget.all, self.priced_by, self._costs(positions), strict=True):
      if not held.is_sum:
        mine = mine & (self.is_input | (positions == 0))  # a channel that is there takes its place at any bits
      priced |= mine
      if spent >= ENOUGH:
        closed |= mine if held.is_sum else mine & self.stored_in[self.crowd(positions)].any(0)
    return priced & ~closed

  def saved(self, positions: np.ndarray, tensors: np.ndarray) -> np.ndarray:
    """The bytes that some tensors lose when an input goes down by one position."""
    assert self.memory is not None
    elements = np.array([t.elements for t in self.memory.tensors]) * tensors
    step = np.zeros_like(self.last)
    for i in np.flatnonzero([which == 'input' for _, which, *_ in self.slots]):
      choices, at = self.slots[i][3], int(positions[self.starts[i]])
      step[self.starts[i]] = choices[at] - choices[at - 1] if at else 0
    return elements @ self.stored_in * step / 8

  def keep_a_channel(self, wanted: np.ndarray) -> None:
    """Raises the lowest position of each prunable layer's widest channel to 1: no layer may vanish."""
    for i, (layer, which, *_) in enumerate(self.slots):
      if which == 'kernel' and layer.prunes and len(layer.choices) > 1:
        self.lowest[self.starts[i] + np.argmax(wanted[self.units(i)])] = 1

  def units(self, slot: int) -> slice:
    """Where a slot's bit-widths lie in the vector."""
    return slice(self.starts[slot], self.starts[slot + 1])

  def positions(self, bits: Bits) -> np.ndarray:
    """Real positions of fractional bits; bits outside the allowed range are clipped."""
    found = np.zeros_like(self.last)
    for i, (layer, which, shape, choices) in enumerate(self.slots):
      value = np.asarray(costs.bits_of(bits, layer, which), np.float64)
      if value.shape != shape:
        raise ValueError(f'bits of {layer.name}/{which} have shape {value.shape}, the layer table says {shape}')
      if not np.isfinite(value).all():
        raise ValueError(f'bits of {layer.name}/{which} are not finite')
      found[self.units(i)] = np.interp(value.reshape(-1), choices, np.arange(len(choices)))
    return found

  def bits(self, positions: np.ndarray) -> dict:
    """The collection `bits` at integer positions."""
    at = iter(positions[self.units(i)].astype(int) for i in range(len(self.slots)))
    return costs.fill_bits(self.layers, lambda layer, which, shape, c: np.asarray(c)[next(at)].reshape(shape))

  def cost(self, positions: np.ndarray) -> float:
    """The cost at integer positions, in targets."""
    return float(self.budget.ratio(self.bits(positions), self.layers))

  def fits(self, positions: np.ndarray) -> bool:
    """Whether integer positions meet every budget, to the last digit."""
    return self.budget.holds(self.bits(positions), self.layers)

  def round(self, positions: np.ndarray) -> np.ndarray:
    """The nearest integer positions inside the range; a tie rounds down."""
    return np.clip(np.ceil(positions - 0.5), self.lowest, self.last)


def _offset(vector: Vector, wanted: np.ndarray) -> np.ndarray:
  """The rounded positions for the largest offsets, at most 0, with which they meet each budget.

  A budget moves what it prices and nothing else, so a second one costs no bits that cannot help it.
  """
  offsets = np.zeros_like(wanted)
  for budget, priced in zip(vector.budget.all, vector.priced_by, strict=True):
    if not budget.is_sum:
      continue
    shifted = lambda offset: vector.round(wanted + offset * priced)  # noqa: B023
    holds = lambda at: budget.cost(vector.bits(at), vector.layers) <= budget.target  # noqa: B023
    low, high = -(wanted.max(initial=0) + 1), 0.0
    if holds(shifted(high)):
      continue
    for _ in range(_BISECTIONS):
      middle = (low + high) / 2
      low, high = (middle, high) if holds(shifted(middle)) else (low, middle)
    offsets = np.minimum(offsets, low * priced)
  found = vector.round(wanted + offsets)
  for budget in vector.budget.all:
    if not budget.is_sum:
      found = _under_peak(vector, wanted, found, budget)
  return found if vector.fits(found) else vector.lowest.copy()


def _under_peak(vector: Vector, wanted: np.ndarray, at: np.ndarray, budget: Budget) -> np.ndarray:
  """Positions that meet a budget of memory: inputs are lowered one by one where too much is stored.

  The next is that which goes least away from its searched value for what it saves, by squares. Only where no input can
  be lowered any more, channels are pruned, those with the fewest bits first.
  """
  at = at.copy()
  while budget.cost(vector.bits(at), vector.layers) > budget.target:
    lower = at > vector.lowest
    saved = vector.saved(at, vector.crowd(at, 1e3 * budget.target)) * lower
    if not saved.any():  # gaps between tensors, or what cannot be lowered
      saved = vector.saved(at, np.ones(len(vector.stored_in), bool)) * lower
    prunable = vector.stored_in.any(0) & ~vector.is_input & lower & (vector.lowest == 0)
    if saved.any():
      farther = 1 - 2 * (at - wanted)  # (at - 1 - wanted)^2 - (at - wanted)^2
      at[np.argmin(np.divide(farther, saved, out=np.full_like(at, np.inf), where=saved > 0))] -= 1
    elif prunable.any():
      at[np.argmin(np.where(prunable, at, np.inf))] = 0
    else:
      break
  return at


def _raise(vector: Vector, wanted: np.ndarray, at: np.ndarray, candidates: np.ndarray) -> np.ndarray:
  """Moves candidates up by one position each, largest remainder first, leaving out those that would not fit."""
  order = np.flatnonzero(candidates & (at < vector.last))
  order = order[np.argsort((at - wanted)[order], kind='stable')]

  def raised(count: int) -> np.ndarray:
    result = at.copy()
    result[order[:count]] += 1
    return result

  for _ in range(_REFUSALS):
    order = order[vector.open(at)[order]]
    if not order.size:
      break
    # The cost grows with every unit, so the longest prefix that fits is found by bisection.
    low, high = 0, order.size
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if vector.fits(raised(middle)) else (low, middle - 1)
    at, order = raised(low), order[low + 1 :]
  return at


def _options(
  vector: Vector, wanted: np.ndarray, at: np.ndarray, group: Sequence[Layer], budget: Budget
) -> list[tuple[float, float, dict]]:
  """What a layer can be, or a group: (cost in targets, squared distance to the searched positions, positions by slot).

  The channels of a kernel with one bit-width each move together, as far as any of them can.
  """
  slots = [i for i, slot in enumerate(vector.slots) if any(slot[0] is layer for layer in group)]
  ways = []
  for i in slots:
    units, reach = vector.units(i), int(vector.last[vector.units(i)].max(initial=0))
    if not vector.priced[units].any():
      ways.append([at[units]])
    elif vector.slots[i][1] == 'input' and vector.stored_in[:, units].any():  # or more would be stored
      ways.append([np.asarray([position], float) for position in range(int(at[units][0]) + 1)])
    elif vector.slots[i][2]:
      moves = range(-reach, reach + 1)
      kept = (at[units] > 0) | ~np.array(vector.slots[i][0].prunes)
      lowest = np.maximum(vector.lowest[units], vector.slots[i][0].prunes)
      ways.append([np.where(kept, np.clip(at[units] + move, lowest, vector.last[units]), 0) for move in moves])
    else:
      ways.append([np.asarray([position], float) for position in range(reach + 1)])
  found = []
  for way in itertools.product(*ways):
    trial = at.copy()
    for i, positions in zip(slots, way, strict=True):
      trial[vector.units(i)] = positions
    distance = sum(float(np.mean((p - wanted[vector.units(i)]) ** 2)) for i, p in zip(slots, way, strict=True))
    price = float(budget.cost(vector.bits(trial), group)) / budget.target
    found.append((price, distance, dict(zip(slots, way, strict=True))))
  return found


def _knapsack(vector: Vector, wanted: np.ndarray, at: np.ndarray) -> np.ndarray:
  """The assignment nearest to the searched one among those that use 99% of the target; the fullest if none does.

  Dynamic programming over the layers, those with common bits as one, and over what has been spent, in cells of 1/20,000
  of the target. Costs are rounded down to cells, so that nothing within reach is missed; what comes out is held against
  the exact cost. Of several budgets the one that is used most is the one to fill, and pruned channels stay as they are.
  """
  sums = [b for b in vector.budget.all if b.is_sum]
  if not sums:
    return at
  tightest = max(sums, key=lambda b: b.cost(vector.bits(at), vector.layers) / b.target)
  best = np.full(_CELLS + 1, np.inf)  # least distance by cells spent
  best[0] = 0.0
  steps = []
  for group in costs.groups(vector.layers):
    ways = _options(vector, wanted, at, group, tightest)
    options = [(int(min(price, 2) * _CELLS), distance, way) for price, distance, way in ways]
    reached, chosen = np.full_like(best, np.inf), np.zeros(best.size, int)
    for k, (cells, distance, _) in enumerate(options):
      if cells <= _CELLS:
        total = best[: best.size - cells] + distance
        better = total < reached[cells:]
        reached[cells:][better], chosen[cells:][better] = total[better], k
    steps.append((options, chosen))
    best = reached

  def assignment(spent: int) -> np.ndarray:
    result = at.copy()
    for options, chosen in reversed(steps):
      cells, _, way = options[chosen[spent]]
      for i, positions in way.items():
        result[vector.units(i)] = positions
      spent -= cells
    return result

  ends = np.flatnonzero(np.isfinite(best))
  near = ends[ends >= CLOSE * _CELLS - len(steps)]  # a cell may be lost in each layer
  far = ends[ends < CLOSE * _CELLS - len(steps)][::-1][:_REFUSALS]
  fullest, fullest_cost = at, vector.cost(at)
  for spent in (*near[np.argsort(best[near], kind='stable')], *far):
    found = assignment(spent)
    cost = vector.cost(found)
    if fullest_cost * (1 + 1e-9) < cost and vector.fits(found):  # more than the order of a sum can make
      fullest, fullest_cost = found, cost
    if fullest_cost >= CLOSE:
      break
  return fullest


def discretize_bits(bits: Bits, layers: Sequence[Layer], budget: Budget, *, method: str = 'exact') -> dict:
  """Turns fractional bit-widths into allowed ones that meet a budget.

  An offset is bisected so that round(position + offset) meets the target; then single bit-widths that this rounded
  down are rounded up, largest remainder first, while the budget allows. Where that leaves more than 1% unused, others
  are raised as well, those nearest to their searched value first; and where single steps do not get there, a knapsack
  over all layers finds the assignment nearest to the searched one that does.

  Args:
    bits: the searched collection `bits`, fractional.
    layers: the layer table.
    budget: metric and target, and whatever else has to hold.
    method: `exact` for all of the above; `offset` for the offset alone, which is the paper's way and can leave much of
      the budget unused.

  Returns:
    The collection `bits` with allowed values only, in NumPy float64. Its cost never exceeds the target; a layer whose
    channels can be pruned keeps at least one.

  Raises:
    ValueError: if bits are missing, misshapen or not finite, or if no allowed assignment meets the target; an unknown
      method.
  """
  if method not in METHODS:
    raise ValueError(f'discretization {method!r} is unknown: choose one of {", ".join(METHODS)}')
  vector = Vector(layers, budget)
  wanted = vector.positions(bits)
  vector.keep_a_channel(wanted)
  if not vector.fits(vector.lowest):
    broken = next(b for b in budget.all if b.cost(vector.bits(vector.lowest), layers) > b.target)
    least, largest = costs.cost_range(broken.metric, layers, broken.table)
    raise ValueError(
      f'no allowed assignment of bits meets {broken.target:.6g} {broken.unit}: they reach from {least:.6g} to '
      f'{largest:.6g} {broken.unit}'
    )
  at = _offset(vector, wanted)
  if method == 'offset':
    return vector.bits(at)
  at = _raise(vector, wanted, at, at < wanted)
  while vector.cost(at) < CLOSE:
    raised = _raise(vector, wanted, at, np.ones(at.shape, bool))
    if np.array_equal(raised, at):
      at = _knapsack(vector, wanted, at)
      break
    at = raised
  return vector.bits(_filled(vector, wanted, at))


def _filled(vector: Vector, wanted: np.ndarray, at: np.ndarray) -> np.ndarray:
  """Positions that use a budget of memory as well: inputs that no other budget prices are raised as far as it lets."""
  priced = list(zip(vector.budget.all, vector.priced_by, strict=True))
  of_sums = np.logical_or.reduce([mine for held, mine in priced if held.is_sum] or [np.zeros(at.shape, bool)])
  for held, mine in priced:
    while not held.is_sum and held.cost(vector.bits(at), vector.layers) < CLOSE * held.target:
      raised = _raise(vector, wanted, at, mine & vector.is_input & ~of_sums)
      if np.array_equal(raised, at):
        break
      at = raised
  return at
