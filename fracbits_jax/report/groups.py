"""Finished runs to compare: read, those that differ in the seed alone taken together, and the Pareto front of all."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from fracbits_jax import tasks
from fracbits_jax.report import verdict
from fracbits_jax.run.records import check_config, check_result, read_finished
from fracbits_jax.run.settings import completed
from fracbits_jax.system.files import readable

# How a run is watched and kept, not what comes out of it.
_IRRELEVANT = re.compile(r'seed|data\.(data_dir|workers)|checkpoint_.*|report_steps|eval_epochs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A finished run.

  Attributes:
    name: a short name, different from those of the other runs.
    seed: its seed.
    settings: by path, what its result depends on apart from the seed.
    result: what `result.json` holds.
  """

  name: str
  seed: int
  settings: Mapping[str, Any]
  result: Mapping[str, Any]

  @property
  def data(self) -> str:
    """The data, in words."""
    return verdict.of_data({name: self.settings[f'data.{name}'] for name in ('dataset', 'noise')})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: what their names have in common.
    runs: the runs.
    differs: the settings that are not the same in all groups, as text by path.
  """

  name: str
  runs: tuple[Run, ...]
  differs: Mapping[str, str]

  @property
  def goodness(self) -> float:
    """The mean of the task's first metric on the test split, more of which is better."""
    metric = tasks.of_result(self.runs[0].result).metric
    return metric.goodness(self.mean(f'test_{metric.name}'))

  def values(self, field: str) -> np.ndarray:
    """A field of the results `[runs]`; NaN where a run has none."""
    found = [run.result.get(field) for run in self.runs]
    return np.array([np.nan if value is None else value for value in found], np.float64)

  def mean(self, field: str) -> float:
    """The mean of a field over the runs; NaN where one has none."""
    return float(self.values(field).mean())

  def deviation(self, field: str) -> float | None:
    """The standard deviation over the seeds, as a sample's; `None` for a single run."""
    return float(self.values(field).std(ddof=1)) if len(self.runs) > 1 else None


def read(folders: Sequence[pathlib.Path]) -> list[Run]:
  """Reads finished runs that can be compared.

  Raises:
    ValueError: one sentence: a folder that is given twice or holds no finished and finetuned run, or runs on different
      data, for different tasks or of different metrics.
  """
  resolved = [folder.resolve() for folder in folders]
  for folder in resolved:
    if resolved.count(folder) > 1:
      raise ValueError(f'{folder} is given {resolved.count(folder)} times: give each run once')
  runs = [_read(folder, name) for folder, name in zip(folders, _names(resolved), strict=True)]
  for what, of in (
    ('metrics', lambda run: f'{run.result["metric"]} in {run.result["unit"]}'),
    ('data', lambda run: run.data),
    ('tasks', lambda run: tasks.of_result(run.result).name),
  ):
    for run in runs:
      if of(run) != of(runs[0]):
        raise ValueError(
          f'the runs have different {what}: {runs[0].name} {of(runs[0])}, {run.name} {of(run)}; compare runs that '
          'share them'
        )
  return runs


def _read(folder: pathlib.Path, name: str) -> Run:
  config, result = read_finished(folder)
  if result['phase'] != 'finetune':
    raise ValueError(f'{folder} ended with {result["phase"]}, so its cost is not final: compare runs that finetune')
  check_config(folder / 'config.json', config)
  check_result(folder / 'result.json', result)
  settings = traverse_util.flatten_dict(completed(config), sep='.')
  return Run(name=name, seed=config['seed'], settings=_compared(settings, config['phases']), result=result)


def _compared(settings: Mapping[str, Any], phases: Sequence[str]) -> dict[str, Any]:
  """What a result depends on; in the path of weights or a policy, the run's own seed at the end counts as its seed."""
  idle = {'pretrain', 'search', 'finetune'} - set(phases)
  kept = {k: v for k, v in settings.items() if not _IRRELEVANT.fullmatch(k) and k.split('.')[0] not in idle}
  for field in ('init_from', 'policy'):
    if isinstance(kept.get(field), str):
      kept[field] = re.sub(rf'(?<!\d){settings["seed"]}(?=(\.\w+|/policy\.json)?$)', 'SEED', kept[field])
  return kept


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
  """The ends of the paths, as long as it takes to tell them apart."""
  depth = 1
  short = lambda: [readable('/'.join(folder.parts[-depth:])) for folder in folders]
  while len(set(short())) < len(folders) and depth < max(len(folder.parts) for folder in folders):
    depth += 1
  return short()


def group(runs: Sequence[Run]) -> list[Group]:
  """Groups runs of equal settings; a seed that comes again begins another group, for it adds no chance.

  Returns:
    The groups from the cheapest to the most expensive.
  """
  found: dict[tuple, list[Run]] = {}
  for run in runs:
    settings, times = repr(sorted(run.settings.items())), 0
    while any(run.seed == other.seed for other in found.get((settings, times), ())):
      times += 1
    found.setdefault((settings, times), []).append(run)
  fields = sorted({field for run in runs for field in run.settings})
  at = lambda run, field: run.settings.get(field)
  varying = [field for field in fields if len({repr(at(run, field)) for run in runs}) > 1]
  groups = []
  for members in found.values():
    differs = {field: _text(at(members[0], field)) for field in varying if at(members[0], field) is not None}
    groups.append(Group(name=_common([run.name for run in members]), runs=tuple(members), differs=differs))
  return sorted(groups, key=lambda g: (g.mean('cost'), -g.goodness))


def _text(value: Any) -> str:
  if isinstance(value, list):
    return ', '.join(map(_text, value))
  return f'{value:g}' if isinstance(value, float) else str(value)


def _common(names: Sequence[str]) -> str:
  """What several names begin with, without half a number; all of them if that is nothing."""
  if len(names) == 1:
    return names[0]
  same = [len(set(letters)) == 1 for letters in zip(*names, strict=False)]
  length = [*same, False].index(False)
  start = names[0][:length]
  if any(name[length : length + 1].isdigit() for name in names):
    start = start.rstrip('0123456789')
  return start.rstrip('-_./ ') or ', '.join(names)


def pareto(costs: Sequence[float], goodness: Sequence[float]) -> list[int]:
  """The Pareto front.

  Args:
    costs: of networks.
    goodness: of the same networks; more is better.

  Returns:
    The positions, by rising cost, of those that no other beats: none is as cheap and as good, and better in one.
  """
  points = list(zip(costs, goodness, strict=True))
  beats = lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b
  return sorted((i for i, p in enumerate(points) if not any(beats(q, p) for q in points)), key=lambda i: points[i])
