"""The page of a comparison, `compare.html`: what a task measures over cost with the Pareto front."""

import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from fracbits_jax import tasks
from fracbits_jax.report import page
from fracbits_jax.report.compare_plot import metric_over_cost
from fracbits_jax.report.groups import Group, group, pareto, read
from fracbits_jax.report.verdict import amount, over


def write(folders: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
  """Writes `compare.html` and, as PNG and SVG, `accuracy_over_cost` or its like into `out`; returns the page's path.

  Raises:
    ValueError: as `read`.
  """
  groups = group(read(folders))
  metric = _metric(groups)
  front = pareto([g.mean('cost') for g in groups], [g.goodness for g in groups])
  unit = groups[0].runs[0].result['unit']
  plot = page.figure(
    lambda narrow: metric_over_cost(groups, front, unit, metric, narrow=narrow),
    out,
    f'{metric.name}_over_cost',
    f'Test {metric.title} over cost in {unit}; on the Pareto front: {", ".join(groups[i].name for i in front)}.',
    f'Numbers as in the table. The stepped line is the Pareto front: nothing as cheap {metric.better}. Bars are one '
    'standard deviation over seeds, dashes the float networks. Points of almost the same cost stand side by side.',
  )
  title = f'{len(groups)} networks, {len(folders)} runs' if len(groups) < len(folders) else f'{len(folders)} runs'
  parts = [
    page.header(title, f'on {groups[0].runs[0].data}, cost in {unit}', _verdict(groups, front, unit)),
    page.section(f'{metric.heading} over cost', plot),
    page.section(
      'Runs',
      _table(groups, front, unit),
      page.note('Mean \u00b1 standard deviation over seeds (that of a sample). Stronger rows are on the Pareto front.'),
    ),
    page.section('Settings that differ', _differences(groups)),
    page.section(
      'Repeating it',
      page.code(shlex.join(['python', '-m', 'fracbits_jax.report', *map(str, folders), f'--out={out}']), 'Command'),
    ),
  ]
  page.write(out / 'compare.html', f'{title}: fracbits_jax', parts)
  return out / 'compare.html'


def _metric(groups: Sequence[Group]) -> tasks.Metric:
  """The first metric of the task, which is the same of all."""
  return tasks.of_result(groups[0].runs[0].result).metric


def _spread(g: Group, which: str, metric: tasks.Metric) -> str:
  """The mean and the deviation of a metric on the test split, without the unit; `which` is `test` or `float`."""
  field = f'{which}_{metric.name}'
  mean, deviation = g.mean(field), g.deviation(field)
  if np.isnan(mean):
    return '-'
  return metric.number(mean) if deviation is None else f'{metric.number(mean)} \u00b1 {metric.number(deviation)}'


def _verdict(groups: Sequence[Group], front: Sequence[int], unit: str) -> str:
  best, cheapest = groups[front[-1]], groups[front[0]]
  metric = _metric(groups)
  reached = lambda g: f'{metric.with_unit(_spread(g, "test", metric))} at {amount(g.mean("cost"))} {unit}'
  text = f'{best.name} {metric.best}: {reached(best)}.'
  if best is not cheapest:
    text += f' {cheapest.name} is the cheapest: {reached(cheapest)}.'
  between = [groups[i].name for i in front[1:-1]]
  text += f' Between them on the Pareto front: {", ".join(between)}.' if between else ''
  exceeded = [run.name for g in groups for run in g.runs if over(run.result)]
  return text + (f' Over a budget of its own: {", ".join(exceeded)}.' if exceeded else '')


def _numbered(i: int, g: Group) -> str:
  return f'{i + 1}\u2002{g.name}'


def _table(groups: Sequence[Group], front: Sequence[int], unit: str) -> str:
  every = [('GBitOPs', 'bitops_g'), ('MB', 'size_mb')]
  if not any(np.isnan(g.mean('memory_kb')) for g in groups):
    every.append(('kB of RAM', 'memory_kb'))
  costs = [(unit, 'cost'), *((name, field) for name, field in every if name != unit)]
  metric = _metric(groups)
  unit_of_float = f', {metric.unit}' if metric.unit else ''
  head = ('network', f'test {metric.label}', *(name for name, _ in costs), f'float{unit_of_float}', 'seeds')
  rows = [
    (
      _numbered(i, g),
      _spread(g, 'test', metric),
      *(amount(g.mean(field)) for _, field in costs),
      _spread(g, 'float', metric),
      ', '.join(str(run.seed) for run in g.runs),
    )
    for i, g in enumerate(groups)
  ]
  return page.table(head, rows, f'{metric.heading} and cost of the runs', strong=front)


def _differences(groups: Sequence[Group]) -> str:
  fields = sorted({field for g in groups for field in g.differs})
  if not fields:
    seeds = {run.seed for g in groups for run in g.runs}
    return page.paragraph('None but the seed.' if len(seeds) > 1 else 'None.')
  rows = [(_numbered(i, g), *(g.differs.get(field, '-') for field in fields)) for i, g in enumerate(groups)]
  return page.table(('network', *fields), rows, 'Settings that differ', pale=False)
