"""Figures of the course of a run through its phases: its bits, its cost and what its task measures."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D
  from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fracbits_jax import tasks
from fracbits_jax.policy import Policy
from fracbits_jax.report import plots

Row = Mapping[str, Any]

_COLORS = (plots.COST, plots.KERNEL, plots.INPUT)  # of budgets
_MOST_LINES = 128  # of layers, in one panel
_MOST_POINTS = 1000  # of a line
_FLAT = 8  # an error that falls to so small a part of what it was is a flat line but on a logarithmic axis


def _depth(name: str) -> tuple:
  """Sorts `block10_x` behind `block2_x`, and the head and the classifier last."""
  numbers = [int(part) for part in ''.join(c if c.isdigit() else ' ' for c in name).split()]
  first = next((i for i, word in enumerate(('stem', 'block', 'stage')) if name.startswith(word)), 9)
  return (min(first, 1) if first < 9 else 9, numbers, 'depthwise' not in name, name)


def bits_over_time(rows: Sequence[Row], policy: Policy | None = None, *, narrow: bool = False) -> Figure | None:
  """The course of every bit-width through the search, coloured by depth, and the integers that it led to.

  Args:
    rows: of `metrics.jsonl`.
    policy: what the searched bits were made, dots behind the search; it also gives the order of the layers.
    narrow: for a telephone, see `plots`.

  Returns:
    `None` without a search.
  """
  rows = [row for row in rows if row['phase'] == 'search' and 'bits' in row]
  if not rows:
    return None
  entries = policy.layers if policy else ()
  final = {f'{e.name}/{which}': float(np.mean(getattr(e, which))) for e in entries for which in e.learned}
  names = [name for name in final if name in rows[0]['bits']] or sorted(rows[0]['bits'], key=_depth)
  shown = [which for which in ('kernel', 'input') if any(name.endswith(f'/{which}') for name in names)]
  rows = _spread(rows, _MOST_POINTS)
  epochs = [row['epoch'] for row in rows]
  beyond = epochs[-1] * 1.05
  with plots.style():
    size: dict[str, Any] = dict(columns=len(shown))
    if narrow:
      size = dict(rows=len(shown), width=plots.NARROW, sharex=True)
    figure, axes = plots.new_figure(0.7 + 2.1 * len(shown) if narrow else 3.5, sharey=True, squeeze=False, **size)
    for axis, which in zip(axes.flat, shown, strict=True):
      every = [name for name in names if name.endswith(f'/{which}')]
      layers = _spread(every, _MOST_LINES)
      for i, name in enumerate(layers):
        color = plots.shade(i / max(len(layers) - 1, 1))
        course = [row['bits'].get(name, np.nan) for row in rows]
        axis.plot(epochs, course, color=color, linewidth=1.2)
        if name in final:
          axis.plot([epochs[-1], beyond], [course[-1], final[name]], color=color, linewidth=0.6)
          axis.plot([beyond], [final[name]], color=color, marker='o', markersize=4)
      heading = f'bits of the {which}s' if len(shown) > 1 else f'bits of the {which}s during the search'
      if len(layers) < len(every):
        heading = f'bits of {len(layers)} of {len(every):,} {which}s'
      axis.set_title(heading, color=plots.INPUT if which == 'input' else plots.KERNEL)
      axis.yaxis.set_major_locator(MaxNLocator(8, integer=True))
      axis.label_outer()
    for axis in axes[-1]:
      axis.xaxis.set_major_locator(MaxNLocator(6, integer=epochs[-1] > 3))
      axis.set_xlabel('epoch of the search')
    handles = [Line2D([], [], color=plots.shade(i / 6), linewidth=3) for i in range(7)]
    labels = ['first layer\u2002', *[''] * 5, 'last layer']  # the space is for fonts that run wider
    loc: Literal['outside upper left', 'outside upper right'] = (
      'outside upper left' if narrow else 'outside upper right'
    )
    figure.legend(handles, labels, loc=loc, ncols=7, fontsize=9, handlelength=1, columnspacing=0.2, handletextpad=0.4)
    return figure


def lines_left_out(rows: Sequence[Row]) -> bool:
  """Whether there are more layers than `bits_over_time` has lines for."""
  names = next((row['bits'] for row in rows if row['phase'] == 'search' and 'bits' in row), ())
  return any(sum(name.endswith(f'/{which}') for name in names) > _MOST_LINES for which in ('kernel', 'input'))


def _spread(items: Sequence[Any], most: int) -> Sequence[Any]:
  """At most so many of the items, evenly spread, with the first and the last among them."""
  if len(items) <= most:
    return items
  return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


@dataclasses.dataclass(frozen=True)
class _Phases:
  """Rows over the epochs of all phases.

  Attributes:
    epochs: of each row, counted through all phases.
    spans: by phase, where it begins and ends.
  """

  epochs: tuple[float, ...]
  spans: Mapping[str, tuple[float, float]]


def _through_phases(rows: Sequence[Row]) -> _Phases:
  offset, epochs = 0.0, []
  spans: dict[str, tuple[float, float]] = {}
  for row in rows:
    start = spans.get(row['phase'], (offset,))[0]
    epochs.append(start + row['epoch'])
    offset = max(offset, epochs[-1])
    spans[row['phase']] = (start, offset)
  return _Phases(tuple(epochs), spans)


def _shade_phases(axis, spans: Mapping[str, tuple[float, float]], narrow: bool) -> None:
  first, last = min(s for s, _ in spans.values()), max(e for _, e in spans.values())
  for phase, (start, end) in spans.items():
    axis.axvspan(start, end, color=plots.PHASE_SHADES[phase], zorder=0, linewidth=0)
    if end - start > (0.18 if narrow else 0.08) * (last - first):
      place = dict(transform=axis.get_xaxis_transform(), ha='center', va='bottom')
      axis.text((start + end) / 2, 1.01, phase, fontsize=9, **place)
  axis.set_xlim(first, last if last > first else first + 1)
  axis.set_xlabel('epoch')


def cost_over_time(rows: Sequence[Row], *, narrow: bool = False) -> Figure | None:
  """How each budget's cost approached its target; `None` where no row has a cost."""
  phases = _through_phases(rows)
  course = [(epoch, row) for epoch, row in zip(phases.epochs, rows, strict=True) if 'budgets' in row]
  if not course:
    return None
  spans = {phase: span for phase, span in phases.spans.items() if phase != 'pretrain'}
  with plots.style():
    figure, axis = plots.new_figure(2.6 if narrow else 2.8, width=plots.NARROW if narrow else plots.WIDE)
    _shade_phases(axis, spans, narrow)
    axis.axhline(1, color=plots.INK, linewidth=1, linestyle='--')
    courses: dict[tuple, list] = {}  # by metric and unit, for the budgets may change on the way
    for epoch, row in course:
      for spent in row['budgets']:
        point = (epoch, spent['cost'] / spent['target'])
        courses.setdefault((spent.get('metric'), spent['unit']), []).append(point)
    lines = {}
    for (_, unit), points, color in zip(courses, courses.values(), itertools.cycle(_COLORS), strict=False):
      label = f' {unit}' if unit.startswith('_') else unit  # which a legend leaves out
      (lines[label],) = axis.plot(*zip(*points, strict=True), color=color, linewidth=1.8)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.98), max(high, 1.02))  # else rounding errors fill the figure of a run without a search
    axis.set_ylabel('cost / target')
    if len(lines) > 1:
      axis.legend(lines.values(), lines, fontsize=9)
    return figure


def metric_over_time(rows: Sequence[Row], result: Mapping[str, Any], *, narrow: bool = False) -> Figure | None:
  """The task's first metric in training, on the validation split and, after each phase, on the test split.

  `None` without rows.
  """
  if not rows:
    return None
  metric = tasks.of_result(result).metric
  validated = f'validation_{metric.name}'
  phases = _through_phases(rows)
  pairs = list(zip(phases.epochs, rows, strict=True))
  with plots.style():
    figure, axis = plots.new_figure(2.8 if narrow else 3.0, width=plots.NARROW if narrow else plots.WIDE)
    _shade_phases(axis, phases.spans, narrow)
    trained = [metric.scale * row[metric.name] for row in rows]
    axis.plot(phases.epochs, trained, color=plots.MUTED, linewidth=1.4, label='training')
    checked = [(epoch, metric.scale * row[validated]) for epoch, row in pairs if validated in row]
    if checked:
      dots = dict(color=plots.KERNEL, marker='o', markersize=4, linewidth=1.4)
      axis.plot(*zip(*checked, strict=True), **dots, clip_on=False, label='validation')
    reached = _tested(result, metric)
    tested = [(phases.spans[phase][1], metric.scale * value) for phase, value in reached if phase in phases.spans]
    if tested:
      diamonds = dict(color=plots.INPUT, marker='D', markersize=6, linestyle='none')
      axis.plot(*zip(*tested, strict=True), **diamonds, clip_on=False, zorder=4, label='test, after a phase')
    shown = [*trained, *(value for _, value in (*checked, *tested))]
    if not metric.higher_is_better and 0 < min(shown) < max(shown) / _FLAT:
      axis.set_yscale('log')
      axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axis.yaxis.set_major_formatter(lambda value, place: f'{value:g}')
      axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel(metric.label)
    # Outside, for the curves may run anywhere.
    figure.legend(loc='outside upper left', ncols=3, fontsize=9, handlelength=1.2, columnspacing=0.9)
    return figure


def _tested(result: Mapping[str, Any], metric: tasks.Metric) -> list[tuple[str, float]]:
  """By phase, the metric on the test split after it."""
  which = {'pretrain': 'float', 'search': 'searched', result['phase']: 'test'}
  found = [(phase, result[f'{of}_{metric.name}']) for phase, of in which.items()]
  return [(phase, value) for phase, value in found if value is not None]
