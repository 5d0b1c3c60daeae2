"""Policies: the integer bit-widths of a network under a budget."""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax import cost as costs
from fracbits_jax.cost import Bits, Budget, Layer
from fracbits_jax.policy import policy_file
from fracbits_jax.policy.discretization import discretize_bits

_MAX_PROBLEMS = 800  # characters, so that what strangers wrote does not fill a screen


def _integers(value: Any) -> np.ndarray:
  array = np.asarray(value)
  odd = ~np.isfinite(array) | (array != np.round(array))
  if odd.any():
    odd = array[odd].reshape(-1)[0]
    raise ValueError(f'bits {odd:g} are not integers: a policy holds discretized bits')
  return array.astype(int)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """The bit-widths of one layer in a policy.

  Attributes:
    name: the layer's path.
    kernel: bit-width of the kernel, a tuple where there is one per output channel; 0 where there is no kernel.
    input: bit-width of the inputs.
    macs: multiply-accumulates for one example.
    weights: entries of the kernel.
    cost_share: the layer's share of the network's cost, from 0 to 1.
    learned: which of `kernel` and `input` were learned, here and not in another row, rather than fixed.
  """

  name: str
  kernel: int | tuple[int, ...]
  input: int
  macs: int | float
  weights: int
  cost_share: float
  learned: tuple[str, ...]

  @property
  def has_kernel(self) -> bool:
    """Whether it is more than a quantizer of what others read."""
    return bool(self.macs or self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
  """The integer bit-widths of a network, the budget that they meet, and what they cost.

  Attributes:
    layers: an entry per layer, in the order in which the layers run.
    metric: the budget's metric.
    unit: the metric's unit.
    target: the budget's target.
    cost: what the policy costs in that metric.
    bitops_g: GBitOPs for one example.
    size_mb: size in MB.
    also: metric, unit, target and cost of the budgets that hold beside this one.
  """

  layers: tuple[Entry, ...]
  metric: str
  unit: str
  target: float
  cost: float
  bitops_g: float
  size_mb: float
  also: tuple[Mapping[str, Any], ...] = ()

  @property
  def pruned_channels(self) -> int:
    """Output channels whose kernels have 0 bits."""
    return sum(int(np.sum(np.asarray(e.kernel) == 0)) for e in self.layers if isinstance(e.kernel, tuple))

  def bits(self) -> dict:
    """The collection `bits` of the learned bit-widths."""
    bits: dict = {}
    for entry in self.layers:
      for which in entry.learned:
        node = bits
        for key in entry.name.split('/'):
          node = node.setdefault(key, {})
        node[which] = np.asarray(getattr(entry, which), np.float64)
    return bits

  def check(self, layers: Sequence[Layer]) -> None:
    """Raises `ValueError` that names the mismatches between this policy and a layer table, as many as fit a line."""
    mine, theirs = {e.name: e for e in self.layers}, {l.name: l for l in layers}
    problems = [f'{name} is not in the network' for name in mine if name not in theirs]
    problems += [f'{name} is not in the policy' for name in theirs if name not in mine]
    for name in mine.keys() & theirs.keys():
      shared = mine.get(theirs[name].input_path)
      problems += [f'{name} {problem}' for problem in _mismatches(mine[name], theirs[name], shared)]
    if problems:
      raise ValueError(f'the policy is for another network: {_joined(sorted(problems))}')

  def save(self, path: str | os.PathLike) -> None:
    """Writes the policy as JSON, whole or not at all."""
    policy_file.write(path, dataclasses.asdict(self))


def _joined(problems: Sequence[str]) -> str:
  """The first of the problems, and how many more there are."""
  ends = itertools.accumulate(len(problem) + 2 for problem in problems)
  shown = max(1, sum(end <= _MAX_PROBLEMS for end in ends))
  more = [f'and {len(problems) - shown:,} more'] if shown < len(problems) else []
  return '; '.join([*problems[:shown], *more])


def _mismatches(entry: Entry, layer: Layer, shared: Entry | None) -> list[str]:
  """What of an entry does not fit its layer; `shared` is the entry whose input bits are the layer's as well."""
  problems = []
  for field in ('macs', 'weights'):
    mine, theirs = getattr(entry, field), getattr(layer, field)
    if mine != theirs:
      problems.append(f'has {mine} {field} in the policy and {theirs} in the network')
  specs = costs.learned(layer)
  if set(entry.learned) != set(specs):
    learned = [', '.join(sorted(which)) or 'nothing' for which in (entry.learned, specs)]
    return [*problems, f'learns {learned[0]} in the policy and {learned[1]} in the network']
  for which in ('kernel', 'input'):
    value = np.asarray(getattr(entry, which))
    if which not in specs:
      fixed = getattr(layer, f'{which}_bits')
      if fixed is None:
        if shared is not None and value != shared.input:
          problems.append(f'has {value} input bits in the policy, where {shared.name} makes {shared.input} of them')
        continue
      if value.shape or value != fixed:
        mine = f'a list of {value.size}' if value.shape else value
        problems.append(f'has {mine} {which} bits in the policy and {fixed} in the network')
      continue
    shape, choices = specs[which]
    if which == 'kernel' and layer.prunes and not value.any():
      problems.append('has no channel left in the policy')
    if value.shape != shape:
      problems.append(f'has {which} bits of shape {value.shape} in the policy and {shape} in the network')
    elif not np.isin(value, choices).all():
      outside = sorted(set(value[~np.isin(value, choices)].reshape(-1).tolist()))
      problems.append(f'has {which} bits {", ".join(map(str, outside))} outside the allowed {choices}')
  return problems


def from_bits(bits: Bits, layers: Sequence[Layer], budget: Budget) -> Policy:
  """The policy of integer bit-widths `bits`; raises `ValueError` where they are not integers."""
  total = float(budget.cost(bits, layers))
  entries = []
  for l, share in zip(layers, budget.shares(bits, layers), strict=True):
    kernel = _integers(costs.bits_of(bits, l, 'kernel') if l.kernel_bits is None else l.kernel_bits)
    inputs = _integers(costs.bits_of(bits, l, 'input') if l.input_bits is None else l.input_bits)
    entries.append(
      Entry(
        name=l.name,
        kernel=tuple(kernel.tolist()) if kernel.ndim else int(kernel),
        input=int(inputs),
        macs=l.macs,
        weights=l.weights,
        cost_share=round(share, 6),
        learned=tuple(costs.learned(l)),
      )
    )
  return Policy(
    layers=tuple(entries),
    metric=budget.metric,
    unit=budget.unit,
    target=budget.target,
    cost=total,
    bitops_g=float(costs.bitops(bits, layers)),
    size_mb=float(costs.model_size(bits, layers)),
    also=budget.spent(bits, layers)[1:],
  )


def discretize(bits: Bits, layers: Sequence[Layer], budget: Budget, *, method: str = 'exact') -> Policy:
  """The policy that `discretize_bits` makes of fractional bits; arguments and errors as there."""
  return from_bits(discretize_bits(bits, layers, budget, method=method), layers, budget)


def _named_as(policy: Policy, layers: Sequence[Layer]) -> Policy:
  """The policy with the names of a table that writes the numbers of its layers otherwise, `block_0` as `block/0`."""
  plain = lambda name: re.sub(r'_(\d+)(?=/|$)', r'/\1', name)
  names = {plain(layer.name): layer.name for layer in layers}
  if len(names) < len(layers) or {plain(entry.name) for entry in policy.layers} != names.keys():
    return policy
  entries = tuple(dataclasses.replace(entry, name=names[plain(entry.name)]) for entry in policy.layers)
  return dataclasses.replace(policy, layers=entries)


def load(path: str | os.PathLike, layers: Sequence[Layer] | None = None) -> Policy:
  """Reads a policy file, and checks it against a network's layer table where one is given.

  A network that scans its layers takes the policy of the same one unrolled, `block_0` being `block/0`, and the reverse.

  Raises:
    ValueError: one sentence that names the file and what is wrong with it, or its mismatches with the network.
  """
  try:
    fields = policy_file.read(path)
    policy = Policy(**{**fields, 'layers': tuple(Entry(**row) for row in fields['layers'])})
    if layers is not None:
      policy = _named_as(policy, layers)
      policy.check(layers)
  except ValueError as error:
    raise ValueError(f'policy file {path}: {error}') from None
  return policy
