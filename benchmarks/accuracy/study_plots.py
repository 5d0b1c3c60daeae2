"""The figures of the study, from the lines of its results."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from benchmarks.accuracy.study_methods import BUDGETS, METHODS
from benchmarks.accuracy.study_report import Groups, Place, Row, deviation, float_rows, mean, seed_by_seed, title
from fracbits_jax.report import plots

_MARKERS = 'osD^>P*XdpH<8h'  # not `v`, which says that a point lies below the axis
_FAR_BELOW = 'random'  # where it would squeeze all others, it is drawn at the edge, with its value
_COLORS = {'ours': plots.KERNEL, 'paper': plots.COST}  # of the others: muted


def methods_side_by_side(groups: Groups) -> Figure | None:
  """Accuracy of every method, a panel a place, a row a network; bars of one standard deviation."""
  shown = [m for m in METHODS if not METHODS[m].part and any(m in methods for methods in groups.values())]
  kinds = list(dict.fromkeys(place[:2] for place in groups))
  budgets = [budget for budget in BUDGETS if any(place[2] == budget for place in groups)]
  if not shown:
    return None
  with plots.style():
    height = 0.6 + len(kinds) * (0.5 + 0.22 * len(shown))
    figure, axes = plots.new_figure(height, rows=len(kinds), columns=len(budgets), sharey=True, squeeze=False)
    for axis, place in ((axes[i][j], (*kind, b)) for i, kind in enumerate(kinds) for j, b in enumerate(budgets)):
      methods = groups.get(place, {})
      least = _least(methods)
      for y, method in enumerate(shown):
        if method in methods:
          value, spread = mean(methods[method]), deviation(methods[method]) or 0
          how = dict(color=_COLORS.get(method, plots.MUTED), markersize=5, capsize=2.5)
          if value < least:
            axis.plot(least, y, marker='<', **{k: how[k] for k in ('color', 'markersize')})
            axis.annotate(f'{value:.1f}', (least, y), (6, 0), textcoords='offset points', va='center', fontsize=8)
          else:
            axis.errorbar(value, y, xerr=spread, marker='o', **how)
      if methods:
        axis.axvline(mean(float_rows(methods), 'float_accuracy'), color=plots.INPUT, linewidth=1, linestyle='--')
      axis.set_visible(bool(methods))
      axis.set_title(title(place), fontsize=9)
      axis.set_ylim(len(shown) - 0.5, -0.5)
      axis.set_yticks(range(len(shown)), [METHODS[method].label for method in shown])
      axis.tick_params(labelsize=8.5)
    figure.supxlabel('test accuracy, %; dashed: float', fontsize=10)
  return figure


def _least(methods: Mapping[str, Sequence[Row]]) -> float:
  """Where an axis of accuracy begins: a little below everything but what is far below."""
  values = [mean(rows) - (deviation(rows) or 0) for method, rows in methods.items() if method != _FAR_BELOW]
  top = max((mean(rows, 'float_accuracy') for rows in methods.values()), default=100.0)
  return min(values) - 0.1 * (top - min(values)) if values else 0.0


def accuracy_over_bitops(groups: Groups) -> Figure | None:
  """Accuracy over BitOPs, a panel a network: methods side by side at each budget, bars of one standard deviation.

  `None` where there are no whole methods, or no budget of BitOPs.
  """
  panels: dict[tuple[str, str], list[tuple[str, dict[str, list[Row]]]]] = {}
  for (network, granularity, budget), methods in groups.items():
    if BUDGETS[budget]['budget.metric'] == 'bitops':
      panels.setdefault((network, granularity), []).append((budget, methods))
  shown = [m for m in METHODS if not METHODS[m].part and any(m in at for found in panels.values() for _, at in found)]
  if not shown:
    return None
  with plots.style():
    figure, axes = plots.new_figure(4.6, columns=len(panels), squeeze=False)
    for axis, ((network, granularity), found) in zip(axes[0], panels.items(), strict=True):
      centres = [np.mean([row['bitops_g'] for rows in at.values() for row in rows]) for _, at in found]
      least = min(_least(methods) for _, methods in found)
      step = 0.04 * (min(np.diff(centres)) if len(centres) > 1 else centres[0])
      for i, method in enumerate(shown):
        at = [k for k, (_, methods) in enumerate(found) if method in methods]
        rows = [found[k][1][method] for k in at]
        x = [centres[k] + step * (i - (len(shown) - 1) / 2) for k in at]
        spreads = [deviation(r) or 0 for r in rows]
        color = _COLORS.get(method, plots.shade(i / max(len(shown) - 1, 1)))
        how = dict(color=color, marker=_MARKERS[i % len(_MARKERS)], markersize=5)
        label = METHODS[method].label if axis is axes[0][0] else None
        width = 1.6 if method in _COLORS else 0.8
        axis.errorbar(x, [mean(r) for r in rows], spreads, linewidth=width, capsize=2, label=label, **how)
        for k in at:
          if mean(found[k][1][method]) < least:
            where = (x[at.index(k)], least)
            axis.annotate(f'{mean(found[k][1][method]):.1f}', where, (0, 8), textcoords='offset points', fontsize=8)
            axis.plot(*where, marker='v', clip_on=False, **{name: how[name] for name in ('color', 'markersize')})
      floats = [row for _, methods in found for row in float_rows(methods)]
      axis.axhline(mean(floats, 'float_accuracy'), color=plots.INPUT, linewidth=1, linestyle='--')
      axis.set_ylim(bottom=least)
      axis.set_xticks(centres, [f'{centre:.3g}' for centre in centres])
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
      axis.set_title(f'{which} bits, {title(place)}')
      axis.grid(visible=False)
    axes[-1].set_xticks(range(len(names)), [plots.short(name) for name in names], rotation=90, fontsize=7)
    figure.colorbar(image, ax=axes, ticks=range(most + 1), label='bits; 8 or more', fraction=0.03)
  return figure


def ablation(groups: Groups) -> Figure | None:
  """What changing one part of `ours` does to test accuracy: mean and deviation over seeds, in points."""
  parts = [m for m in METHODS if METHODS[m].part and any(m in at and 'ours' in at for at in groups.values())]
  places = [place for place, methods in groups.items() if 'ours' in methods and set(parts) & methods.keys()]
  if not places:
    return None
  with plots.style():
    figure, axes = plots.new_figure(0.9 + 0.34 * len(parts), columns=len(places), sharey=True, squeeze=False)
    for axis, place in zip(axes[0], places, strict=True):
      for y, method in enumerate(parts):
        changes = seed_by_seed(groups[place].get(method, ()), groups[place]['ours'])
        if len(changes):
          spread = np.std(changes, ddof=1) if len(changes) > 1 else 0
          axis.errorbar(np.mean(changes), y, xerr=spread, color=plots.KERNEL, marker='o', capsize=2.5)
      axis.axvline(0, color=plots.MUTED, linewidth=1)
      axis.set_title(title(place).replace(', ', '\n', 1), fontsize=9)
    axes[0][0].set_yticks(range(len(parts)), [METHODS[method].part for method in parts])
    axes[0][0].invert_yaxis()
    figure.supxlabel('change of the test accuracy, points', fontsize=10)
  return figure


def save(groups: Groups, folder: pathlib.Path) -> None:
  """Writes every figure that there are rows for."""
  figures = {
    'study_methods': methods_side_by_side(groups),
    'study_accuracy': accuracy_over_bitops(groups),
    'study_ablation': ablation(groups),
  }
  figures |= {f'study_policies_{"_".join(place)}': policies(groups, place) for place in groups}
  for name, figure in figures.items():
    if figure is not None:
      plots.save(figure, folder, name)
