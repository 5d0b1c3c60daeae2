"""The figure of a comparison: what a task measures over cost, with the Pareto front and the float networks."""

from collections.abc import Sequence

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

from fracbits_jax import tasks
from fracbits_jax.report import plots
from fracbits_jax.report.groups import Group

_MOST_NAMES = 14  # in the legend
_MOST_FLOATS = 3  # lines of their own
_POINT = 9  # points from one to the next side by side
_LEAST_HEIGHT = 0.5  # that an axis spans, in points of accuracy and the like
_LEAST_PART = 0.05  # the same of a metric whose differences are parts of it


def metric_over_cost(
  groups: Sequence[Group], front: Sequence[int], unit: str, metric: tasks.Metric, *, narrow: bool = False
) -> Figure:
  """A point for each group, numbered from 1, the Pareto front as steps, the float networks as dashes.

  Args:
    groups: of `groups.group`.
    front: of `groups.pareto`.
    unit: of the cost.
    metric: what is measured on the test split.
    narrow: for a telephone, see `plots`; without the names.
  """
  costs = np.array([g.mean('cost') for g in groups])
  field = f'test_{metric.name}'
  reached = metric.scale * np.array([g.mean(field) for g in groups])
  spreads = metric.scale * np.array([g.deviation(field) or 0 for g in groups])
  with plots.style():
    figure, axis = plots.new_figure(3.6 if narrow else 4.6, width=plots.NARROW if narrow else plots.WIDE)
    room = (0.8 if narrow else 0.65) * 72 * figure.get_figwidth()  # of the axis, in points
    costs = _side_by_side(costs, _POINT / room)
    _limits(axis, costs, reached, spreads, metric)
    axis.errorbar(costs, reached, spreads, fmt='none', ecolor=plots.MUTED, elinewidth=1, capsize=2.5, zorder=2)
    on = np.isin(np.arange(len(groups)), front)
    for chosen, color in ((~on, plots.MUTED), (on, plots.KERNEL)):
      axis.plot(costs[chosen], reached[chosen], color=color, marker='o', markersize=6.5, linestyle='none', zorder=3)
    right = axis.get_xlim()[1]
    steps = (np.append(costs[front], right), np.append(reached[front], reached[front[-1]]))
    axis.step(*steps, where='post', color=plots.KERNEL, linewidth=1.3, zorder=1)
    _floats(axis, groups, metric)
    axis.set_xlabel(f'cost, {unit}')
    axis.set_ylabel(f'test {metric.label}')
    if not narrow and len(groups) <= _MOST_NAMES:
      handles = [Line2D([], [], linestyle='none')] * len(groups)
      names = [f'{i + 1}  {plots.short(g.name, 32)}' for i, g in enumerate(groups)]
      figure.legend(handles, names, loc='outside right upper', fontsize=9, handlelength=0, handletextpad=0)
    for i, at in enumerate(zip(costs, reached + spreads, strict=True)):
      axis.annotate(str(i + 1), at, (0, 5), textcoords='offset points', ha='center', va='bottom', fontsize=8.5)
    return figure


def _limits(axis, costs: np.ndarray, reached: np.ndarray, spreads: np.ndarray, metric: tasks.Metric) -> None:
  """Room around the points for their numbers."""
  width = _width(costs)
  low, high = (reached - spreads).min(), (reached + spreads).max()
  height = max(high - low, _LEAST_HEIGHT if metric.differences else _LEAST_PART * np.abs(reached).max())
  middle = (costs.min() + costs.max()) / 2
  axis.set_xlim(middle - 0.58 * width, middle + 0.58 * width)
  axis.set_ylim(low - 0.12 * height, high + 0.16 * height)


def _width(costs: np.ndarray) -> float:
  """What the axis spans: costs that are the same within a few per cent are to look so."""
  return max(np.ptp(costs), 0.1 * np.abs(costs).max()) or 1.0


def _side_by_side(costs: np.ndarray, part: float) -> np.ndarray:
  """Where to draw costs that are sorted, so that no point covers another.

  Args:
    costs: the true places.
    part: of the whole range, what must lie between one and the next.

  Returns:
    The places with this distance that are closest to the true ones, by least squares.
  """
  gap = min(part, 0.5 / max(len(costs) - 1, 1)) * _width(costs)
  steps = gap * np.arange(len(costs))
  blocks: list[list[float]] = []  # pool adjacent violators: places without their steps do not fall
  for place in costs - steps:
    blocks.append([place])
    while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
      blocks[-2:] = [blocks[-2] + blocks[-1]]
  return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks]) + steps


def _floats(axis, groups: Sequence[Group], metric: tasks.Metric) -> None:
  """Dashed lines at what the float networks reach, or a band where they are many."""
  found = [g.mean(f'float_{metric.name}') for g in groups]
  means = {metric.number(value): metric.scale * value for value in found if not np.isnan(value)}  # by what is shown
  if not means:
    return
  low, high = axis.get_ylim()
  pad, least, most = 0.06 * (high - low), *(choose(means.items(), key=lambda mean: mean[1]) for choose in (min, max))
  axis.set_ylim(min(low, least[1] - pad), max(high, most[1] + pad))
  place = dict(transform=axis.get_yaxis_transform(), fontsize=8.5, color=plots.INPUT, va='bottom', ha='left')
  if len(means) > _MOST_FLOATS:
    axis.axhspan(least[1], most[1], color=plots.FIXED['input'], alpha=0.35, linewidth=0, zorder=0)
    axis.text(0.01, most[1], f'float, {least[0]} to {most[0]}', **place)
    return
  for text, mean in means.items():
    axis.axhline(mean, color=plots.INPUT, linewidth=1, linestyle='--', zorder=1)
    axis.text(0.01, mean, f'float {text}', **place)
