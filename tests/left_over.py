"""Folders of finished runs that nobody has trained."""

import json

import numpy as np

from configs import digits
from fracbits_jax import cost, policy, tasks
from fracbits_jax.run import outcome

PHASES = ('pretrain', 'search', 'finetune')


def table(*, per_channel=False, weight_only=False):
  """A layer table of nine layers, the first and the last fixed at 8 bits."""
  inputs = {'input_bits': 32} if weight_only else {}
  least = 0 if per_channel else 1
  inner = dict(per_channel=per_channel, choices=tuple(range(least, 9)), **inputs)
  rows = [cost.Layer(name='stem', macs=5000, weights=72, channels=8, kernel_bits=8, input_bits=8)]
  for i in range(1, 8):
    name = f'block{i}_{"pointwise" if i % 2 else "depthwise"}'
    rows.append(cost.Layer(name=name, macs=20000 * i, weights=500 * i, channels=16, **inner))
  rows.append(cost.Layer(name='classifier', macs=2560, weights=2560, channels=10, biases=10, kernel_bits=8, **inputs))
  return tuple(rows)


def leave(
  folder,
  *,
  phases=PHASES,
  seed=0,
  accuracy=0.97,
  metric='bitops',
  also=None,
  kernel=False,
  weights=False,
  task=tasks.CLASSIFICATION,
  **changes,
):
  """Writes the files of a finished run into `folder`, and returns its result.

  Args:
    folder: the run's folder.
    phases: those that it has had.
    seed: its seed.
    accuracy: of the final network on the test split; of another task 1 - its loss.
    metric: its budget's.
    also: the target of a second budget, in MB.
    kernel: whether there is a bit-width for each channel, some of them pruned.
    weights: whether only weights are quantized.
    task: what the network is trained for.
    changes: further settings, by path with `__` for a dot.
  """
  config = digits.get_config()
  given = {name.replace('__', '.'): value for name, value in changes.items()}
  granularity = 'kernel' if kernel else 'layer'
  config.update_from_flattened_dict({'seed': seed, 'phases': phases, 'quant.granularity': granularity, **given})
  layers = table(per_channel=kernel, weight_only=weights)
  second = [] if also is None else [cost.Budget(metric='size', target=also)]
  budget = cost.budget(metric, layers, equivalent_bits=3, also=second)
  rng = np.random.default_rng(seed)
  draw = lambda layer, which, shape, choices: rng.integers(0 if kernel and which == 'kernel' else 2, 5, shape)
  bits = cost.fill_bits(layers, draw)
  budget = cost.Budget(metric=metric, target=1.01 * float(budget.cost(bits, layers)), also=budget.also)
  found = policy.from_bits(bits, layers, budget)
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(json.loads(config.to_json()), indent=2))
  if 'finetune' in phases:
    found.save(folder / 'policy.json')
  _rows(folder, config, found, budget, rng, task)
  spent = list(budget.spent(bits, layers)) if phases[-1] != 'pretrain' else None
  floating, searched = (0.98 if 'pretrain' in phases else None), (0.96 if 'search' in phases else None)
  result = {
    **({} if task is tasks.CLASSIFICATION else {'task': task.name}),
    'phase': phases[-1],
    **_reached(task, {'test_': accuracy, 'float_': floating, 'searched_': searched}),
    'metric': metric,
    'unit': budget.unit,
    'target': budget.target,
    'cost': spent and found.cost,
    'bitops_g': spent and found.bitops_g,
    'size_mb': spent and found.size_mb,
    'budgets': spent,
    'best': None,
    'epochs': 12.0,
    'steps': 216,
    'seconds': 61.5,
    'reference': outcome.reference_costs(budget, layers),
    'made_with': {
      'command': f'python main.py --config.seed={seed}',
      'devices': '1 \u00d7 cpu (x86_64)',
      **dict.fromkeys(('fracbits_jax', 'jax', 'flax', 'python'), '1.2.3'),
    },
  }
  (folder / 'result.json').write_text(json.dumps(result, indent=2))
  return result


def _reached(task, accuracies):
  """The metrics of a task by name behind a prefix, for each accuracy; the loss is 1 less that."""
  values = {prefix: x if x is None else task.values({'loss': 1 - x, 'accuracy': x}) for prefix, x in accuracies.items()}
  return {f'{prefix}{m.name}': x and x[m.name] for prefix, x in values.items() for m in task.metrics}


def _rows(folder, config, found, budget, rng, task):
  """`metrics.jsonl`, four rows a phase."""
  lines = []
  learned = {f'{e.name}/{which}': float(np.mean(getattr(e, which))) for e in found.layers for which in e.learned}
  for phase in config.phases:
    for step in range(1, 5):
      row = dict(phase=phase, step=step, epoch=float(step))
      row |= _reached(task, {'': 0.8 + 0.04 * step, 'validation_': 0.9})
      if phase != 'pretrain':
        away = 0.1 * (4 - step) * (phase == 'search')
        row['bits'] = {name: value + away * rng.normal() for name, value in learned.items()}
        row['budgets'] = [{'unit': b.unit, 'cost': b.target * (1 + away), 'target': b.target} for b in budget.all]
        row['cost'] = row['budgets'][0]['cost']
      lines.append(json.dumps(row))
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
