"""The tables of the study, from the lines of its results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.accuracy.study_methods import BUDGETS, GRANULARITIES, METHODS, SETTINGS

Row = Mapping[str, Any]
Place = tuple[str, str, str]  # network, granularity, budget
Groups = dict[Place, dict[str, list[Row]]]  # by place, then by method: a row for each seed

_UNIFORM, _OURS = 'uniform_pact', 'ours'
_METRICS = {'bitops': 'BitOPs', 'size': 'size'}
_PARTS = ('policy', 'search', 'finetune')


def group(rows: Iterable[Row]) -> Groups:
  """Rows by network, granularity and budget, and there by method, all in the order of the grid."""
  order = lambda row: (
    list(SETTINGS[row['dataset']].networks).index(row['network']),
    GRANULARITIES.index(row['granularity']),
    list(BUDGETS).index(row['budget']),
    list(METHODS).index(row['method']),
    row['seed'],
  )
  groups: Groups = {}
  for row in sorted(rows, key=order):
    place = (row['network'], row['granularity'], row['budget'])
    groups.setdefault(place, {}).setdefault(row['method'], []).append(row)
  return groups


def mean(rows: Sequence[Row], field: str = 'test_accuracy') -> float:
  """The mean over seeds, in per cent."""
  return 100 * float(np.mean([row[field] for row in rows]))


def deviation(rows: Sequence[Row], field: str = 'test_accuracy') -> float | None:
  """The sample standard deviation over seeds, in per cent; `None` for one seed."""
  return 100 * float(np.std([row[field] for row in rows], ddof=1)) if len(rows) > 1 else None


def standard_error(rows: Sequence[Row]) -> float | None:
  """Of the mean of the test accuracy over seeds, in per cent; `None` for one seed."""
  spread = deviation(rows)
  return None if spread is None else spread / len(rows) ** 0.5


def with_deviation(rows: Sequence[Row], field: str = 'test_accuracy') -> str:
  spread = deviation(rows, field)
  return f'{mean(rows, field):.2f}' + ('' if spread is None else f' ± {spread:.2f}')


def _span(values: Sequence[float], digits: int) -> str:
  low, high = (f'{value:.{digits}f}' for value in (min(values), max(values)))
  return low if low == high else f'{low} to {high}'


def table(groups: Groups) -> str:
  """Every method at every place, as markdown; times and memory beside uniform PACT of the same place and seed.

  `steps alone` leaves out policy, compilation and evaluation, as a longer training does.
  """
  header = ('network', 'bits per', 'budget', 'method', 'seeds', 'test, %', 'float, %', 'cost / target')
  header += ('policy, search, finetune: s', 'time of uniform', 'steps alone', 'peak memory, MB', 'memory of uniform')
  lines = []
  for (network, granularity, budget), methods in groups.items():
    for method, rows in methods.items():
      times = [np.median([row[f'{part}_seconds'] for row in rows]) for part in _PARTS]
      lines.append(
        (
          f'{network} x {rows[0]["width"]:g}',
          granularity,
          budget,
          METHODS[method].label,
          str(len(rows)),
          with_deviation(rows),
          with_deviation(rows, 'float_accuracy'),
          _span([row['cost'] / row['target'] for row in rows], 4),
          ', '.join(f'{seconds:.0f}' for seconds in times),
          _multiple(rows, methods.get(_UNIFORM, ()), lambda row: sum(row[f'{part}_seconds'] for part in _PARTS)),
          _multiple(rows, methods.get(_UNIFORM, ()), lambda row: row.get('step_seconds', float('nan'))),
          f'{np.median([row["peak_memory_mb"] for row in rows]):.0f}',
          _multiple(rows, methods.get(_UNIFORM, ()), lambda row: row['peak_memory_mb']),
        )
      )
  return markdown(header, lines)


def _multiple(rows: Sequence[Row], uniform: Sequence[Row], amount: Callable[[Row], float]) -> str:
  """The median over seeds of an amount, as a multiple of that of uniform bits; empty where no seed has both."""
  beside = {row['seed']: amount(row) for row in uniform}
  found = [amount(row) / beside[row['seed']] for row in rows if row['seed'] in beside]
  found = [multiple for multiple in found if np.isfinite(multiple)]  # earlier lines have no time of the steps alone
  return f'{np.median(found):.2f}' if found else ''


def overview(groups: Groups) -> str:
  """Accuracy of each method, places side by side, as markdown; without the parts of `ours`, see `ablation`."""
  whole = [method for method in METHODS if not METHODS[method].part]
  present = [method for method in whole if any(method in methods for methods in groups.values())]
  header = ['method', *map(title, groups)]
  lines = [['float', *(with_deviation(float_rows(methods), 'float_accuracy') for methods in groups.values())]]
  for method in present:
    found = [with_deviation(methods[method]) if method in methods else '' for methods in groups.values()]
    lines.append([METHODS[method].label, *found])
  return markdown(header, lines)


def comparison(groups: Groups) -> str:
  """By how many points `ours` is above each method, as markdown; empty where there is no place with both.

  In brackets is the standard error of the difference, taken seed by seed, since both begin from the same float network.
  The last columns are the mean over places; the least difference of any seed; and at how many places the means differ
  by at least the sum of their own standard errors, as if each method had had seeds of its own.
  """
  header = ['ours less', *map(title, groups), 'mean', 'least of a seed', 'above both errors']
  lines = []
  for method in METHODS:
    if METHODS[method].part or method == _OURS:
      continue
    parts, pairs, clear = [], [], []
    for methods in groups.values():
      rows, ours = methods.get(method, ()), methods.get(_OURS, ())
      found = seed_by_seed(ours, rows)
      parts.append('')
      if not len(found):
        continue
      pairs.append(found)
      parts[-1] = with_standard_error(found)
      if len(found) > 1:
        clear.append(mean(ours) - mean(rows) >= standard_error(ours) + standard_error(rows))
    if pairs:
      of = f'{sum(clear)} of {len(clear)}' if clear else ''
      least, average = np.concatenate(pairs).min(), np.mean([found.mean() for found in pairs])
      lines.append([METHODS[method].label, *parts, f'{average:+.2f}', f'{least:+.2f}', of])
  return markdown(header, lines) if lines else ''


def seed_by_seed(rows: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
  """How far the test accuracy is above that of the others, in points, for the seeds that both have."""
  theirs = {row['seed']: row['test_accuracy'] for row in others}
  return 100 * np.array([row['test_accuracy'] - theirs[row['seed']] for row in rows if row['seed'] in theirs])


def with_standard_error(differences: np.ndarray) -> str:
  """The mean of at least one difference, and in brackets its standard error, if there are several."""
  error = f' ({differences.std(ddof=1) / len(differences) ** 0.5:.2f})' if len(differences) > 1 else ''
  return f'{differences.mean():+.2f}{error}'


def ablation(groups: Groups) -> str:
  """Accuracy with each part of `ours` changed, and how far that is from `ours`, seed by seed; empty without any."""
  parts = [method for method in METHODS if METHODS[method].part]
  header, lines = ['ours'], [[METHODS[method].part] for method in parts]
  for place, methods in groups.items():
    found = {method: seed_by_seed(methods.get(method, ()), methods.get(_OURS, ())) for method in parts}
    if not any(map(len, found.values())):
      continue
    header += [f'{title(place)}: %', 'change']
    for line, (method, differences) in zip(lines, found.items(), strict=True):
      line += [with_deviation(methods[method]), with_standard_error(differences)] if len(differences) else ['', '']
  return markdown(header, [line for line in lines if any(line[1:])]) if len(header) > 1 else ''


def float_rows(methods: Mapping[str, Sequence[Row]]) -> list[Row]:
  """One row for each seed: its float network is the same for all methods."""
  return list({row['seed']: row for rows in methods.values() for row in rows}.values())


def other_floats(rows: Iterable[Row]) -> str:
  """A sentence where cells of a network and a seed began from different float networks; empty where none did.

  That happens when their lines come from machines that sum in another order.
  """
  floats: dict[tuple[str, int], set[float]] = {}
  for row in rows:
    floats.setdefault((row['network'], row['seed']), set()).add(row['float_accuracy'])
  named = [f'{network}, seed {seed}' for (network, seed), found in floats.items() if len(found) > 1]
  return f'Not all from the same float network: {"; ".join(named)}.' if named else ''


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  rows = [header, ['---'] * len(header), *lines]
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def title(place: Place) -> str:
  network, granularity, budget = place
  metric, bits = (BUDGETS[budget][f'budget.{name}'] for name in ('metric', 'equivalent_bits'))
  return f'{network}, {_METRICS[metric]} of {bits:g} bits' + ('' if granularity == 'layer' else ', per kernel')


def text(rows: Sequence[Row]) -> str:
  """All tables, and what has to be said of them."""
  groups = group(rows)
  parts = (overview(groups), comparison(groups), ablation(groups), table(groups), other_floats(rows))
  return '\n\n'.join(part for part in parts if part) + '\n'
