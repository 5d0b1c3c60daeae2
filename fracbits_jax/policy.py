"""Policies: the integer bit-widths of a network under a budget, and the file that records them."""

import collections
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax import cost as costs
from fracbits_jax.cost import Bits, Budget, Layer
from fracbits_jax.discretize import discretize_bits
from fracbits_jax.files import read_text, write_whole
from fracbits_jax.layers import FLOAT_BITS
from fracbits_jax.lookup import is_unit

FORMAT = 'fracbits_policy'
VERSION = 1

_MAX_BYTES = 4 * 10**6  # over a million bit-widths, one for each output channel
_MAX_COUNT = 10**18
_MAX_NAME = 255
_MAX_PROBLEMS = 800  # characters, so that what strangers wrote does not fill a screen


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
    """Raises `ValueError` that names the mismatches between this policy and a layer table, as many as fit a line."""
    mine, theirs = {e.name: e for e in self.layers}, {l.name: l for l in layers}
    problems = [f'{name} is not in the network' for name in mine if name not in theirs]
    problems += [f'{name} is not in the policy' for name in theirs if name not in mine]
    for name in mine.keys() & theirs.keys():
      problems += [f'{name} {problem}' for problem in _mismatches(mine[name], theirs[name])]
    if problems:
      raise ValueError(f'the policy is for another network: {_joined(sorted(problems))}')

  def save(self, path: str | os.PathLike) -> None:
    """Writes the policy as JSON, whole or not at all."""
    document = {'format': FORMAT, 'version': VERSION, **dataclasses.asdict(self)}
    layers = document.pop('layers')
    # One line a layer: the file is for reading.
    rows = ',\n'.join('    ' + json.dumps(row) for row in layers)
    head = json.dumps(document, indent=2)[:-2]
    write_whole(path, f'{head},\n  "layers": [\n{rows}\n  ]\n}}\n')


def _joined(problems: Sequence[str]) -> str:
  """The first of the problems, and how many more there are."""
  ends = itertools.accumulate(len(problem) + 2 for problem in problems)
  shown = max(1, sum(end <= _MAX_PROBLEMS for end in ends))
  more = [f'and {len(problems) - shown:,} more'] if shown < len(problems) else []
  return '; '.join([*problems[:shown], *more])


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
    ValueError: one sentence that names the file and what is wrong with it, or its mismatches with the network.
  """
  try:
    policy = _parse(_read(path))
    if layers is not None:
      policy.check(layers)
  except ValueError as error:
    raise ValueError(f'policy file {path}: {error}') from None
  return policy


def _read(path: str | os.PathLike) -> Any:
  text = read_text(path, max_bytes=_MAX_BYTES, kind='JSON')
  try:
    return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'it is not JSON ({error}): give a file that a run wrote') from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f'{_shown(twice)} is given twice in one object')
  return found


def _integer(digits: str) -> int:
  if len(digits) > 40:  # int takes the longer, the longer they are, and then speaks of limits of its own
    raise ValueError(f'an integer of {len(digits):,} digits')
  return int(digits)


def _parse(document: Any) -> Policy:
  if not isinstance(document, dict) or document.get('format') != FORMAT:
    raise ValueError(f'"format" is not "{FORMAT}": give a file that a run wrote')
  version = document.get('version')
  if type(version) is not int or version != VERSION:
    raise ValueError(f'"version" is {_shown(version)}: this program reads version {VERSION}')
  layers = tuple(_parse_rows(document, 'layers', _parse_entry))
  if not layers:
    raise ValueError('"layers" is empty: give a policy of a network')
  _check_names(layers)
  also = tuple(_parse_rows(document, 'also', _parse_spent)) if 'also' in document else ()
  return Policy(
    layers=layers,
    bitops_g=_number(document, 'bitops_g'),
    size_mb=_number(document, 'size_mb'),
    also=also,
    **_parse_spent(document),
  )


def _parse_rows(document: Mapping, key: str, parse: Callable[[Mapping], Any]) -> Iterator[Any]:
  for number, row in enumerate(_field(document, key, list), start=1):
    try:
      if not isinstance(row, dict):
        raise ValueError(f'it is {_shown(row)}: give an object')
      yield parse(row)
    except ValueError as error:
      raise ValueError(f'entry {number} of "{key}": {error}') from None


def _parse_spent(row: Mapping) -> dict[str, Any]:
  metric, unit = _field(row, 'metric', str), _field(row, 'unit', str)
  if metric not in costs.METRICS:
    raise ValueError(f'"metric" is {_shown(metric)}: give one of {", ".join(costs.METRICS)}')
  if not is_unit(unit):
    raise ValueError(f'"unit" is {_shown(unit)}: give a few letters, digits, spaces or /^*._-')
  return {'metric': metric, 'unit': unit, 'target': _number(row, 'target'), 'cost': _number(row, 'cost')}


def _parse_entry(row: Mapping) -> Entry:
  name, kernel, learned = _field(row, 'name', str), row.get('kernel'), _field(row, 'learned', list)
  if not name.isprintable() or len(name) > _MAX_NAME:
    raise ValueError(f'"name" is {_shown(name)}: give the path of a layer, up to {_MAX_NAME} printable characters')
  if any(which not in ('kernel', 'input') for which in learned) or len(set(learned)) < len(learned):
    raise ValueError('"learned" is not a list of "kernel", "input", both once or neither: give what was learned')
  if kernel == []:
    raise ValueError('"kernel" is an empty list: give a bit-width for every output channel')
  return Entry(
    name=name,
    kernel=tuple(_bit('kernel', b) for b in kernel) if isinstance(kernel, list) else _bit('kernel', kernel),
    input=_bit('input', row.get('input')),
    macs=_count(row, 'macs'),
    weights=_count(row, 'weights'),
    cost_share=_number(row, 'cost_share', most=1),
    learned=tuple(learned),
  )


def _check_names(layers: Sequence[Entry]) -> None:
  """Raises `ValueError` unless each name is there once, and none leads through the bits of another layer."""
  name, times = collections.Counter(entry.name for entry in layers).most_common(1)[0]
  if times > 1:
    raise ValueError(f'layer {name} occurs {times} times: keep one')
  bits = {f'{entry.name}/{which}' for entry in layers for which in entry.learned}
  for entry in layers:
    taken = bits.intersection(itertools.accumulate(entry.name.split('/'), '{}/{}'.format))
    if taken:
      raise ValueError(f'layer {entry.name} is inside {taken.pop()}, which are bits: give another name')


def _field(row: Mapping, key: str, kind: type) -> Any:
  value = row.get(key)
  if not isinstance(value, kind):
    raise ValueError(f'"{key}" is {_shown(value)}: give {"a list" if kind is list else "a string"}')
  return value


def _number(row: Mapping, key: str, most: float = 1e30) -> float:
  value = row.get(key)
  if type(value) not in (int, float) or not 0 <= value <= most:
    raise ValueError(f'"{key}" is {_shown(value)}: give a number from 0 to {most:g}')
  return float(value)


def _count(row: Mapping, key: str) -> int:
  value = row.get(key)
  if type(value) is not int or not 0 <= value <= _MAX_COUNT:
    raise ValueError(f'"{key}" is {_shown(value)}: give an integer from 0 to {_MAX_COUNT:g}')
  return value


def _bit(key: str, value: Any) -> int:
  if type(value) is not int or not 0 <= value <= FLOAT_BITS:
    raise ValueError(f'"{key}" is {_shown(value)}, which is no bit-width: give an integer from 0 to {FLOAT_BITS}')
  return value


def _shown(value: Any) -> str:
  """A value of a JSON file for a message: one line, and short however long the value is."""
  if value is None or isinstance(value, dict | list):
    return 'missing' if value is None else 'an object' if isinstance(value, dict) else 'a list'
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:40]}...'
