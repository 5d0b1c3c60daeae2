"""The file that records a policy: JSON that anybody may have written, so that nothing in it is taken for granted."""

import collections
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fracbits_jax.cost import METRICS
from fracbits_jax.cost.lookup import is_unit
from fracbits_jax.layers import FLOAT_BITS
from fracbits_jax.system import strict_json
from fracbits_jax.system.files import read_text, write_whole
from fracbits_jax.system.strict_json import shown

FORMAT = 'fracbits_policy'
VERSION = 1

_MAX_BYTES = 4 * 10**6  # over a million bit-widths, one for each output channel
_MAX_COUNT = 10**18
_MAX_NAME = 255


def write(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
  """Writes the fields of a policy, whole or not at all."""
  document = {'format': FORMAT, 'version': VERSION, **fields}
  layers = document.pop('layers')
  # One line a layer: the file is for reading.
  rows = ',\n'.join('    ' + json.dumps(row) for row in layers)
  head = json.dumps(document, indent=2)[:-2]
  write_whole(path, f'{head},\n  "layers": [\n{rows}\n  ]\n}}\n')


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The fields of a policy, each of its type and in its range; `layers` are the fields of its entries.

  Raises:
    ValueError: what is wrong with the file, without its name.
  """
  text = read_text(path, max_bytes=_MAX_BYTES, kind='JSON')
  try:
    document = strict_json.loads(text)
  except ValueError as error:
    raise ValueError(f'it is not JSON ({error}): give a file that a run wrote') from None
  return _parse(document)


def _parse(document: Any) -> dict[str, Any]:
  if not isinstance(document, dict) or document.get('format') != FORMAT:
    raise ValueError(f'"format" is not "{FORMAT}": give a file that a run wrote')
  version = document.get('version')
  if type(version) is not int or version != VERSION:
    raise ValueError(f'"version" is {shown(version)}: this program reads version {VERSION}')
  layers = tuple(_parse_rows(document, 'layers', _parse_entry))
  if not layers:
    raise ValueError('"layers" is empty: give a policy of a network')
  _check_names(layers)
  also = tuple(_parse_rows(document, 'also', _parse_spent)) if 'also' in document else ()
  costs = {key: _number(document, key) for key in ('bitops_g', 'size_mb')}
  return {'layers': layers, 'also': also, **costs, **_parse_spent(document)}


def _parse_rows(document: Mapping, key: str, parse: Callable[[Mapping], Any]) -> Iterator[Any]:
  for number, row in enumerate(_field(document, key, list), start=1):
    try:
      if not isinstance(row, dict):
        raise ValueError(f'it is {shown(row)}: give an object')
      yield parse(row)
    except ValueError as error:
      raise ValueError(f'entry {number} of "{key}": {error}') from None


def _parse_spent(row: Mapping) -> dict[str, Any]:
  metric, unit = _field(row, 'metric', str), _field(row, 'unit', str)
  if metric not in METRICS:
    raise ValueError(f'"metric" is {shown(metric)}: give one of {", ".join(METRICS)}')
  if not is_unit(unit):
    raise ValueError(f'"unit" is {shown(unit)}: give a few letters, digits, spaces or /^*._-')
  return {'metric': metric, 'unit': unit, 'target': _number(row, 'target'), 'cost': _number(row, 'cost')}


def _parse_entry(row: Mapping) -> dict[str, Any]:
  name, kernel, learned = _field(row, 'name', str), row.get('kernel'), _field(row, 'learned', list)
  if not name.isprintable() or len(name) > _MAX_NAME:
    raise ValueError(f'"name" is {shown(name)}: give the path of a layer, up to {_MAX_NAME} printable characters')
  if any(which not in ('kernel', 'input') for which in learned) or len(set(learned)) < len(learned):
    raise ValueError('"learned" is not a list of "kernel", "input", both once or neither: give what was learned')
  if kernel == []:
    raise ValueError('"kernel" is an empty list: give a bit-width for every output channel')
  return {
    'name': name,
    'kernel': tuple(_bit('kernel', b) for b in kernel) if isinstance(kernel, list) else _bit('kernel', kernel),
    'input': _bit('input', row.get('input')),
    'macs': _number(row, 'macs', most=_MAX_COUNT) if isinstance(row.get('macs'), float) else _count(row, 'macs'),
    'weights': _count(row, 'weights'),
    'cost_share': _number(row, 'cost_share', most=1),
    'learned': tuple(learned),
  }


def _check_names(layers: Sequence[Mapping]) -> None:
  """Raises `ValueError` unless each name is there once, and none leads through the bits of another layer."""
  name, times = collections.Counter(entry['name'] for entry in layers).most_common(1)[0]
  if times > 1:
    raise ValueError(f'layer {name} occurs {times} times: keep one')
  bits = {f'{entry["name"]}/{which}' for entry in layers for which in entry['learned']}
  for entry in layers:
    taken = bits.intersection(itertools.accumulate(entry['name'].split('/'), '{}/{}'.format))
    if taken:
      raise ValueError(f'layer {entry["name"]} is inside {taken.pop()}, which are bits: give another name')


def _field(row: Mapping, key: str, kind: type) -> Any:
  value = row.get(key)
  if not isinstance(value, kind):
    raise ValueError(f'"{key}" is {shown(value)}: give {"a list" if kind is list else "a string"}')
  return value


def _number(row: Mapping, key: str, most: float = 1e30) -> float:
  value: Any = row.get(key)
  if type(value) not in (int, float) or not 0 <= value <= most:
    raise ValueError(f'"{key}" is {shown(value)}: give a number from 0 to {most:g}')
  return float(value)


def _count(row: Mapping, key: str) -> int:
  value = row.get(key)
  if type(value) is not int or not 0 <= value <= _MAX_COUNT:
    raise ValueError(f'"{key}" is {shown(value)}: give an integer from 0 to {_MAX_COUNT:g}')
  return value


def _bit(key: str, value: Any) -> int:
  if type(value) is not int or not 0 <= value <= FLOAT_BITS:
    raise ValueError(f'"{key}" is {shown(value)}, which is no bit-width: give an integer from 0 to {FLOAT_BITS}')
  return value
