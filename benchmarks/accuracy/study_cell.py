"""One cell of the study, run in this process: the float network, the policy where it is known before, the training."""

import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.accuracy import study_methods
from benchmarks.accuracy.study_methods import METHODS, Cell
from benchmarks.shared import cells, supernet
from fracbits_jax import policy
from fracbits_jax.policy import assignment
from fracbits_jax.run import progress, scored
from fracbits_jax.run import runner as runs
from fracbits_jax.run.checkpoint import Checkpoints
from fracbits_jax.run.experiment import Experiment, prepare


def float_network(dataset: str, network: str, seed: int, workdir: pathlib.Path) -> pathlib.Path:
  """Trains the float network of a seed, unless it is there; its folder."""
  cells.set_up()
  config = study_methods.float_config(dataset, network, seed)
  folder = workdir / f'float-{network}-{seed}-{study_methods.float_digest(config)}'
  runs.run(config, folder)
  return folder


def run(cell: Cell, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs a cell, or what is left of it; its line for the results."""
  how, digest = METHODS[cell.method].how, study_methods.digest(cell)
  config = study_methods.config_of(cell)
  config.init_from = str(float_network(cell.dataset, cell.network, cell.seed, workdir))
  folder = workdir / f'{cell.name.replace(",", "-")}-{digest}'
  began = time.monotonic()
  if how in POLICIES:
    path = workdir / 'policies' / f'{folder.name}.json'
    if not path.exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      POLICIES[how](prepare(config), cell.seed).save(path)
    config.policy = str(path)
  policy_seconds = time.monotonic() - began
  if how == 'supernet':
    supernet.search(config, folder)
  result = runs.run(config, folder)
  found = policy.load(folder / 'policy.json')
  seconds = _seconds(folder, config.phases)
  return {
    'method': cell.method,
    'network': cell.network,
    'width': config.model.width,
    'dataset': cell.dataset,
    'budget': cell.budget,
    'granularity': cell.granularity,
    'seed': cell.seed,
    'digest': digest,
    **{name: result[name] for name in ('float_accuracy', 'searched_accuracy', 'test_accuracy')},
    **{name: result[name] for name in ('cost', 'target', 'unit', 'bitops_g', 'size_mb')},
    'policy_seconds': round(policy_seconds, 1) if how in POLICIES else 0.0,
    'search_seconds': seconds.get('search', 0.0),
    'finetune_seconds': seconds['finetune'],
    'step_seconds': _step_seconds(folder, config),
    'peak_memory_mb': _peak_memory_mb(),
    'policy': {entry.name: [_bits(entry.kernel), _bits(entry.input)] for entry in found.layers},
    'versions': {**result['made_with'], 'numpy': np.__version__},
    'date': time.strftime('%Y-%m-%d'),
  }


def _seconds(folder: pathlib.Path, phases: tuple[str, ...]) -> dict[str, float]:
  """What each phase took, compilation and evaluation with it."""
  seconds, before = {}, 0.0
  for phase in phases:
    checkpoints = Checkpoints(folder, phase, create=False)
    _, _, meta = checkpoints.restore()
    checkpoints.close()
    seconds[phase], before = round(meta['seconds'] - before, 1), meta['seconds']
  return seconds


def _step_seconds(folder: pathlib.Path, config: ConfigDict) -> float:
  """What the steps of all phases take by themselves, by the median speed of each phase once it has started."""
  rows, seconds = progress.read_rows(folder), 0.0
  for phase in config.phases:
    found = [row for row in rows if row['phase'] == phase]
    # The first has the compilation in it.
    speed = np.median([row['images_per_second'] for row in found[1:] or found])
    seconds += found[-1]['steps'] * config.data.batch_size / speed
  return round(float(seconds), 1)


def _peak_memory_mb() -> float:
  """The most memory that this process has had, in 10^6 bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _bits(value: int | tuple[int, ...]) -> int | list[int]:
  return list(value) if isinstance(value, tuple) else value


def _scored(scores: str) -> Callable[[Experiment, int], policy.Policy]:
  return lambda experiment, seed: scored.find(experiment, experiment.initial.variables, scores, seed=seed)


POLICIES: dict[str, Callable[[Experiment, int], policy.Policy]] = {
  'random': lambda experiment, seed: assignment.draw(experiment.layers, experiment.budget, seed),
  'hessian': _scored('hessian'),
  'loss': _scored('loss'),
}
