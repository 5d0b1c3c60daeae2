"""What a run came to, `result.json`: what its networks reached, what it costs, what it would cost otherwise."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fracbits_jax import cost, tasks
from fracbits_jax.fast import platforms
from fracbits_jax.layers import FLOAT_BITS
from fracbits_jax.run.experiment import Experiment


def result(
  experiment: Experiment,
  bits: Any,
  measured: Mapping[str, Mapping[str, float]],
  *,
  best: Mapping[str, float] | None,
  steps: int,
  seconds: float,
  command: str | None,
) -> dict[str, Any]:
  """What `result.json` holds.

  Args:
    experiment: of the run.
    bits: the collection `bits` that it ended with; `None` of a float network.
    measured: the metrics of the task on the test split, by phase.
    best: of the finetuning, see `Monitor.best`.
    steps: of all phases.
    seconds: that they took.
    command: the shell's command behind the run.
  """
  config, budget, layers, task = experiment.config, experiment.budget, experiment.layers, experiment.task
  last = config.phases[-1]
  costs = dict.fromkeys(('cost', 'bitops_g', 'size_mb', 'bits_per_weight', 'memory_kb', 'budgets'))
  if bits is not None:
    spent = budget.spent(bits, layers)
    costs = {'cost': spent[0]['cost'], **_costs(bits, layers), 'budgets': list(spent)}
  return {
    **({} if task is tasks.CLASSIFICATION else {'task': task.name}),  # as results have been that name none
    'phase': last,
    **{
      f'{which}_{metric.name}': measured[phase][metric.name] if phase in measured else None
      for metric in task.metrics
      for which, phase in (('test', last), ('float', 'pretrain'), ('searched', 'search'))
    },
    'metric': budget.metric,
    'unit': budget.unit,
    'target': budget.target,
    **costs,
    'best': best,
    'epochs': sum(float(config[phase].epochs) for phase in config.phases),
    'steps': steps,
    'seconds': round(seconds, 1),
    'reference': reference_costs(budget, layers),
    'made_with': {'command': command, **platforms.description()},
  }


def reference_costs(budget: cost.Budget, layers: Sequence[cost.Layer]) -> dict[str, Any]:
  """The costs of the same network in float, and with the same bits everywhere.

  Args:
    budget: what the network is held to.
    layers: its layer table.

  Returns:
    `float`, `uniform_8` and `uniform`, each with `bits`, `bitops_g`, `size_mb`, `bits_per_weight` and `memory_kb`: all
    kernels and inputs at 32 bits, 32 of them per weight; all that are learned at 8 bits; all that are learned at the
    largest bit-width with which they meet the budget. Nothing is pruned. The memory of a network that cannot run with
    integers alone is `None`.
  """
  in_32 = lambda l: dataclasses.replace(l, kernel_bits=FLOAT_BITS, input_bits=FLOAT_BITS, source=None, group_size=None)
  plain = list(map(in_32, layers))
  in_float = layers.with_rows(plain) if isinstance(layers, cost.LayerTable) else plain
  uniform = lambda bits: {'bits': bits, **_costs(cost.uniform_bits(layers, bits), layers)}
  return {
    'float': {'bits': FLOAT_BITS, **_costs({}, in_float)},
    'uniform_8': uniform(8),
    'uniform': uniform(round(cost.equivalent_bits(budget, layers), 6)),
  }


def _costs(bits: Mapping[str, Any], layers: Sequence[cost.Layer]) -> dict[str, Any]:
  try:
    memory = float(cost.peak_memory(bits, layers))
  except ValueError:  # rows by themselves, or a network that is no program of integers
    memory = None
  computation, size = float(cost.bitops(bits, layers)), float(cost.model_size(bits, layers))
  mean = float(cost.bits_per_weight(bits, layers)) or float(FLOAT_BITS)  # 0 where all weights are float
  return {'bitops_g': computation, 'size_mb': size, 'bits_per_weight': mean, 'memory_kb': memory}
