"""The page of a run, `report.html`, and its summary in the terminal."""

import html
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fracbits_jax import plots
from fracbits_jax.policy import Entry, Policy, load

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.verdict { font-size: 1.1rem; }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; width: 100%; }
th, td { text-align: right; padding: 0.2rem 0.7rem; border-bottom: 1px solid #e4e6ea; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f6f8fa; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
"""


def _percent(accuracy: float | None) -> str:
  return '-' if accuracy is None else f'{accuracy:.2%}'


def _bits_text(value: int | tuple[int, ...]) -> str:
  if isinstance(value, int):
    return str(value)
  return f'{np.mean(value):.2f} ({min(value)}-{max(value)})'


def _policy_of(workdir: pathlib.Path) -> Policy | None:
  path = workdir / 'policy.json'
  return load(path) if path.exists() else None


def summary(workdir: str | os.PathLike, result: dict[str, Any]) -> str:
  """The table at the end of a run: float, searched, final; cost against target; bits by layer."""
  workdir = pathlib.Path(workdir)
  lines = []
  policy = _policy_of(workdir)
  if policy is not None:
    width = max(5, *(len(e.name) for e in policy.layers))
    lines += [f'{"layer":<{width}}  {"kernel":>12}  {"input":>5}  {"share of cost":>13}']
    for e in policy.layers:
      lines.append(f'{e.name:<{width}}  {_bits_text(e.kernel):>12}  {e.input:>5}  {e.cost_share:>13.1%}')
    lines.append('')
  final = None if result['phase'] != 'finetune' else result['test_accuracy']
  for name, accuracy in (
    ('float', result['float_accuracy']),
    ('searched', result['searched_accuracy']),
    ('final', final),
  ):
    lines.append(f'{name:<9} test accuracy {_percent(accuracy):>7}')
  if result['cost'] is not None:
    for spent in result['budgets']:
      ratio = spent['cost'] / spent['target']
      lines.append(
        f'cost      {spent["cost"]:.5g} of {spent["target"]:.5g} {spent["unit"]} ({ratio:.4f} of the target)'
      )
    if policy is not None and policy.pruned_channels:
      lines.append(f'          {policy.pruned_channels} channels pruned')
    lines.append(f'          {result["bitops_g"]:.5g} GBitOPs, {result["size_mb"]:.5g} MB')
  page = workdir / 'report.html'
  if page.exists():
    lines.append(f'report    {page}')
  return '\n'.join(lines)


def _verdict(result: dict[str, Any], num_weights: int, num_pruned: int) -> str:
  if result['phase'] != 'finetune':
    return f'This run ended with {result["phase"]}, at a test accuracy of {_percent(result["test_accuracy"])}.'
  against = ''
  if result['float_accuracy'] is not None:
    points = 100 * (result['test_accuracy'] - result['float_accuracy'])
    against = f', {abs(points):.2f} points {"above" if points >= 0 else "below"} the float network'
  spent = ' and '.join(
    f'{s["cost"]:.4g} {s["unit"]}, {s["cost"] / s["target"]:.2%} of {"that" if i else "its"} budget'
    for i, s in enumerate(result['budgets'])
  )
  pruned = f' {num_pruned:,} channels are pruned.' if num_pruned else ''
  accuracy = _percent(result['test_accuracy'])
  return (
    f'The final network answers {accuracy} of the test split rightly{against}. It costs {spent}; '
    f'its weights take {result["size_mb"]:.4g} MB instead of {num_weights * 4e-6:.4g} MB.{pruned}'
  )


def _layer_table(entries: Sequence[Entry]) -> str:
  head = '<tr><th>layer</th><th>kernel bits</th><th>input bits</th><th>MMACs</th><th>weights</th><th>cost</th></tr>'
  rows = ''.join(
    f'<tr><td>{html.escape(e.name)}</td><td>{_bits_text(e.kernel)}</td><td>{e.input}</td>'
    f'<td>{e.macs / 1e6:.3f}</td><td>{e.weights:,}</td><td>{e.cost_share:.1%}</td></tr>'
    for e in entries
  )
  return f'<div class="scroll"><table>{head}{rows}</table></div>'


def write(
  workdir: str | os.PathLike,
  result: dict[str, Any],
  rows: Sequence[dict[str, Any]],
  policy: Policy | None,
  uniform_bits: float | None = None,
) -> pathlib.Path:
  """Writes `report.html` and `plots/`; returns the page's path.

  Args:
    workdir: the run's folder.
    result: what `result.json` will hold.
    rows: the rows of `metrics.jsonl`.
    policy: the final policy, or `None` where there is none.
    uniform_bits: the uniform bit-width of the same cost, drawn for comparison.
  """
  workdir = pathlib.Path(workdir)
  figures = {
    'bits_by_layer': ('Bit-widths by layer', plots.policy_by_layer(policy, uniform_bits) if policy else None),
    'bits_over_time': ('How the bits moved', plots.bits_over_time(rows)),
    'cost_over_time': ('Cost against its target', plots.cost_over_time(rows)),
    'accuracy_over_time': ('Accuracy', plots.accuracy_over_time(rows)),
  }
  title = html.escape(f'fracbits_jax: {workdir.name}')
  weights = sum(e.weights for e in policy.layers) if policy else 0
  pruned = policy.pruned_channels if policy else 0
  parts = [f'<h1>{title}</h1><p class="verdict">{html.escape(_verdict(result, weights, pruned))}</p>']
  for name, (heading, figure) in figures.items():
    if figure is not None:
      svg = plots.save(figure, workdir / 'plots', name)
      parts.append(f'<h2>{heading}</h2>{svg}')
  if policy is not None:
    parts.append(f'<h2>Layers</h2>{_layer_table(policy.layers)}')
  parts.append(f'<h2>Result</h2><pre>{html.escape(json.dumps(result, indent=2))}</pre>')
  config = workdir / 'config.json'
  if config.exists():
    parts.append(f'<h2>Settings</h2><pre>{html.escape(config.read_text())}</pre>')
  page = workdir / 'report.html'
  page.write_text(
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{title}</title><style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
  )
  return page
