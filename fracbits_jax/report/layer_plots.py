"""Figures of a policy along the depth of its network: bit-widths, kernels by bit-width, share of the cost."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  from matplotlib.artist import Artist
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch
  from matplotlib.ticker import MaxNLocator

from fracbits_jax.policy import Policy
from fracbits_jax.report import plots

_MOST_NAMES = 64  # of layers, side by side
_MOST_BARS, _FEWER_BARS = 256, 128  # of layers; if they are more, a bar stands for several in a row
_MOST_HISTOGRAMS, _FEWER_HISTOGRAMS = 160, 62
_PERCENT = lambda share, _: f'{100 * share:g}%'


def layers_per_bar(policy: Policy) -> int:
  """How many layers in a row a bar of `policy_by_layer` and `cost_by_layer` stands for: 1, unless they are many."""
  return 1 if len(policy.layers) <= _MOST_BARS else math.ceil(len(policy.layers) / _FEWER_BARS)


def histograms_left_out(policy: Policy) -> int:
  """How many layers `kernel_histograms` has no room for."""
  count = sum(isinstance(e.kernel, tuple) for e in policy.layers)
  return 0 if count <= _MOST_HISTOGRAMS else count - _FEWER_HISTOGRAMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bar:
  """What a bar stands for: the fields of an `Entry`; bit-widths may be means, and NaN where there is no kernel."""

  name: str
  kernel: float | tuple[int, ...]
  input: float
  macs: int
  weights: int
  cost_share: float
  learned: tuple[str, ...]


def _bars_of(policy: Policy) -> Sequence[_Bar]:
  """The layers, or several in a row as one: mean bit-widths, all their channels, sums of all else."""
  size = layers_per_bar(policy)
  if size == 1:
    return [_Bar(**{**vars(e), 'kernel': e.kernel if e.has_kernel else math.nan}) for e in policy.layers]
  per_channel = any(isinstance(e.kernel, tuple) for e in policy.layers)
  bars = []
  for start in range(0, len(policy.layers), size):
    some = policy.layers[start : start + size]
    kernels = np.concatenate([np.atleast_1d(e.kernel) for e in some if e.has_kernel] or [np.array([math.nan])])
    total = lambda field, some=some: sum(getattr(e, field) for e in some)
    bars.append(
      _Bar(
        name=some[0].name,
        kernel=tuple(kernels) if per_channel else float(np.mean(kernels)),
        input=float(np.mean([e.input for e in some])),
        macs=total('macs'),
        weights=total('weights'),
        cost_share=total('cost_share'),
        learned=tuple(which for which in ('kernel', 'input') if any(which in e.learned for e in some)),
      )
    )
  return bars


def _say_size(figure: Figure, policy: Policy) -> None:
  """Says under a figure what a bar stands for, where that is not a layer."""
  if layers_per_bar(policy) > 1:
    figure.supxlabel(f'a bar for {layers_per_bar(policy)} layers in a row', fontsize=9)


def _along_layers(panels: int, entries: Sequence[_Bar], narrow: bool, height: float) -> tuple[Figure, Sequence]:
  """A figure with the layers from left to right, or downwards where it is narrow, and a list of its axes.

  Args:
    panels: how many axes, one above the other or side by side.
    entries: the layers.
    narrow: see `plots`.
    height: of a panel in inches where the layers go from left to right.
  """
  if narrow:
    height = 1.0 + 0.175 * len(entries)
    figure, axes = plots.new_figure(height, columns=panels, width=plots.NARROW, sharey=True, squeeze=False)
  else:
    figure, axes = plots.new_figure(0.9 + height * panels, rows=panels, sharex=True, squeeze=False)
  for axis in axes.flat:
    axis.grid(axis='y' if narrow else 'x', visible=False)
    axis.tick_params(axis='y' if narrow else 'x', length=0)
  _name_layers(axes.flat[0] if narrow else axes.flat[-1], entries, narrow)
  return figure, list(axes.flat)


def _name_layers(axis, entries: Sequence[_Bar], narrow: bool) -> None:
  every = 1 if narrow else math.ceil(len(entries) / _MOST_NAMES)
  at = range(0, len(entries), every)
  names = [plots.short(entries[i].name, 14 if narrow else 24) for i in at]
  if narrow:
    axis.set_yticks(at, names, fontsize=8)
    axis.set_ylim(len(entries) - 0.4, -0.6)
  else:
    axis.set_xticks(at, names, rotation=90, fontsize=8)
    axis.set_xlim(-0.7, len(entries) - 0.3)


def _draw(axis, values: Sequence[float], narrow: bool, *, start=0.0, thick: float = 0.75, **kwargs) -> None:
  """Bars over the layers, upwards or to the right."""
  at = range(len(values))
  if narrow:
    axis.barh(at, values, thick, left=start, **kwargs)
  else:
    axis.bar(at, values, thick, bottom=start, **kwargs)


def policy_by_layer(policy: Policy, uniform_bits: float | None = None, *, narrow: bool = False) -> Figure:
  """The bit-widths of kernels and inputs in the order of the layers; what was fixed and not learned is paler.

  Bars where a layer has one bit-width; where every kernel has its own, columns of how many channels have which.
  Inputs are left out where none is learned.

  Args:
    policy: the bit-widths.
    uniform_bits: a bit-width for comparison, a dashed line.
    narrow: for a telephone, see `plots`.
  """
  entries = _bars_of(policy)
  per_channel = any(isinstance(e.kernel, tuple) for e in entries)
  shown = [which for which in ('kernel', 'input') if any(which in e.learned for e in entries)] or ['kernel']
  with plots.style():
    figure, axes = _along_layers(len(shown), entries, narrow, 2.1)
    _say_size(figure, policy)
    handles: list[tuple[Artist, str]] = []
    for axis, which in zip(axes, shown, strict=True):
      title, color = f'bits of the {which}s', plots.INPUT if which == 'input' else plots.KERNEL
      if per_channel and which == 'kernel':
        handles += _columns(axis, entries, narrow)
        title = 'kernels by bits' if narrow else 'share of the kernels with each bit-width'
      else:
        _bars(axis, entries, which, narrow)
        if uniform_bits is not None:
          across = axis.axvline if narrow else axis.axhline
          across(uniform_bits, color=plots.INK, linewidth=1, linestyle='--')
      axis.set_title(title, color=color, fontsize=10 if narrow else 11)
    if uniform_bits is not None and not (per_channel and len(shown) == 1):
      line = Line2D([], [], color=plots.INK, linewidth=1, linestyle='--')
      short = narrow and len(handles) > 0
      handles.append((line, f'{"uniform" if short else "uniform within the budget:"} {uniform_bits:.3g}'))
    _legend(figure, handles, narrow)
    return figure


def _legend(figure: Figure, handles: Sequence[tuple], narrow: bool) -> None:
  """A legend above the axes, row by row."""
  if handles:
    columns = min(len(handles), 4 if narrow else 12)
    rows = itertools.chain.from_iterable(handles[i::columns] for i in range(columns))  # it fills column by column
    artists, labels = zip(*rows, strict=True)
    loc: Literal['outside upper left', 'outside upper right'] = (
      'outside upper left' if narrow else 'outside upper right'
    )
    figure.legend(artists, labels, loc=loc, ncols=columns, fontsize=9, handlelength=1.4, columnspacing=1.2)


def _columns(axis, entries: Sequence[_Bar], narrow: bool) -> list[tuple[Patch, str]]:
  """A column a layer, split by how many of its channels have which bit-width; returns what stands for which."""
  widths = sorted({b for e in entries for b in np.atleast_1d(e.kernel).tolist() if not math.isnan(b)})
  shares = np.array([[np.mean(np.atleast_1d(e.kernel) == b) for e in entries] for b in widths])
  # Half by rank and half by how many there are, so that neighbours that are frequent differ more.
  means = shares.mean(1)
  depth = (np.arange(len(widths)) / max(len(widths) - 1, 1) + np.cumsum(means) - means / 2) / 2
  start = np.zeros(len(entries))
  handles = []
  for b, share, part in zip(widths, shares, depth, strict=True):
    color = plots.shade(1 - part) if b else plots.NONE
    _draw(axis, share, narrow, start=start, thick=0.86, color=color, linewidth=0)
    start += share
    handles.append((Patch(color=color), f'{b}' if b else 'pruned'))
  for i in [i for i, e in enumerate(entries) if 'kernel' not in e.learned]:
    _pale(axis, i)
  axis.grid(visible=False)
  values = axis.xaxis if narrow else axis.yaxis
  (axis.set_xlim if narrow else axis.set_ylim)(0, 1)
  values.set_ticks([0, 0.5] if narrow else [0, 0.25, 0.5, 0.75, 1])
  values.set_major_formatter(_PERCENT)
  handles[-1] = (handles[-1][0], f'{handles[-1][1]} bits')
  return handles


def _pale(axis, at: int) -> None:
  """Makes what is drawn for a layer paler, as it is fixed."""
  for bars in axis.containers:
    bars[at].set_alpha(0.4)


def _bars(axis, entries: Sequence[_Bar], which: str, narrow: bool) -> None:
  given = [float(np.mean(getattr(e, which))) for e in entries]
  values = np.nan_to_num(given).tolist()
  color = plots.INPUT if which == 'input' else plots.KERNEL
  colors = [color if which in e.learned else plots.FIXED[which] for e in entries]
  _draw(axis, values, narrow, color=colors, linewidth=0)
  most = max(values) * 1.14
  (axis.set_xlim if narrow else axis.set_ylim)(0, most)
  (axis.xaxis if narrow else axis.yaxis).set_major_locator(MaxNLocator(5, integer=True))
  if len(values) > _MOST_NAMES and not narrow:
    return
  for i, value in enumerate(values):
    if math.isnan(given[i]):
      continue
    x, y = (value + 0.02 * most, i) if narrow else (i, value + 0.015 * most)
    place = dict(ha='left', va='center_baseline') if narrow else dict(ha='center', va='bottom')
    axis.text(x, y, f'{value:.2g}', fontsize=8, **place)


def cost_by_layer(policy: Policy, *, narrow: bool = False) -> Figure:
  """Each layer's share of the cost, beside what its share would be if all bit-widths were the same."""
  entries = _bars_of(policy)
  of_size = policy.metric == 'size'
  amounts = np.array([e.weights if of_size else e.macs for e in entries], np.float64)
  equal = amounts / max(amounts.sum(), 1)
  with plots.style():
    figure, (axis,) = _along_layers(1, entries, narrow, 2.4)
    _say_size(figure, policy)
    _draw(axis, [e.cost_share for e in entries], narrow, color=plots.COST, linewidth=0)
    mark: dict[str, Any] = dict(
      color=plots.INK, linestyle='none', marker='|' if narrow else '_', markersize=7, markeredgewidth=1.4
    )
    if policy.metric != 'memory':  # where most is stored, layers have no shares to compare with
      axis.plot(*((equal, range(len(equal))) if narrow else (range(len(equal)), equal)), **mark)
    (axis.set_xlim if narrow else axis.set_ylim)(0, 1.08 * max(equal.max(), *(e.cost_share for e in entries)))
    (axis.xaxis if narrow else axis.yaxis).set_major_formatter(_PERCENT)
    handles = [
      (Patch(color=plots.COST), f'share of the {policy.unit}'),
      (Line2D([], [], **mark), f'share of the {"weights" if of_size else "multiply-accumulates"}'),
    ][: 1 if policy.metric == 'memory' else 2]
    figure.legend(*zip(*handles, strict=True), loc='outside upper left', ncols=1 if narrow else 2, fontsize=9)
    return figure


def kernel_histograms(policy: Policy, *, narrow: bool = False) -> Figure | None:
  """How many channels of each layer have which bit-width, and of all layers together; `None` unless kernel-wise."""
  counted = [(e.name, np.asarray(e.kernel)) for e in policy.layers if isinstance(e.kernel, tuple)]
  if not counted:
    return None
  counted.insert(0, ('all kernels', np.concatenate([bits for _, bits in counted])))
  low, high = (int(f(counted[0][1])) for f in (np.min, np.max))
  columns = 3 if narrow else 7
  left_out = histograms_left_out(policy)
  counted = counted[: len(counted) - left_out]
  rows = math.ceil((len(counted) + bool(left_out)) / columns)
  with plots.style():
    figure, axis = plots.new_figure(0.15 + 1.05 * rows, width=plots.NARROW if narrow else plots.WIDE)
    axis.set_axis_off()
    axis.set_xlim(0, columns)
    axis.set_ylim(rows - 0.02, -0.02)
    for i, (name, bits) in enumerate(counted):
      counts = np.bincount(bits - low, minlength=high - low + 1)
      full = plots.KERNEL if i else plots.INK
      colors = [full if low + j else plots.NONE for j in range(len(counts))]
      _histogram(axis, i % columns, i // columns, counts / counts.sum(), colors, low)
      axis.text(i % columns + 0.04, i // columns + 0.08, plots.short(name, 13), fontsize=8, va='top', color=plots.INK)
    if left_out:
      x, y = len(counted) % columns, len(counted) // columns
      axis.text(x + 0.04, y + 0.08, f'and {left_out:,} more', fontsize=8, va='top', color=plots.INK)
    return figure


def _histogram(axis, column: int, row: int, share: np.ndarray, colors: Sequence[str], low: int) -> None:
  """A small histogram in the cell `column`, `row`, its bars as high as their `share` of the largest."""
  width = 0.92 / len(share)
  at = column + 0.04 + width * (np.arange(len(share)) + 0.5)
  floor = row + 0.82
  axis.bar(at, -0.52 * share / share.max(), 0.82 * width, bottom=floor, color=colors, linewidth=0)
  axis.plot([column + 0.04, column + 0.96], [floor, floor], color=plots.MUTED, linewidth=0.8)
  every = math.ceil(len(share) / 9)
  for j in range(0, len(share), every):
    axis.text(at[j], floor + 0.02, str(low + j), fontsize=8, ha='center', va='top', color=plots.MUTED)
