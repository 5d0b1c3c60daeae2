"""What a run reached: its page `report.html`, and its summary in the terminal."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fracbits_jax import tasks
from fracbits_jax.policy import Policy, load
from fracbits_jax.report.verdict import bits_text, excess
from fracbits_jax.report.verdict import over as exceeded
from fracbits_jax.run.records import read_object, read_rows
from fracbits_jax.system import extras

if __name__ != '__main__':  # a run learns at its start that figures cannot be drawn; the command shows its help before
  with extras.needed():
    import matplotlib  # noqa: F401


_MOST_LINES = 500  # of layers, in the terminal


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
    for e in policy.layers[:_MOST_LINES]:
      kernel = bits_text(e.kernel) if e.has_kernel else ''
      lines.append(f'{e.name:<{width}}  {kernel:>12}  {e.input:>5}  {e.cost_share:>13.1%}')
    if len(policy.layers) > _MOST_LINES:
      lines.append(f'and {len(policy.layers) - _MOST_LINES:,} more layers, see policy.json')
    lines.append('')
  for name, which in (('float', 'float'), ('searched', 'searched'), ('final', 'test')):
    known = which != 'test' or result['phase'] == 'finetune'
    texts = (
      f'{metric.title} {metric.text(result[f"{which}_{metric.name}"] if known else None):>7}'
      for metric in tasks.of_result(result).metrics
    )
    lines.append(f'{name:<9} test {"  ".join(texts)}')
  if result['cost'] is not None:
    for spent in result['budgets']:
      ratio = spent['cost'] / spent['target']
      over = f', over the budget by {excess(spent)}' if spent in exceeded(result) else ''
      lines.append(
        f'cost      {spent["cost"]:.5g} of {spent["target"]:.5g} {spent["unit"]} ({ratio:.4f} of the target{over})'
      )
    if policy is not None and policy.pruned_channels:
      lines.append(f'          {policy.pruned_channels} channels pruned')
    mean = f' ({result["bits_per_weight"]:.4g} bits per weight)' if result.get('bits_per_weight') is not None else ''
    memory = f', {result["memory_kb"]:.5g} kB of RAM' if result.get('memory_kb') is not None else ''
    lines.append(f'          {result["bitops_g"]:.5g} GBitOPs, {result["size_mb"]:.5g} MB{mean}{memory}')
  page = workdir / 'report.html'
  if page.exists():
    lines.append(f'report    {page}')
  return '\n'.join(lines)


def write(workdir: str | os.PathLike, result: Mapping[str, Any], out: str | os.PathLike | None = None) -> pathlib.Path:
  """Writes `report.html` and `plots/` of a run; returns the page's path.

  Args:
    workdir: the run's folder, with `config.json`, `metrics.jsonl` and, where the run has one, `policy.json`.
    result: what `result.json` holds or is going to hold.
    out: the folder to write into instead.

  Raises:
    ValueError: one sentence on a file that is broken.
  """
  from fracbits_jax.report import run_page  # with matplotlib

  workdir = pathlib.Path(workdir)
  out = workdir if out is None else pathlib.Path(out)
  policy = _policy_of(workdir) if result['phase'] == 'finetune' else None
  rows = read_rows(workdir, tasks.of_result(result))
  run_page.write(workdir, out, read_object(workdir / 'config.json'), result, rows, policy)
  return out / 'report.html'
