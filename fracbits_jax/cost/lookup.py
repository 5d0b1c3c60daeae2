"""What a multiply-accumulate costs on given hardware: a table in kernel and input bits, measured or derived.

A table is a CSV file. Lines that start with `#` are comments, two of which are read: `# unit: cycles` names the unit of
one multiply-accumulate and is required, `# total: Mcycles` names 10^9 of them (`G` + unit without it). The header line
is `kernel_bits,input_bits,cost` with an optional fourth column `kind` (`dense`, `pointwise`, `depthwise` or `standard`;
empty rows serve all kinds without rows of their own). Then comes one row for every combination of the bit-widths.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.system.files import read_text

KINDS = ('dense', 'pointwise', 'depthwise', 'standard')

_TABLES = pathlib.Path(__file__).parent / 'tables'
_COLUMNS = ['kernel_bits', 'input_bits', 'cost', 'kind']
_MAX_BITS = 32
_MAX_BYTES = 10**6
_MAX_COST = 1e30  # far inside float32, so that no sum over a network overflows
_SETTING = re.compile(r'#\s*(unit|total)\s*:\s*(.*)')
_UNIT = re.compile(r'[\w µ/^*.-]+')  # units go into reports, so nothing that means something there
_MAX_UNIT = 24
_NUMBER = re.compile(r'[0-9.eE+-]+')  # for float, which takes 1_0 and digits of other scripts as well

_Grid = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Costs of one multiply-accumulate over a grid of bit-widths.

  Attributes:
    name: the name of a table that comes along, or of the file without its ending.
    unit: unit of the costs.
    total: name of 10^9 units.
    kernel_bits: bit-widths of the kernel, increasing integers.
    input_bits: bit-widths of the inputs, increasing integers.
    costs: pairs of a kind of layer, '' for all those without a pair of their own, and its costs,
      `[kernel_bits][input_bits]`; they do not fall along either axis.
  """

  name: str
  unit: str
  total: str
  kernel_bits: tuple[int, ...]
  input_bits: tuple[int, ...]
  costs: tuple[tuple[str, _Grid], ...]

  def per_mac(self, kind: str, kernel_bits: Any, input_bits: Any) -> Any:
    """Cost of one multiply-accumulate, bilinear between the points of the grid and exact on them.

    A kernel at 0 bits costs nothing: where the grid starts above 0, costs rise linearly from there to its first row.
    Beyond the grid the cost is that of its edge; `check` finds layers that could get there.

    Args:
      kind: the kind of the layer.
      kernel_bits: bit-widths w of the kernel, `()` or `[C]`.
      input_bits: bit-width a of the inputs, `()`.

    Returns:
      The cost in `unit`, of the shape of `kernel_bits`: NumPy float64, or JAX float32 where one of the bit-widths is a
      JAX array. Its gradient is the slope of the cell of the grid, from the right on a grid point and from the left on
      the last one.

    Raises:
      ValueError: for a kind of layer that the table does not cover.
    """
    is_jax = isinstance(kernel_bits, jax.Array) or isinstance(input_bits, jax.Array)
    xp, dtype = (jnp, jnp.float32) if is_jax else (np, np.float64)
    kernel_grid, input_grid, costs = (xp.asarray(array, dtype) for array in self._arrays(kind))
    w_low, w_high, w_part = _place(kernel_grid, xp.asarray(kernel_bits, dtype), xp)
    a_low, a_high, a_part = _place(input_grid, xp.asarray(input_bits, dtype), xp)
    at_low = (1 - a_part) * costs[w_low, a_low] + a_part * costs[w_low, a_high]
    at_high = (1 - a_part) * costs[w_high, a_low] + a_part * costs[w_high, a_high]
    return (1 - w_part) * at_low + w_part * at_high

  @functools.cache  # noqa: B019 (tables are few, and live as long as their budgets)
  def over(self, kernel_bits: tuple[int, ...], input_bits: tuple[int, ...]) -> 'Table':
    """The table over these bit-widths alone, so that costs between two of them mix what those two cost.

    A layer that may have 4 or 8 bits and is half way between them is a mixture of both, whatever 6 bits would cost.
    """
    costs = tuple(
      (kind, tuple(tuple(float(self.per_mac(kind or self._any, w, a)) for a in input_bits) for w in kernel_bits))
      for kind, _ in self.costs
    )
    return dataclasses.replace(self, kernel_bits=kernel_bits, input_bits=input_bits, costs=costs)

  @property
  def _any(self) -> str:
    """A kind without a pair of its own, where there is one."""
    return next((kind for kind in KINDS if kind not in self._by_kind), KINDS[0])

  def check(self, layers: Sequence[Any]) -> None:
    """Raises `ValueError` that names the first layer with a fixed or allowed bit-width outside the grid.

    Args:
      layers: rows of a layer table: objects with `name`, `kind`, `macs`, `kernel_bits`, `input_bits`, `choices` and
        `input_choices`, as in `cost.Layer`. A kernel's 0 bits are always covered.
    """
    covered = tuple(b for b in self.kernel_bits if b > 0), self.input_bits
    for layer in layers:
      if not layer.macs:
        continue
      try:
        self._arrays('dense' if layer.kind == 'product' else layer.kind)
      except ValueError as error:
        raise ValueError(f'{layer.name}: {error}') from None
      kernel = [b for b in (layer.choices if layer.kernel_bits is None else [layer.kernel_bits]) if b > 0]
      inputs = layer.input_choices if layer.input_bits is None else [layer.input_bits]
      for which, bits, grid in zip(('kernel', 'inputs'), (kernel, inputs), covered, strict=True):
        if not all(grid[0] <= b <= grid[-1] for b in bits):
          raise ValueError(
            f'lookup table {self.name} has no cost for {layer.name}, whose {which} can have {_span(bits)} bits: it '
            f'covers kernels of {_span(covered[0])} and inputs of {_span(covered[1])} bits; allow other bit-widths or '
            'give another table'
          )

  def _arrays(self, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = self._by_kind.get(kind, self._by_kind.get(''))
    if kind not in KINDS or found is None:
      covered = KINDS if '' in self._by_kind else tuple(self._by_kind)
      raise ValueError(f'lookup table {self.name} has no costs for layers of kind {kind!r}: it covers {_and(covered)}')
    return found

  @functools.cached_property
  def _by_kind(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Kind -> (grid of the kernel from 0 on, grid of the inputs, costs), float64."""
    kernel, inputs = np.asarray(self.kernel_bits, np.float64), np.asarray(self.input_bits, np.float64)
    missing = int(kernel[0] > 0)
    kernel = np.pad(kernel, (missing, 0))
    return {kind: (kernel, inputs, np.pad(np.asarray(c, np.float64), ((missing, 0), (0, 0)))) for kind, c in self.costs}


def _place(grid: Any, x: Any, xp: Any) -> tuple[Any, Any, Any]:
  """The indices of the grid points below and above x, and how far x is from the one to the other, 0 to 1."""
  last = len(grid) - 1
  low = xp.clip(xp.searchsorted(grid, x, side='right') - 1, 0, max(last - 1, 0))
  high = xp.minimum(low + 1, last)
  part = (x - grid[low]) / xp.maximum(grid[high] - grid[low], 1)  # a grid of one point has no width
  return low, high, xp.where(x < grid[0], 0, xp.where(x > grid[last], 1, part))


def _span(bits: Sequence[int]) -> str:
  return f'{min(bits)} to {max(bits)}' if min(bits) < max(bits) else f'{min(bits)}'


def _and(words: Sequence[str]) -> str:
  return ', '.join(words[:-1]) + ' and ' + words[-1] if len(words) > 1 else ''.join(words)


def names() -> tuple[str, ...]:
  """The tables that come along, for `load`."""
  return tuple(sorted(path.stem for path in _TABLES.glob('*.csv')))


def load(name_or_path: str | os.PathLike) -> Table:
  """A table that comes along, by its name, or one of your own, by the path of its file.

  Raises:
    ValueError: one sentence that names the file, its line and what is wrong with it.
  """
  given = os.fspath(name_or_path)
  path = _TABLES / f'{given}.csv' if given in names() else pathlib.Path(given)
  try:
    return _parse(path.stem, _read(path))
  except ValueError as error:
    raise ValueError(f'lookup table {given}: {error}') from None


def is_unit(text: str, max_length: int = _MAX_UNIT + 1) -> bool:
  """Whether a text can be the unit of a cost; a total is up to one letter longer, as `G` + unit."""
  return len(text) <= max_length and _UNIT.fullmatch(text) is not None


def _read(path: pathlib.Path) -> str:
  try:
    is_file = path.is_file()
  except OSError as error:
    raise ValueError(f'the file cannot be read: {error.strerror}') from None
  if not is_file:
    raise ValueError(f'there is no such file, and the tables that come along are {_and(names())}')
  return read_text(path, max_bytes=_MAX_BYTES, kind='CSV')


def _parse(name: str, text: str) -> Table:
  settings: dict[str, str] = {}
  rows: dict[tuple[str, int, int], tuple[float, int]] = {}
  columns: list[str] | None = None
  for number, line in enumerate(text.split('\n'), start=1):
    line = line.strip()
    try:
      if line.startswith('#'):
        _read_setting(line, settings)
      elif line:
        if columns is None:
          columns = _read_header(line)
        else:
          _read_row(line, columns, number, rows)
    except ValueError as error:
      raise ValueError(f'line {number}: {error}') from None
  if not rows:
    raise ValueError(f'it has no rows: give a header {",".join(_COLUMNS[:3])} and a row for every pair of bit-widths')
  if 'unit' not in settings:
    raise ValueError('it does not name its unit: give a comment line such as "# unit: cycles"')
  kernel_bits, input_bits = tuple(sorted({w for _, w, _ in rows})), tuple(sorted({a for _, _, a in rows}))
  _check_grid(rows, kernel_bits, input_bits)
  costs = tuple(
    (kind, tuple(tuple(rows[kind, w, a][0] for a in input_bits) for w in kernel_bits))
    for kind in ('', *KINDS)
    if any(key[0] == kind for key in rows)
  )
  total = settings.get('total', f'G{settings["unit"]}')
  return Table(
    name=name, unit=settings['unit'], total=total, kernel_bits=kernel_bits, input_bits=input_bits, costs=costs
  )


def _read_setting(line: str, settings: dict[str, str]) -> None:
  found = _SETTING.fullmatch(line)
  if not found:
    return
  key, value = found.groups()
  if key in settings:
    raise ValueError(f'the {key} is given a second time: keep one')
  if not is_unit(value, _MAX_UNIT):
    raise ValueError(f'{key} {_short(value)} is no unit: give up to {_MAX_UNIT} letters, digits, spaces or /^*._-')
  settings[key] = value


def _read_header(line: str) -> list[str]:
  columns = [field.strip() for field in line.split(',')]
  if columns not in (_COLUMNS[:3], _COLUMNS):
    raise ValueError(f'the header {_short(line)} is unknown: give {",".join(_COLUMNS[:3])} or {",".join(_COLUMNS)}')
  return columns


def _read_row(line: str, columns: list[str], number: int, rows: dict) -> None:
  fields = [field.strip() for field in line.split(',')]
  if len(fields) != len(columns):
    raise ValueError(f'{_short(line)} has {len(fields)} fields: give {len(columns)}, {",".join(columns)}')
  kind = fields[3] if len(columns) == 4 else ''
  if kind not in ('', *KINDS):
    raise ValueError(f'kind {_short(kind)} is unknown: give {", ".join(KINDS)}, or nothing for all others')
  w, a = (_bits(column, field) for column, field in zip(columns[:2], fields, strict=False))
  key = kind, w, a
  if key in rows:
    raise ValueError(f'the row for {_point(*key)} is there already, in line {rows[key][1]}: keep one')
  rows[key] = _cost(fields[2], key), number


def _bits(column: str, field: str) -> int:
  if not re.fullmatch('[0-9]{1,2}', field) or int(field) > _MAX_BITS:
    raise ValueError(f'{column} {_short(field)} is not a bit-width: give an integer from 0 to {_MAX_BITS}')
  return int(field)


def _cost(field: str, key: tuple[str, int, int]) -> float:
  try:
    cost = float(field) if _NUMBER.fullmatch(field) else math.nan
  except ValueError:
    cost = math.nan
  if not 0 <= cost <= _MAX_COST:
    raise ValueError(f'cost {_short(field)} is not a cost: give a number from 0 to {_MAX_COST:g}')
  if key[1] == 0 and cost:
    raise ValueError(f'cost {_short(field)} for kernel_bits=0 is above 0: a kernel without bits costs nothing')
  return cost


def _check_grid(rows: dict, kernel_bits: tuple[int, ...], input_bits: tuple[int, ...]) -> None:
  if kernel_bits == (0,):
    raise ValueError('it has no row with kernel_bits above 0: give the costs of the kernels that there are')
  for key in itertools.product(dict.fromkeys(kind for kind, _, _ in rows), kernel_bits, input_bits):
    if key not in rows:
      raise ValueError(f'it has no row for {_point(*key)}: give one for every combination of its bit-widths')
  w_below, a_below = (dict(zip(bits[1:], bits, strict=False)) for bits in (kernel_bits, input_bits))
  for (kind, w, a), (cost, line) in rows.items():
    for axis, less in (('kernel_bits', (kind, w_below.get(w, w), a)), ('input_bits', (kind, w, a_below.get(a, a)))):
      if cost < rows[less][0]:
        raise ValueError(
          f'line {line}: the cost {cost:g} for {_point(kind, w, a)} is below the {rows[less][0]:g} for fewer {axis}: '
          'costs must not fall, so give the cost of the bit-width that the hardware would use instead'
        )


def _point(kind: str, w: int, a: int) -> str:
  return f'kernel_bits={w}, input_bits={a}' + (f', kind={kind}' if kind else '')


def _short(text: str) -> str:
  return repr(text if len(text) <= 40 else text[:40] + '...')
