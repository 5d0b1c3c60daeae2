"""Policies without a search: random ones, and those that an integer program finds for given scores."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, sparse

from fracbits_jax import cost as costs
from fracbits_jax.cost import Budget, Layer
from fracbits_jax.cost.memory import memory_of
from fracbits_jax.policy import policies

Scores = Mapping[tuple[str, str], Mapping[int, float]]  # (layer, `kernel` or `input`) -> bit-width -> score

# To which scores and targets are scaled: the solver's tolerances are absolute, 1e-6.
_LARGEST, _TARGET = 1e4, 1e6
_RETRIES = 10


def draw(layers: Sequence[Layer], budget: Budget, seed: int) -> policies.Policy:
  """A random policy that meets a budget: bit-widths drawn evenly from the allowed range, then discretized.

  Args:
    layers: the layer table.
    budget: what the policy may cost.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  bits = costs.fill_bits(layers, lambda layer, which, shape, choices: rng.uniform(choices[0], choices[-1], shape))
  return policies.discretize(bits, layers, budget)


def solve(scores: Scores, layers: Sequence[Layer], budget: Budget) -> policies.Policy:
  """The policy with the least sum of scores among those that meet the budgets.

  A layer costs the product of its kernel's and its input's bits, so the program chooses one pair for each layer:

      min sum_lp s_lp x_lp    with    sum_p x_lp = 1 for each layer l,    sum_lp c_lp x_lp <= target,    x_lp in {0, 1}

  s_lp is the sum of the two scores and c_lp the cost of layer l with the pair p: a multiple-choice knapsack, which
  HiGHS solves to optimality. Layers with common bits of their inputs are chosen as one. A budget of memory is one such
  constraint for each step, on what is stored then. All channels of a kernel get the same bits, and none is pruned.

  Args:
    scores: what each allowed bit-width of each learned kernel and input costs in accuracy; least is best.
    layers: the layer table.
    budget: what the policy may cost, and further budgets beside it.

  Raises:
    ValueError: scores that are missing or not finite; no assignment meets the budget.
  """
  groups = costs.groups(layers)
  options = [_options(scores, group) for group in groups]
  score = np.array([score for found in options for _, score in found])
  owner = np.repeat(np.arange(len(groups)), [len(found) for found in options])
  one_each = sparse.csr_array((np.ones(owner.size), (owner, np.arange(owner.size))))
  rows = [(held, row) for held in budget.all for row in _prices(options, groups, layers, held)]
  spent = sparse.csr_array([row for _, row in rows])
  scale, limits = _LARGEST / max(float(np.abs(score).max()), float(np.finfo(float).tiny)), np.full(len(rows), _TARGET)
  for attempt in range(_RETRIES):
    found = optimize.milp(
      scale * score,
      integrality=np.ones(score.size),
      bounds=optimize.Bounds(0, 1),
      constraints=[optimize.LinearConstraint(one_each, 1, 1), optimize.LinearConstraint(spent, -np.inf, limits)],
      options={'mip_rel_gap': 0},
    )
    if found.x is None:
      break
    chosen: dict[tuple[str, str], int] = {}
    for g, ways in enumerate(options):
      chosen |= ways[int(np.argmax(found.x[owner == g]))][0]
    bits = costs.fill_bits(layers, lambda layer, which, shape, choices: chosen[layer.name, which])  # noqa: B023
    if budget.holds(bits, layers):
      return policies.from_bits(bits, layers, budget)
    # The solver lets pass what is over by less than its tolerance, and knows of no gaps between tensors.
    gaps = [not held.is_sum and not held.cost(bits, layers) <= held.target for held, _ in rows]
    limits = _TARGET - np.where(gaps, 0.02 * (attempt + 1) * _TARGET, 1e-6 * 10**attempt)
  raise ValueError(
    f'no allowed assignment of bits meets {budget.target:.6g} {budget.unit}: raise the budget, or allow fewer bits'
  )


_Option = tuple[dict[tuple[str, str], int], float]  # the learned bits of the layers of a group, and their score


def _options(scores: Scores, group: Sequence[Layer]) -> list[_Option]:
  """What a layer can be, or layers with common bits, without pruning."""
  slots = {(l.name, which): [b for b in c if b] for l in group for which, (_, c) in costs.learned(l).items()}
  found = []
  for widths in itertools.product(*slots.values()):
    way = dict(zip(slots, widths, strict=True))
    total = 0.0
    for slot, width in way.items():
      total += scores.get(slot, {}).get(width, np.nan)
    if not np.isfinite(total):
      name = next(slot[0] for slot, width in way.items() if not np.isfinite(scores.get(slot, {}).get(width, np.nan)))
      raise ValueError(f'a score of {name} is missing or not finite: give one for every allowed bit-width')
    found.append((way, total))
  return found


def _prices(
  options: Sequence[Sequence[_Option]], groups: Sequence[Sequence[Layer]], layers: Sequence[Layer], budget: Budget
) -> list[np.ndarray]:
  """What every option of every group costs, in parts of what may be spent: a row, or one for each step of memory."""
  if not budget.is_sum:
    return _stored(options, layers, budget)
  prices = []
  for group, found in zip(groups, options, strict=True):
    alone = [dataclasses.replace(layer, source=None) for layer in group]  # nothing that feeds them is pruned
    for way, _ in found:
      bits = costs.fill_bits(alone, lambda layer, which, shape, choices: way[layer.name, which])  # noqa: B023
      prices.append(_TARGET * float(budget.cost(bits, alone)) / budget.target)
  return [np.array(prices)]


def _stored(options: Sequence[Sequence[_Option]], layers: Sequence[Layer], budget: Budget) -> list[np.ndarray]:
  """What every option stores in each step, in parts of what is left there."""
  memory, learned = memory_of(layers), {layer.name for layer in layers if 'input' in costs.learned(layer)}
  plain = costs.uniform_bits(layers, 1)
  sizes = np.array(memory.sizes(plain, layers), np.float64)
  owners = [t.bits if t.bits in learned else None for t in memory.tensors]
  fixed = memory.live @ (sizes * [owner is None for owner in owners])
  left = np.maximum(1e3 * budget.target - fixed, 1)  # bytes
  of_way = lambda way: [
    0 if owner is None else -(-t.elements * way.get((owner, 'input'), 0) // 8)
    for t, owner in zip(memory.tensors, owners, strict=True)
  ]
  taken = np.array([memory.live @ of_way(way) for found in options for way, _ in found])
  return list(_TARGET * taken.T / left[:, None])
