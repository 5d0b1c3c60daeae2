"""What a run reached and what it saved, in words and numbers."""

from collections.abc import Mapping
from typing import Any

from fracbits_jax import tasks

Result = Mapping[str, Any]

_ROUNDING = 1e-5  # the uniform bit-width is kept with six decimals


def of_data(settings: Mapping[str, Any]) -> str:
  """What the data of a run were, of its settings in `data`; earlier runs know nothing of noise."""
  noise = settings.get('noise')
  level = f'{noise:g}' if isinstance(noise, int | float) else str(noise)  # a damaged configuration has anything
  return f'{settings["dataset"]} with noise of {level}' if noise else str(settings['dataset'])


def bits_text(value: int | tuple[int, ...]) -> str:
  """A bit-width as text, or the mean and the range of one for each channel."""
  if isinstance(value, int):
    return str(value)
  return f'{sum(value) / len(value):.2f} ({min(value)}-{max(value)})'


def amount(value: float) -> str:
  """A cost as text, with four digits that count."""
  return f'{value:,.0f}' if value >= 1e3 else f'{value:#.4g}'


def _times(reference: Mapping[str, float], result: Result) -> tuple[str, str]:
  """How many times fewer BitOPs and how many times fewer bytes of weights than a reference."""
  text = lambda ratio: f'{ratio:,.0f}\u00d7' if ratio >= 100 else f'{ratio:#.3g}\u00d7'
  ratio = lambda field: text(reference[field] / result[field]) if result[field] else 'infinitely'
  return ratio('bitops_g'), ratio('size_mb')


def _from_float(result: Result, metric: tasks.Metric) -> str:
  """How far the final network is from the float network; empty where the run knows none."""
  reference = result[f'float_{metric.name}']
  return '' if reference is None else metric.difference(result[f'test_{metric.name}'], reference, 'the float network')


def over(result: Result) -> list[Mapping[str, Any]]:
  """The budgets, as `result.json` holds them, that the run's costs do not meet."""
  return [b for b in result['budgets'] or () if not b['cost'] <= b['target']]


def _spent(result: Result) -> str:
  """What it costs, whether its budgets are met, and what else could have been had for it."""
  costs = ' and '.join(f'{amount(b["cost"])} {b["unit"]}' for b in result['budgets'])
  if over(result):
    exceeded = (f'the budget of {amount(b["target"])} {b["unit"]} by {excess(b)}' for b in over(result))
    return f'{costs}, over {" and ".join(exceeded)}'
  uniform = result['reference']['uniform']
  of_uniform = {'bitops': uniform['bitops_g'], 'size': uniform['size_mb'], 'memory': uniform.get('memory_kb', 0)}
  as_cheap = lambda b: b['cost'] <= of_uniform.get(b['metric'], b['target']) * (1 + _ROUNDING)
  if all(map(as_cheap, result['budgets'])):
    return f'{costs}, within what {uniform["bits"]:.3g} bits everywhere would cost'
  targets = ' and '.join(f'{amount(b["target"])} {b["unit"]}' for b in result['budgets'])
  return f'{costs}, within the budget of {targets}'


def excess(budget: Mapping[str, Any]) -> str:
  """How far a cost is above its target, as text."""
  part = budget['cost'] / budget['target'] - 1 if budget['target'] else float('inf')
  return f'{part:.2%}' if part >= 0.0001 else 'less than 0.01%'


def sentence(result: Result, pruned_channels: int = 0) -> str:
  """The verdict on a run.

  Args:
    result: what `result.json` holds.
    pruned_channels: of the final network.
  """
  task = tasks.of_result(result)
  reached = task.sentence({metric.name: result[f'test_{metric.name}'] for metric in task.metrics})
  reference = result['reference']
  if result['phase'] == 'pretrain':
    cost = reference['float']
    return (
      f'{reached} by the float network, with which this run ended; at 32 bits it takes {amount(cost["bitops_g"])} '
      f'GBitOPs and {amount(cost["size_mb"])} MB.'
    )
  from_float = _from_float(result, task.metric)
  from_float = f', {from_float},' if from_float else ''
  if result['phase'] == 'search':
    return (
      f'{reached} at fractional bit-widths{from_float} for {_spent(result)}; this run ended with the search, and what '
      'is saved is known once the bits are integers.'
    )
  (computation, size), (computation_8, size_8) = (_times(reference[name], result) for name in ('float', 'uniform_8'))
  saved = f'{computation} fewer BitOPs and {size} fewer bytes of weights than in float'
  if reference['uniform']['bits'] < 8:
    saved += f', {computation_8} and {size_8} fewer than with 8 bits everywhere'
  pruned = f', with {pruned_channels:,} channels pruned' if pruned_channels else ''
  return f'{reached}{from_float} for {_spent(result)}{pruned}: {saved}.'


def tiles(result: Result) -> list[tuple[str, str, str]]:
  """The figures that matter most: what each is, its value, and a word on it."""
  found = [
    (f'Test {metric.title}', metric.text(result[f'test_{metric.name}']), _from_float(result, metric))
    for metric in tasks.of_result(result).metrics
  ]
  for b in result.get('budgets') or ():
    part = f'{b["cost"] / b["target"]:.2%} of the budget, {amount(b["target"])}'
    part = f'over the budget, {amount(b["target"])}, by {excess(b)}' if b in over(result) else part
    found.append((f'Cost, {b["unit"]}', amount(b['cost']), part))
  if result['phase'] != 'finetune':
    return found
  full = result['reference']['float']
  computation, size = _times(full, result)
  found.append(('BitOPs', f'{computation} fewer', f'than {amount(full["bitops_g"])} GBitOPs in float'))
  mean = f', {amount(result["bits_per_weight"])} bits per weight' if result.get('bits_per_weight') is not None else ''
  found.append(('Size', f'{size} less', f'{amount(result["size_mb"])} of {amount(full["size_mb"])} MB in float{mean}'))
  if knows_memory(result) and all(b['metric'] != 'memory' for b in result['budgets']):
    at_8 = result['reference']['uniform_8']['memory_kb']
    found.append(('RAM, kB', amount(result['memory_kb']), f'{amount(at_8)} with 8 bits everywhere'))
  return found


def knows_memory(result: Result) -> bool:
  """Whether a result says what its network takes of RAM, which one that cannot run with integers alone does not."""
  references = [costs.get('memory_kb') for costs in result['reference'].values()]
  return None not in references and (result['phase'] == 'pretrain' or result.get('memory_kb') is not None)


def comparison(result: Result) -> list[tuple[str, ...]]:
  """Rows of network, its metrics on the test split, GBitOPs, MB and, where it is known, kB of RAM, the run's own last.

  `~` marks what is not known.
  """
  metrics = tasks.of_result(result).metrics
  reference = result['reference']
  fields = ('bitops_g', 'size_mb', *(['memory_kb'] if knows_memory(result) else []))
  cells = lambda costs: tuple(amount(costs[field]) for field in fields)
  unknown = '~not measured'
  reached = lambda which: [
    unknown if result[f'{which}_{m.name}'] is None else m.text(result[f'{which}_{m.name}']) for m in metrics
  ]
  rows: list[tuple[str, ...]] = [('float, 32 bits', *reached('float'), *cells(reference['float']))]
  if result['phase'] == 'pretrain':
    return rows
  for name in ('uniform_8', 'uniform'):
    text = f'uniform, {reference[name]["bits"]:.3g} bits' + (', the budget' if name == 'uniform' else '')
    rows.append((text, *[unknown] * len(metrics), *cells(reference[name])))
  if result['phase'] == 'search':
    return [*rows, ('this run, fractional bits', *reached('test'), *cells(result))]
  if result[f'searched_{metrics[0].name}'] is not None:
    rows.append(('before the bits were integers', *reached('searched'), *['~-'] * len(fields)))
  return [*rows, ('this run', *reached('test'), *cells(result))]
