"""Policies: the integer bit-widths of a network under a budget, and the file that records them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax import cost as costs
from fracbits_jax.cost import Bits, Budget, Layer
from fracbits_jax.discretize import discretize_bits
from fracbits_jax.files import write_whole

FORMAT = 'fracbits_policy'
VERSION = 1


def _integers(value: Any) -> int | tuple[int, ...]:
  array = np.asarray(value)
  if not np.array_equal(array, np.round(array)):
    odd = array[array != np.round(array)].reshape(-1)[0]
    raise ValueError(f'bits {odd:g} are not integers: a policy holds discretized bits')
  return tuple(int(b) for b in array) if array.ndim else int(array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """The bit-widths of one layer in a policy.

  Attributes:
    name: the layer's path.
    kernel: bit-width of the kernel, a tuple where there is one per output channel.
    input: bit-width of the inputs.
    macs: multiply-accumulates for one example.
    weights: entries of the kernel.
    cost_share: the layer's share of the network's cost, from 0 to 1.
    learned: which of `kernel` and `input` were learned rather than fixed.
  """

  name: str
  kernel: int | tuple[int, ...]
  input: int
  macs: int
  weights: int
  cost_share: float
  learned: tuple[str, ...]


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
    """Raises `ValueError` that names every mismatch between this policy and a layer table."""
    mine, theirs = {e.name: e for e in self.layers}, {l.name: l for l in layers}
    problems = [f'{name} is not in the network' for name in mine if name not in theirs]
    problems += [f'{name} is not in the policy' for name in theirs if name not in mine]
    for name in mine.keys() & theirs.keys():
      problems += [f'{name} {problem}' for problem in _mismatches(mine[name], theirs[name])]
    if problems:
      raise ValueError(f'the policy is for another network: {"; ".join(sorted(problems))}')

  def save(self, path: str | os.PathLike) -> None:
    """Writes the policy as JSON, whole or not at all."""
    document = {'format': FORMAT, 'version': VERSION, **dataclasses.asdict(self)}
    layers = document.pop('layers')
    # One line a layer: the file is for reading.
    rows = ',\n'.join('    ' + json.dumps(row) for row in layers)
    head = json.dumps(document, indent=2)[:-2]
    write_whole(path, f'{head},\n  "layers": [\n{rows}\n  ]\n}}\n')


def _mismatches(entry: Entry, layer: Layer) -> list[str]:
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
      if value.shape or value != fixed:
        problems.append(f'has {value} {which} bits in the policy and {fixed} in the network')
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
  for l in layers:
    specs = costs.learned(l)
    entries.append(
      Entry(
        name=l.name,
        kernel=_integers(costs.bits_of(bits, l.name, 'kernel')) if 'kernel' in specs else int(l.kernel_bits),
        input=_integers(costs.bits_of(bits, l.name, 'input')) if 'input' in specs else int(l.input_bits),
        macs=l.macs,
        weights=l.weights,
        cost_share=round(float(budget.cost(bits, (l,))) / total, 6) if total else 0.0,
        learned=tuple(specs),
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


def discretize(bits: Bits, layers: Sequence[Layer], budget: Budget) -> Policy:
  """The policy that `discretize_bits` makes of fractional bits; arguments and errors as there."""
  return from_bits(discretize_bits(bits, layers, budget), layers, budget)


def load(path: str | os.PathLike, layers: Sequence[Layer] | None = None) -> Policy:
  """Reads a policy file, and checks it against a network's layer table where one is given.

  Raises:
    ValueError: one sentence that names the file and what is wrong with it, or every mismatch with the network.
  """
  try:
    document = json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise ValueError(f'policy file {path} cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'policy file {path} is broken: it is not JSON ({error})') from None
  try:
    policy = _parse(document)
    if layers is not None:
      policy.check(layers)
  except ValueError as error:
    raise ValueError(f'policy file {path}: {error}') from None
  return policy


def _parse(document: Any) -> Policy:
  if not isinstance(document, dict) or document.get('format') != FORMAT:
    raise ValueError(f'it is broken: "format" is not "{FORMAT}"')
  if document.get('version') != VERSION:
    raise ValueError(f'it has version {document.get("version")!r}: this program reads version {VERSION}')
  layers = tuple(_parse_entry(row) for row in _field(document, 'layers', list))
  names = [entry.name for entry in layers]
  if len(set(names)) < len(names):
    raise ValueError(f'it is broken: layer {max(names, key=names.count)} occurs twice')
  metric = _field(document, 'metric', str)
  if metric not in costs.METRICS:
    raise ValueError(f'it has the metric {metric!r}: this program knows {", ".join(costs.METRICS)}')
  unit = _field(document, 'unit', str)
  numbers = {key: _number(document, key) for key in ('target', 'cost', 'bitops_g', 'size_mb')}
  also = tuple(_parse_spent(row) for row in document.get('also', []) or ())
  return Policy(layers=layers, metric=metric, unit=unit, also=also, **numbers)


def _parse_spent(row: Any) -> dict[str, Any]:
  if not isinstance(row, dict) or row.get('metric') not in costs.METRICS:
    raise ValueError('it is broken: "also" holds something else than budgets')
  numbers = {key: _number(row, key) for key in ('target', 'cost')}
  return {'metric': row['metric'], 'unit': _field(row, 'unit', str), **numbers}


def _parse_entry(row: Any) -> Entry:
  if not isinstance(row, dict):
    raise ValueError('it is broken: a layer is not an object')
  kernel = row.get('kernel')
  kernel = tuple(_bit(b) for b in kernel) if isinstance(kernel, list) else _bit(kernel)
  learned = tuple(_field(row, 'learned', list))
  if not set(map(str, learned)) <= {'kernel', 'input'}:
    raise ValueError(f'it is broken: "learned" is {learned}, but only "kernel" and "input" can be')
  return Entry(
    name=_field(row, 'name', str),
    kernel=kernel,
    input=_bit(row.get('input')),
    macs=_field(row, 'macs', int),
    weights=_field(row, 'weights', int),
    cost_share=_number(row, 'cost_share'),
    learned=learned,
  )


def _field(row: Mapping, key: str, kind: Any) -> Any:
  value = row.get(key)
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(f'it is broken: "{key}" is {value!r}')
  return value


def _number(row: Mapping, key: str) -> float:
  value = _field(row, key, (int, float))
  if not 0 <= value < 1e30:
    raise ValueError(f'it is broken: "{key}" is not a cost')
  return float(value)


def _bit(value: Any) -> int:
  if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 32:
    raise ValueError(f'it is broken: {value!r} is not a bit-width, an integer from 0 to 32')
  return value
