"""What `speed.py` measured, as tables and as a picture."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

LABELS = {
  'float': 'float',
  'uniform': 'uniform, fixed 4 bits',
  'layer': 'search, layer-wise',
  'kernel': 'search, kernel-wise',
  'finetune': 'finetuning',
  'supernet': 'supernet',
  'supernet_remat': 'supernet, recomputed',
  'torch': 'PyTorch float, channels first',
  'torch_last': 'PyTorch float, channels last',
}
COLORS = {
  'uniform': '#c3cad3',
  'layer': '#2f6db3',
  'kernel': '#7fa9d6',
  'finetune': '#8fb996',
  'supernet': '#e0862f',
  'supernet_remat': '#efbf8f',
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (header, ['---'] * len(header), *rows))


def megabytes(row: dict[str, Any], key: str) -> str:
  return f'{row[key] / 1e6:,.0f}' if key in row else ''


def network_table(rows: dict[str, dict[str, Any]]) -> str:
  header = ('method', 'seconds', 'of float', 'least to most', 'images/s', 'temporary MB', 'peak MB', 'compile s')
  return markdown(
    header,
    [
      (
        LABELS[method],
        f'{row["median_s"]:.4g}',
        f'{row["ratio"]:.3f}',
        f'{row["ratio_min"]:.3f} to {row["ratio_max"]:.3f}',
        f'{row["images_per_s"]:.4g}',
        megabytes(row, 'temp_bytes'),
        megabytes(row, 'peak_bytes'),
        f'{row["compile_s"]:.1f}' if 'compile_s' in row else '',
      )
      for method, row in rows.items()
    ],
  )


def growth_table(found: Sequence[dict[str, Any]]) -> str:
  header = ('batch', 'image size', 'bit-widths', 'float s', 'search s', 'supernet s', 'search, time of float')
  header += ('supernet, time of float', 'search, memory of float', 'supernet, memory of float')
  lines = []
  for entry in found:
    setting, rows = entry['setting'], entry['rows']
    memory = {m: rows[m]['temp_bytes'] / rows['float']['temp_bytes'] for m in rows}
    lines.append(
      (
        *(str(setting[key]) for key in ('batch', 'image_size')),
        str(len(setting['choices'])),
        *(f'{row["median_s"]:.4g}' for row in rows.values()),
        *(f'{rows[m]["ratio"]:.2f}' for m in ('layer', 'supernet')),
        *(f'{memory[m]:.2f}' for m in ('layer', 'supernet')),
      )
    )
  return markdown(header, lines)


def roofline_table(limits: dict[str, Any]) -> str:
  header = ('network', 'GFLOP', 'GB', 'by operations, s', 'by bytes, s', 'float step, s', 'float step of bound')
  lines = []
  for network, b in limits['networks'].items():
    moved, by_bytes = '', ''
    if 'bytes_s' in b:
      moved, by_bytes = f'{b["bytes_s"] * limits["bytes_per_s"] / 1e9:.3g}', f'{b["bytes_s"]:.4g}'
    step = (f'{b["bound_s"] * b["of_bound"]:.4g}', f'{b["of_bound"]:.2f}')
    lines.append((network, f'{b["flops"] / 1e9:.4g}', moved, f'{b["flops_s"]:.4g}', by_bytes, *step))
  return markdown(header, lines)


def report(result: dict[str, Any]) -> str:
  """Everything that was measured, as markdown."""
  parts = [
    f'`{result["command"]}`: {result["device"]}, JAX {result["jax"]}, PyTorch {result["torch"] or "missing"}, '
    f'{result["date"]}. Batch {result["batch"]}, images of {result["image_size"]} x {result["image_size"]}, '
    f'{result["dtype"]}, medians of {result["rounds"]} rounds.'
  ]
  for network, rows in result['networks'].items():
    parts += [f'### {network}', network_table(rows)]
  if result.get('roofline'):
    limits = result['roofline']
    measured = f'{limits["flops_per_s"] / 1e9:,.0f} GFLOP/s of {result["dtype"]} matrix products'
    parts += [
      '### Bounds',
      f'The device does {measured} and moves {limits["bytes_per_s"] / 1e9:,.0f} GB/s in float32 additions. GFLOP are '
      'those of forward and backward pass, 6 for each multiply-accumulate; GB are what XLA counts for the operations '
      'of the compiled step, some of which a cache may serve. The bound is the longer of the two times.',
      roofline_table(limits),
    ]
  if result.get('growth'):
    parts += [f'### Growth, {result["growth"][0]["setting"]["network"]}', growth_table(result['growth'])]
  return '\n\n'.join(parts) + '\n'


def _quartiles(row: dict[str, Any], reference: dict[str, Any]) -> list[float]:
  """Quartiles of the ratio to a reference over the rounds."""
  return statistics.quantiles(
    [s / r for s, r in zip(row['seconds'], reference['seconds'], strict=True)], n=4, method='inclusive'
  )


def picture(result: dict[str, Any], path: pathlib.Path) -> None:
  """Bars of the ratio to the float step, median and quartiles of the rounds, by network and method."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  networks = result['networks']
  shown = [m for m in COLORS if any(m in rows for rows in networks.values())]
  with matplotlib.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.84 / max(len(shown), 1)
    top = 1.0
    for i, method in enumerate(shown):
      at = [j + (i - (len(shown) - 1) / 2) * width for j, rows in enumerate(networks.values()) if method in rows]
      quartiles = [_quartiles(rows[method], rows['float']) for rows in networks.values() if method in rows]
      lows, ratios, highs = (np.array(values) for values in zip(*quartiles, strict=True))
      axis.bar(at, ratios, width * 0.92, color=COLORS[method], label=LABELS[method], zorder=2)
      style = dict(fmt='none', ecolor='#5b6068', elinewidth=0.8, capsize=2, zorder=3)
      axis.errorbar(at, ratios, [ratios - lows, highs - ratios], **style)
      for x, ratio, high in zip(at, ratios, highs, strict=True):
        label = {'ha': 'center', 'va': 'bottom', 'fontsize': 9, 'color': '#333333'}
        axis.annotate(f'{ratio:.2f}', (x, high), (0, 3), textcoords='offset points', **label)
      top = max(top, *highs)
    axis.axhline(1, color='#333333', linewidth=1, linestyle='--', zorder=4)
    axis.set_xticks(range(len(networks)), list(networks))
    axis.set_xlim(-0.55, len(networks) - 0.45)
    axis.set_ylim(0, 1.1 * top)
    axis.tick_params(axis='x', length=0)
    axis.grid(axis='y', color='#e4e6ea', zorder=0)
    axis.set_ylabel('time of a training step, of float')
    where = f'{result["device"]}, {result["dtype"]}, batch {result["batch"]}, {result["image_size"]} pixels'
    axis.set_title(where, loc='left', fontsize=10, color='#5b6068')
    figure.legend(loc='outside lower center', ncols=len(shown), frameon=False, handlelength=1, columnspacing=1.4)
    figure.savefig(path, dpi=150)
