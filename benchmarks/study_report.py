"""The table and the figures of the study, from the lines of its results."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from benchmarks.study_methods import BUDGETS, GRANULARITIES, METHODS, SETTINGS
from fracbits_jax import plots

Row = Mapping[str, Any]
Place = tuple[str, str, str]  # network, granularity, budget
Groups = dict[Place, dict[str, list[Row]]]  # by place, then by method: a row for each seed

_UNIFORM = 'uniform_pact'
_PARTS = ('policy', 'search', 'finetune')
_MARKERS = 'osD^vP*XdpH<>8h'


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


def with_deviation(rows: Sequence[Row], field: str = 'test_accuracy') -> str:
  spread = deviation(rows, field)
  return f'{mean(rows, field):.2f}' + ('' if spread is None else f' ± {spread:.2f}')


def _span(values: Sequence[float], digits: int) -> str:
  low, high = (f'{value:.{digits}f}' for value in (min(values), max(values)))
  return low if low == high else f'{low} to {high}'


def table(groups: Groups) -> str:
  """Every method at every place, as markdown; times and memory beside uniform PACT of the same place and seed."""
  header = ('network', 'bits per', 'budget', 'method', 'seeds', 'test, %', 'float, %', 'cost / target')
  header += ('policy, search, finetune: s', 'time of uniform', 'peak memory, MB', 'memory of uniform')
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
          f'{np.median([row["peak_memory_mb"] for row in rows]):.0f}',
          _multiple(rows, methods.get(_UNIFORM, ()), lambda row: row['peak_memory_mb']),
        )
      )
  return markdown(header, lines)


def _multiple(rows: Sequence[Row], uniform: Sequence[Row], amount: Callable[[Row], float]) -> str:
  """The median over seeds of an amount, as a multiple of that of uniform bits; empty where no seed has both."""
  beside = {row['seed']: amount(row) for row in uniform}
  found = [amount(row) / beside[row['seed']] for row in rows if row['seed'] in beside]
  return f'{np.median(found):.2f}' if found else ''


def overview(groups: Groups) -> str:
  """Accuracy of each method, places side by side, as markdown."""
  present = [method for method in METHODS if any(method in methods for methods in groups.values())]
  header = ['method', *(_title(place) for place in groups)]
  floats = ['float', *(with_deviation(_floats(methods), 'float_accuracy') for methods in groups.values())]
  lines = [floats]
  for method in present:
    found = [with_deviation(methods[method]) if method in methods else '' for methods in groups.values()]
    lines.append([METHODS[method].label, *found])
  return markdown(header, lines)


def _floats(methods: Mapping[str, Sequence[Row]]) -> list[Row]:
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
  return f'\nNot all from the same float network: {"; ".join(named)}.\n' if named else ''


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  rows = [header, ['---'] * len(header), *lines]
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _title(place: Place) -> str:
  network, granularity, budget = place
  return f'{network}, {budget}' + ('' if granularity == 'layer' else ', per kernel')


def accuracy_over_bitops(groups: Groups) -> Figure | None:
  """Accuracy over BitOPs, a panel a network: methods side by side at each budget, bars of one standard deviation."""
  panels: dict[tuple[str, str], list[tuple[str, dict[str, list[Row]]]]] = {}
  for (network, granularity, budget), methods in groups.items():
    if BUDGETS[budget]['budget.metric'] == 'bitops':
      panels.setdefault((network, granularity), []).append((budget, methods))
  if not panels:
    return None
  shown = [m for m in METHODS if not METHODS[m].less and any(m in at for found in panels.values() for _, at in found)]
  with plots.style():
    figure, axes = plots.new_figure(4.6, columns=len(panels), squeeze=False)
    for axis, ((network, granularity), found) in zip(axes[0], panels.items(), strict=True):
      centres = [np.mean([row['bitops_g'] for rows in at.values() for row in rows]) for _, at in found]
      step = 0.04 * (min(np.diff(centres)) if len(centres) > 1 else centres[0])
      for i, method in enumerate(shown):
        at = [k for k, (_, methods) in enumerate(found) if method in methods]
        rows = [found[k][1][method] for k in at]
        x = [centres[k] + step * (i - (len(shown) - 1) / 2) for k in at]
        spreads = [deviation(r) or 0 for r in rows]
        how = dict(color=plots.shade(i / max(len(shown) - 1, 1)), marker=_MARKERS[i % len(_MARKERS)], markersize=5)
        label = METHODS[method].label if axis is axes[0][0] else None
        axis.errorbar(x, [mean(r) for r in rows], spreads, linewidth=0.8, capsize=2, label=label, **how)
      floats = [row for _, methods in found for row in _floats(methods)]
      axis.axhline(mean(floats, 'float_accuracy'), color=plots.INPUT, linewidth=1, linestyle='--')
      axis.set_xticks(centres, [f'{centre:.4g}' for centre in centres])
      axis.set_title(network + ('' if granularity == 'layer' else ', per kernel'))
      axis.set_xlabel('GBitOPs; methods side by side')
    axes[0][0].set_ylabel('test accuracy, %; dashed: float')
    figure.legend(loc='outside lower center', ncols=3, fontsize=8.5)
  return figure


def policies(groups: Groups, place: Place) -> Figure:
  """Every layer's bit-widths at one place, a line a method, of the first seed; means where each kernel has its own."""
  methods = groups[place]
  names = list(next(iter(methods.values()))[0]['policy'])
  most = 8
  colors = ListedColormap(['#ffffff', *(plots.shade(i / (most - 1)) for i in range(most))])
  with plots.style():
    figure, axes = plots.new_figure(1.6 + 0.5 * len(methods), rows=2, sharex=True)
    for axis, which in zip(axes, ('kernel', 'input'), strict=True):
      column = 0 if which == 'kernel' else 1
      bits = np.array([[np.mean(rows[0]['policy'][name][column]) for name in names] for rows in methods.values()])
      image = axis.imshow(bits, aspect='auto', cmap=colors, norm=BoundaryNorm(np.arange(-0.5, most + 1), most + 1))
      axis.set_yticks(range(len(methods)), [METHODS[method].label for method in methods], fontsize=7.5)
      axis.set_title(f'{which} bits, {_title(place)}')
      axis.grid(visible=False)
    axes[-1].set_xticks(range(len(names)), [plots.short(name) for name in names], rotation=90, fontsize=7)
    figure.colorbar(image, ax=axes, ticks=range(most + 1), label='bits; 8 or more', fraction=0.03)
  return figure


def ablation(groups: Groups) -> Figure | None:
  """What taking each part away from `ours` does to test accuracy: mean and deviation over seeds, in points."""
  less = [m for m in METHODS if METHODS[m].less and any(m in at and 'ours' in at for at in groups.values())]
  places = [place for place, methods in groups.items() if 'ours' in methods and set(less) & methods.keys()]
  if not places:
    return None
  with plots.style():
    figure, axes = plots.new_figure(0.9 + 0.34 * len(less), columns=len(places), sharey=True, squeeze=False)
    for axis, place in zip(axes[0], places, strict=True):
      ours = {row['seed']: row['test_accuracy'] for row in groups[place]['ours']}
      for y, method in enumerate(less):
        pairs = [(row, ours[row['seed']]) for row in groups[place].get(method, ()) if row['seed'] in ours]
        changes = [100 * (row['test_accuracy'] - other) for row, other in pairs]
        if changes:
          spread = np.std(changes, ddof=1) if len(changes) > 1 else 0
          axis.errorbar(np.mean(changes), y, xerr=spread, color=plots.KERNEL, marker='o', capsize=2.5)
      axis.axvline(0, color=plots.MUTED, linewidth=1)
      axis.set_title(_title(place).replace(', ', '\n', 1), fontsize=9)
    axes[0][0].set_yticks(range(len(less)), [f'without {METHODS[method].less}' for method in less])
    axes[0][0].invert_yaxis()
    figure.supxlabel('change of the test accuracy, points', fontsize=10)
  return figure


def write(rows: Sequence[Row], folder: pathlib.Path) -> str:
  """Writes `study.md` and the figures; the text."""
  groups = group(rows)
  if not groups:
    return 'no cell is finished'
  text = f'{overview(groups)}\n\n{table(groups)}\n{other_floats(rows)}'
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'study.md').write_text(text)
  figures = {'study_accuracy': accuracy_over_bitops(groups), 'study_ablation': ablation(groups)}
  figures |= {f'study_policies_{"_".join(place)}': policies(groups, place) for place in groups}
  for name, figure in figures.items():
    if figure is not None:
      plots.save(figure, folder, name)
  return text
