"""Figures of a run: its policy along the depth, the course of its bits, of its cost and of its accuracy."""

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from fracbits_jax.policy import Entry, Policy

KERNEL, INPUT, MUTED, PRUNED = '#2f6db3', '#e0862f', '#8a8f98', '#d9dce1'
_PHASE_SHADES = {'pretrain': '#f3f4f6', 'search': '#e8f0fa', 'finetune': '#eef6ec'}
_STYLE = {
  'font.size': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': MUTED,
  'axes.titlelocation': 'left',
  'axes.titlesize': 11,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e4e6ea',
  'legend.frameon': False,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'fracbits',
}


def style() -> contextlib.AbstractContextManager:
  """The look of every figure of the project, while the context is open."""
  return matplotlib.rc_context(_STYLE)


def shade(part: float) -> tuple[float, ...]:
  """A colour for what lies `part` of the way, 0 to 1, along some order."""
  return matplotlib.colormaps['viridis'](0.92 * part)


def new_figure(height: float, rows: int = 1, columns: int = 1, **kwargs) -> tuple[Figure, Any]:
  """A figure of the page's width and a height in inches, and its axes."""
  figure = Figure(figsize=(9, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, **kwargs)


def _label(name: str) -> str:
  return name.replace('block', 'b').replace('stage', 's').replace('_depthwise', ' dw').replace('_pointwise', ' pw')


def policy_by_layer(policy: Policy, reference_bits: float | None = None) -> Figure:
  """The bit-widths of kernels and inputs in the order of the layers.

  Bars where a layer has one bit-width; where every kernel has its own, columns of how many channels have which.
  """
  per_channel = any(isinstance(e.kernel, tuple) for e in policy.layers)
  with style():
    figure, axes = new_figure(5.6 if per_channel else 4.6, rows=2, sharex=True)
    for axis, which, color in zip(axes, ('kernel', 'input'), (KERNEL, INPUT), strict=True):
      if per_channel and which == 'kernel':
        _columns(axis, policy.layers)
        axis.set_title('share of the kernels with each bit-width', color=color)
        continue
      _bars(axis, policy.layers, which, color)
      if reference_bits is not None:
        label = f'uniform at the same cost: {reference_bits:.2g}'
        axis.axhline(reference_bits, color='#333333', linewidth=1, linestyle='--', label=label)
      axis.set_title(f'bits of the {which}s', color=color)
      axis.grid(axis='x', visible=False)
      axis.set_ylim(0, axis.get_ylim()[1] * 1.12)
    if reference_bits is not None:
      axes[-1 if per_channel else 0].legend(loc='lower right', bbox_to_anchor=(1, 1), borderaxespad=0.2, fontsize=9)
    if len(policy.layers) <= 64:
      axes[1].set_xticks(range(len(policy.layers)), [_label(e.name) for e in policy.layers], rotation=90, fontsize=8)
    else:
      axes[1].set_xlabel('layer, from the input to the classifier')
    return figure


def _columns(axis, entries: Sequence[Entry]) -> None:
  """A column a layer, split by how many of its channels have which bit-width; fixed kernels are paler."""
  widths = sorted({b for e in entries for b in np.atleast_1d(e.kernel).tolist()})
  colors = {b: shade(1 - i / max(len(widths) - 1, 1)) if b else PRUNED for i, b in enumerate(widths)}
  bottom = np.zeros(len(entries))
  for b, color in colors.items():
    share = np.array([np.mean(np.atleast_1d(e.kernel) == b) for e in entries])
    bars = axis.bar(range(len(entries)), share, bottom=bottom, color=color, width=0.86)
    for bar, entry in zip(bars, entries, strict=True):
      bar.set_alpha(1.0 if 'kernel' in entry.learned else 0.35)
    bottom += share
  axis.set_ylim(0, 1)
  axis.yaxis.set_major_formatter(PercentFormatter(1.0))
  axis.grid(visible=False)
  patches = [Patch(color=color, label=str(b) if b else 'pruned') for b, color in colors.items()]
  axis.legend(handles=patches[::-1], title='bits', loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _bars(axis, entries: Sequence[Entry], which: str, color: str) -> None:
  values = [np.mean(getattr(e, which)) for e in entries]
  bars = axis.bar(range(len(values)), values, color=color, width=0.75)
  for bar, entry in zip(bars, entries, strict=True):
    bar.set_alpha(1.0 if which in entry.learned else 0.35)
  if len(values) <= 64:
    for i, value in enumerate(values):
      axis.text(i, value + 0.1, f'{value:.0f}', ha='center', va='bottom', fontsize=8)


def bits_over_time(rows: Sequence[dict[str, Any]]) -> Figure | None:
  """The course of every bit-width through the search, coloured by depth; `None` without a search."""
  rows = [row for row in rows if row['phase'] == 'search' and 'bits' in row]
  if not rows:
    return None
  with style():
    figure, axes = new_figure(3.4, columns=2, sharey=True)
    epochs = [row['epoch'] for row in rows]
    for axis, which, heading in zip(axes, ('kernel', 'input'), (KERNEL, INPUT), strict=True):
      names = [name for name in rows[0]['bits'] if name.endswith(f'/{which}')]
      for i, name in enumerate(sorted(names, key=_depth)):
        color = shade(i / max(len(names) - 1, 1))
        axis.plot(epochs, [row['bits'][name] for row in rows], color=color, linewidth=1.2)
      axis.set_title(f'bits of the {which}s during the search', color=heading)
      axis.set_xlabel('epoch of the search')
    scale = matplotlib.cm.ScalarMappable(cmap=matplotlib.colors.ListedColormap([shade(i / 255) for i in range(256)]))
    bar = figure.colorbar(scale, ax=axes, ticks=[0, 1], pad=0.01)
    bar.ax.set_yticklabels(['first layer', 'last layer'])
    return figure


def _depth(name: str) -> tuple:
  """Sorts `block10_x` behind `block2_x`, and the head and the classifier last."""
  numbers = [int(part) for part in ''.join(c if c.isdigit() else ' ' for c in name).split()]
  first = next((i for i, word in enumerate(('stem', 'block', 'stage')) if name.startswith(word)), 9)
  return (min(first, 1) if first < 9 else 9, numbers, 'depthwise' not in name, name)


def _over_epochs(axis, rows: Sequence[dict[str, Any]]) -> list[float]:
  """Shades the phases and returns each row's epoch, counted through all phases."""
  offset, at, epochs = 0.0, {}, []
  for row in rows:
    at.setdefault(row['phase'], offset)
    epochs.append(at[row['phase']] + row['epoch'])
    offset = max(offset, epochs[-1])
  ends = [*at.values(), offset]
  for (phase, start), end in zip(at.items(), ends[1:], strict=True):
    axis.axvspan(start, end, color=_PHASE_SHADES.get(phase, '#ffffff'), zorder=0)
    axis.text((start + end) / 2, 1.0, phase, transform=axis.get_xaxis_transform(), ha='center', va='bottom', fontsize=9)
  axis.set_xlim(0, offset or 1)
  axis.set_xlabel('epoch')
  return epochs


def cost_over_time(rows: Sequence[dict[str, Any]]) -> Figure | None:
  """How the cost approached its target; `None` where no row has a cost."""
  if not any('cost' in row for row in rows):
    return None
  with style():
    figure, axis = new_figure(2.8)
    epochs = _over_epochs(axis, rows)
    axis.axhline(1, color='#333333', linewidth=1, linestyle='--')
    course = [(epoch, row['ratio']) for epoch, row in zip(epochs, rows, strict=True) if 'ratio' in row]
    axis.plot(*zip(*course, strict=True), color=KERNEL, linewidth=1.8)
    axis.set_ylabel('cost / target')
    return figure


def accuracy_over_time(rows: Sequence[dict[str, Any]]) -> Figure | None:
  """Accuracy in training and on the validation split; `None` without rows."""
  if not rows:
    return None
  with style():
    figure, axis = new_figure(2.8)
    epochs = _over_epochs(axis, rows)
    axis.plot(epochs, [100 * row['accuracy'] for row in rows], color=MUTED, linewidth=1.4, label='training')
    checked = [
      (e, 100 * r['validation_accuracy']) for e, r in zip(epochs, rows, strict=True) if 'validation_accuracy' in r
    ]
    if checked:
      axis.plot(
        *zip(*checked, strict=True),
        color=KERNEL,
        marker='o',
        markersize=4,
        linewidth=1.4,
        clip_on=False,
        label='validation',
      )
    axis.set_ylabel('accuracy, %')
    axis.legend(loc='lower right')
    return figure


def save(figure: Figure, folder: str | os.PathLike, name: str) -> str:
  """Writes a figure as `name.png` and `name.svg`; returns the SVG's text."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with style():
    figure.savefig(folder / f'{name}.png', dpi=150)
    figure.savefig(folder / f'{name}.svg', metadata={'Date': None})
  text = (folder / f'{name}.svg').read_text()
  return text[text.index('<svg') :]
