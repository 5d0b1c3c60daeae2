"""The page of one run: what it reached, where its bits went, how it got there, how to repeat it."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax import tasks
from fracbits_jax.policy import Entry, Policy
from fracbits_jax.report import course_plots, layer_plots, page, verdict
from fracbits_jax.report.verdict import bits_text
from fracbits_jax.run.progress import duration

_OF_MEMORY = 'RAM: the most that is stored at once while it runs, in 10^3 bytes. '
_AGAIN = """import json
from ml_collections import ConfigDict
from fracbits_jax.commands import train

with open({config!r}) as file:
  settings = json.load(file)
train.run(ConfigDict(settings), {folder!r})
"""


def write(
  folder: pathlib.Path,
  out: pathlib.Path,
  config: Mapping[str, Any],
  result: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
  policy: Policy | None,
) -> None:
  """Writes `report.html` and `plots/` into `out`; the other arguments are what the run's `folder` holds."""
  name = folder.resolve().name
  pruned = policy.pruned_channels if policy else 0
  parts = [
    page.header(name, _about(config), verdict.sentence(result, pruned)),
    page.tiles(verdict.tiles(result)),
    _against(config, result),
    *_of_policy(policy, result, out / 'plots'),
    *_courses(rows, policy, result, out / 'plots'),
  ]
  if policy is not None:
    parts.append(page.section('Layers', _layer_table(policy.layers)))
  parts += [_settings(config), _repeat(folder, config, result)]
  page.write(out / 'report.html', f'{name}: fracbits_jax', parts)


def _about(config: Mapping[str, Any]) -> str:
  model, quant = config['model'], config['quant']
  width = '' if model['width'] == 1 else f' \u00d7 {model["width"]:g}'
  per = 'output channel' if quant['granularity'] == 'kernel' else 'layer'
  data = verdict.of_data(config['data'])
  return f'{model["name"]}{width} on {data}, a bit-width for each {per}, seed {config["seed"]}'


def _against(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
  rows, task = verdict.comparison(result), tasks.of_result(result)
  memory = verdict.knows_memory(result)
  of_groups = config['quant'].get('group_size') is not None  # which earlier runs know nothing of
  ranges = f'ranges of groups at {config["quant"]["range_bits"]}, ' if of_groups else ''
  costs = ('GBitOPs', 'MB', *(['RAM, kB'] if memory else []))
  head = ('network', *(f'test {metric.title}' for metric in task.metrics), *costs)
  label = f'{task.metric.heading} and cost against float and uniform bits'
  table = page.table(head, rows, label, strong=(len(rows) - 1,))
  note = (
    'BitOPs: the multiply-accumulates of one example, each times the bits of kernel and input. MB: kernels at their '
    f'bits, {ranges}biases at 32. {_OF_MEMORY if memory else ""}Uniform: all learned bit-widths the same, trained in '
    'runs of their own if at all.'
  )
  note += f' {task.note}' if task.note else ''
  return page.section('Against float and uniform bits', table, page.note(note))


def _span(entries: Sequence[Entry], which: str) -> str:
  values = [b for e in entries if which in e.learned for b in np.atleast_1d(getattr(e, which)).tolist()]
  return f'{which}s have {min(values)} to {max(values)} bits' if values else f'bits of {which}s are not learned'


def _of_policy(policy: Policy | None, result: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
  """The sections on the final bit-widths."""
  if policy is None:
    return []
  entries, uniform = policy.layers, result['reference']['uniform']['bits']
  count = sum(e.has_kernel for e in entries)
  shared = '' if all(e.has_kernel for e in entries) else ', or learned in a row without a kernel'
  fixed = f'Paler bars are fixed, not learned{shared}. ' if any(not e.learned for e in entries) else ''
  size = layer_plots.layers_per_bar(policy)
  several = f' A bar is the mean of {size} layers in a row.' if size > 1 else ''
  summed = f' A bar is the sum of {size} layers in a row.' if size > 1 else ''
  left_out = layer_plots.histograms_left_out(policy)
  bits = page.figure(
    functools.partial(_by_layer, policy, uniform),
    folder,
    'bits_by_layer',
    f'Bit-widths of {count} layers: {_span(entries, "kernel")}; {_span(entries, "input")}.',
    f'From the first layer to the last. {fixed}Dashed: the largest bit-width that everywhere meets the budget.'
    + several,
  )
  share = max(entries, key=lambda e: e.cost_share)
  marks = {'bitops': 'what it would cost if all layers had the same bits', 'size': 'its share of the weights'}
  mark = f' Marks: {marks.get(policy.metric, "its share of the multiply-accumulates")}.'
  of_memory = policy.metric == 'memory'
  what = 'what its inputs take where most is stored at once.' if of_memory else f'what each layer costs.{mark}'
  cost = page.figure(
    lambda narrow: layer_plots.cost_by_layer(policy, narrow=narrow),
    folder,
    'cost_by_layer',
    f'Share of the cost by layer; the largest is that of {share.name}, {share.cost_share:.1%}.',
    f'Bars: {what}{summed}',
  )
  histograms = page.figure(
    lambda narrow: layer_plots.kernel_histograms(policy, narrow=narrow),
    folder,
    'kernel_histograms',
    f'Histograms of the bit-widths of the output channels of each layer; {_span(entries, "kernel")}.',
    'How many output channels have which bit-width, each layer on a scale of its own.'
    + (' Channels at 0 bits are pruned.' if policy.pruned_channels else '')
    + (f' {left_out:,} more layers are left out here.' if left_out else ''),
  )
  found = [page.section('Bit-widths by layer', bits)]
  if histograms:
    found.append(page.section('Kernels by bit-width', histograms))
  return [*found, page.section('What each layer costs', cost)]


def _by_layer(policy: Policy, uniform: float, narrow: bool) -> Any:
  return layer_plots.policy_by_layer(policy, uniform, narrow=narrow)


def _courses(
  rows: Sequence[Mapping[str, Any]], policy: Policy | None, result: Mapping[str, Any], folder: pathlib.Path
) -> list[str]:
  """The sections on the course of the run; those with nothing to show are left out."""
  metric = tasks.of_result(result).metric
  drawn = {
    'How the bits moved': page.figure(
      lambda narrow: course_plots.bits_over_time(rows, policy, narrow=narrow),
      folder,
      'bits_over_time',
      'Bit-width of every layer over the epochs of the search.',
      'A line a layer; where every channel has a bit-width of its own, its mean.'
      + (' Dots: the integers, or their means, that were then finetuned.' if policy else '')
      + (' Of many layers some are shown, evenly spread.' if course_plots.lines_left_out(rows) else ''),
    ),
    'Cost against its budget': page.figure(
      lambda narrow: course_plots.cost_over_time(rows, narrow=narrow),
      folder,
      'cost_over_time',
      'Cost as a part of its target over the epochs after the pretraining.',
      'At 1, the dashed line, the budget is met.',
    ),
    metric.heading: page.figure(
      lambda narrow: course_plots.metric_over_time(rows, result, narrow=narrow),
      folder,
      f'{metric.name}_over_time',
      f'{metric.heading} in training, validation and test over the epochs; in the end '
      f'{metric.text(result[f"test_{metric.name}"])} in test.',
      f'Training {metric.title} is measured on the batches as training sees them, while the weights move.',
    ),
  }
  return [page.section(heading, figure) for heading, figure in drawn.items() if figure]


def _layer_table(entries: Sequence[Entry]) -> str:
  pale = lambda e, which, text: text if which in e.learned else f'~{text}'
  rows = [
    (
      e.name,
      pale(e, 'kernel', bits_text(e.kernel)) if e.has_kernel else '',
      pale(e, 'input', str(e.input)),
      f'{e.macs / 1e6:,.3f}',
      f'{e.weights:,}',
      f'{e.cost_share:.1%}',
    )
    for e in entries
  ]
  head = ('layer', 'kernel bits', 'input bits', 'MMACs', 'weights', 'share of cost')
  shared = '' if all(e.has_kernel for e in entries) else ', or learned in the row without a kernel before it'
  note = f'Pale bit-widths are fixed, not learned{shared}. Where every channel has its own: mean, least and most.'
  return page.table(head, rows, 'Layers with their bit-widths and costs') + page.note(note)


def _shown(settings: Mapping[str, Any]) -> str:
  """Settings as text, without those that follow something else."""
  plain = lambda v: f'{v:g}' if isinstance(v, float) else str(v)
  one = lambda v: ', '.join(map(plain, v)) if isinstance(v, list) else plain(v)
  given = {k: v for k, v in settings.items() if v is not None and not isinstance(v, dict)}
  nested = {k: v for of in settings.values() if isinstance(of, dict) for k, v in of.items() if v is not None}
  parts = [
    f'{k.replace("_", " ")} {one(v)}' for k, v in {**given, **{f'also {k}': v for k, v in nested.items()}}.items()
  ]
  return ' \u00b7 '.join(parts)


def _settings(config: Mapping[str, Any]) -> str:
  names = ['model', 'data', 'quant', 'budget', *config['phases'], 'optimizer']
  values = {name: _shown(config[name]) for name in names}
  values['run'] = _shown({k: config[k] for k in ('seed', 'init_from', 'policy')})
  everything = page.code(json.dumps(config, indent=2), 'All settings as JSON')
  return page.section('Settings', page.pairs(values, 'Settings'), page.details('All settings, config.json', everything))


def _repeat(folder: pathlib.Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
  made = result['made_with']
  again = _AGAIN.format(config=str(folder / 'config.json'), folder=f'{folder}-again')
  parts = []
  if made['command'] is not None:
    parts += [page.paragraph('The command that made this run:'), page.code(made['command'], 'Command')]
  parts += [page.paragraph('The same from the settings that it kept:'), page.code(again, 'Python program')]
  versions = ', '.join(f'{name} {made[name]}' for name in ('fracbits_jax', 'jax', 'flax', 'python'))
  values = {
    'versions': versions,
    'devices': made['devices'],
    'length': f'{result["epochs"]:g} epochs, {result["steps"]:,} steps, {duration(result["seconds"])}',
    'data': f'{verdict.of_data(config["data"])}, batches of {config["data"]["batch_size"]}, seed {config["seed"]}',
  }
  return page.section('Repeating it', *parts, page.pairs(values, 'What it was made with'))
