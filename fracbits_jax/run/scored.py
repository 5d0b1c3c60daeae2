"""The policy of a run that scores make, without a search."""

import contextlib
import itertools
from typing import Any

from fracbits_jax.data.batches import train_batches
from fracbits_jax.policy import Policy, assignment
from fracbits_jax.policy.sensitivity import SCORES, Sensitivity
from fracbits_jax.run.experiment import Experiment

_BATCHES = 4


def find(experiment: Experiment, variables: Any, scores: str = 'hessian', *, seed: int = 0) -> Policy:
  """The policy of an experiment that scores make.

  Args:
    experiment: of `experiment.prepare`: its quantized network, its budget, its data.
    variables: of its float network.
    scores: `hessian`, `loss` or `error`.
    seed: of the order of the training batches and of the draws.
  """

  if scores not in SCORES:
    raise ValueError(f'scores={scores!r} are unknown: choose one of {", ".join(SCORES)}')
  dataset = experiment.dataset
  reader = train_batches(dataset, batch_size=experiment.config.data.batch_size, seed=seed)
  with contextlib.closing(reader):
    batches = list(itertools.islice(reader, _BATCHES))
  variables = {name: variables[name] for name in ('params', 'batch_stats') if name in variables}
  found = Sensitivity(experiment.quant_model, variables, experiment.inputs, batches, experiment.task)
  makers = {'hessian': found.hessian_scores, 'error': found.error_scores}
  by_slot = makers[scores](seed=seed) if scores in makers else found.loss_scores()
  return assignment.solve(by_slot, experiment.layers, experiment.budget)
