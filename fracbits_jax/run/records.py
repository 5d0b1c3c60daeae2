"""What a run left in its folder, read back: `config.json`, `result.json`, `metrics.jsonl`, whatever has become of them.

Folders are moved, edited and cut. What a report needs is checked here, so that it either works or ends with one
sentence that names the file and what helps.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fracbits_jax import tasks
from fracbits_jax.cost.lookup import is_unit
from fracbits_jax.run.settings import PHASES

_MAX_NAME = 300  # characters of a path in the collection `bits`
_LARGE = 1e30
_ROUNDING = 1e-3  # of means in float32
_REFERENCES = ('float', 'uniform_8', 'uniform')
_RESTORE = 'put back what the run wrote, or run it again with another --workdir'

Check = tuple[Callable[[Any], bool], str]  # whether a value is as it should be, and what it should be


def is_number(value: Any, least: float = -_LARGE, most: float = _LARGE) -> bool:
  """Whether a value is a finite number of this range, and no truth value."""
  return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _number(least: float = -_LARGE, most: float = _LARGE, *, or_none: bool = False) -> Check:
  what = 'null or a number' if or_none else 'a number'
  limits = '' if (least, most) == (-_LARGE, _LARGE) else f' from {least:g} to {most:g}'
  return lambda value: (or_none and value is None) or is_number(value, least, most), what + limits


def _list_of(check: Check) -> Check:
  return lambda value: isinstance(value, list) and bool(value) and all(map(check[0], value)), f'a list, each {check[1]}'


def _one_of(values: Sequence[str]) -> Check:
  return lambda value: isinstance(value, str) and value in values, f'one of {", ".join(values)}'


_TEXT: Check = (lambda value: isinstance(value, str), 'text')
_TEXT_OR_NONE: Check = (lambda value: value is None or isinstance(value, str), 'null or text')
_OBJECT: Check = (lambda value: isinstance(value, dict), 'an object')
_UNIT: Check = (lambda value: isinstance(value, str) and is_unit(value), 'a unit, a few letters')
_COST, _TARGET = _number(0), _number(1e-30)
_NAME: Check = (lambda name: name.isprintable() and len(name) <= _MAX_NAME, 'the path of a layer')

_SPENT = {'unit': _UNIT, 'cost': _COST, 'target': _TARGET}
_CONFIG = {
  'seed': _number(),
  'phases': _list_of(_one_of(PHASES)),
  'init_from': _TEXT_OR_NONE,
  'policy': _TEXT_OR_NONE,
  'model.name': _TEXT,
  'model.width': _number(),
  'data.dataset': _TEXT,
  'data.batch_size': _number(),
  'quant.granularity': _TEXT,
  'budget': _OBJECT,
  'optimizer': _OBJECT,
}
_RESULT = {
  'phase': _one_of(PHASES),
  'metric': _TEXT,
  'unit': _UNIT,
  'target': _TARGET,
  'epochs': _number(0),
  'steps': _number(0),
  'seconds': _number(0, 1e12),
  **{f'reference.{of}.{what}': _COST for of in _REFERENCES for what in ('bits', 'bitops_g', 'size_mb')},
  'made_with.command': _TEXT_OR_NONE,
  **{f'made_with.{what}': _TEXT for what in ('devices', 'fracbits_jax', 'jax', 'flax', 'python')},
}
_MEMORY = {'memory_kb': _number(0, or_none=True)}  # which runs of earlier versions have not
_MEAN = {'bits_per_weight': _number(0, 64, or_none=True)}  # the same
_OF_BITS = {'cost': _COST, 'bitops_g': _COST, 'size_mb': _COST}  # of a result that has bit-widths
_ROW = {'phase': _one_of(PHASES), 'step': _number(0), 'epoch': _number(0, 1e9)}


def _measured(metric: tasks.Metric, *, or_none: bool = False) -> Check:
  """The check of a value of a metric; means in float32 may end a little beyond its limits."""
  least, most = max(metric.least, -_LARGE), min(metric.most, _LARGE)
  _, what = _number(least, most, or_none=or_none)
  return lambda value: (or_none and value is None) or is_number(value, least, most + _ROUNDING), what


def _of_task(task: tasks.Task) -> dict[str, Check]:
  """The checks of what a result says of its networks."""
  found = {}
  for metric in task.metrics:
    found[f'test_{metric.name}'] = _measured(metric)
    found |= dict.fromkeys((f'float_{metric.name}', f'searched_{metric.name}'), _measured(metric, or_none=True))
  return found


def _problem(found: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
  """The first field that is missing or not as it should be, in words; names have a dot between the levels."""
  for name, (holds, what) in checks.items():
    value: Any = found
    for key in name.split('.'):
      if not isinstance(value, dict) or key not in value:
        return f'it has no {name}'
      value = value[key]
    if not holds(value):
      return f'its {name} is {_shown(value)}, not {what}'
  return None


def _shown(value: Any) -> str:
  if isinstance(value, dict | list):
    return 'an object' if isinstance(value, dict) else 'a list'
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:40]}...'


def _spent_problem(budgets: Any) -> str | None:
  """What is wrong with what budgets were left of, each with its unit, cost and target."""
  if not isinstance(budgets, list) or not budgets or not all(isinstance(b, dict) for b in budgets):
    return 'its budgets are no list of objects'
  problems = (_problem(b, _SPENT) for b in budgets)
  return next((f'in its budgets, {problem}' for problem in problems if problem), None)


def check_result(path: str | os.PathLike, result: Mapping[str, Any]) -> None:
  """Raises `ValueError` with one sentence unless a result has all that reports and comparisons show of it."""
  problem = _problem(result, {'task': _one_of(tasks.names())} if 'task' in result else {})
  problem = problem or _problem(result, {**_RESULT, **_of_task(tasks.of_result(result))})
  for costs in (result, *(result['reference'][of] for of in _REFERENCES if problem is None)):
    problem = problem or (_problem(costs, _MEMORY) if 'memory_kb' in costs else None)
    problem = problem or (_problem(costs, _MEAN) if 'bits_per_weight' in costs else None)
  if problem is None and (result['phase'] != 'pretrain' or result.get('budgets') is not None):
    problem = _problem(result, _OF_BITS) or _spent_problem(result.get('budgets'))
  _raise_for(path, problem)


def check_config(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
  """Raises `ValueError` with one sentence unless a run's settings have all that reports and comparisons show."""
  _raise_for(path, _problem(config, _CONFIG) or _problem(config, dict.fromkeys(config['phases'], _OBJECT)))


def _raise_for(path: str | os.PathLike, problem: str | None) -> None:
  if problem:
    raise ValueError(f'{path} was edited, or left by another version: {problem}; {_RESTORE}')


def read_object(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON object of the run's own; raises `ValueError` with one sentence if it is broken."""
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f'{path} is broken: choose another --workdir, or remove the file')
  return found


def read_finished(workdir: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """What `config.json` and `result.json` of a finished run hold.

  Raises:
    ValueError: one sentence: no finished run there, or damaged files.
  """
  workdir = pathlib.Path(workdir)
  config, result = (_read_file(workdir, name) for name in ('config.json', 'result.json'))
  _raise_for(workdir / 'result.json', _problem(result, {'phase': _RESULT['phase']}))
  return config, result


def _read_file(workdir: pathlib.Path, name: str) -> dict[str, Any]:
  """A file of a finished run."""
  path = workdir / name
  try:
    found = json.loads(path.read_bytes())
  except OSError as error:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    why = '' if missing else f' ({path}: {error.strerror})'
    raise ValueError(f'{workdir} holds no finished run{why}: give a folder with config.json and result.json') from None
  except (ValueError, RecursionError):
    raise ValueError(f'{path} is damaged, it is not JSON: {_RESTORE}') from None
  if not isinstance(found, dict):
    raise ValueError(f'{path} was edited, or left by another version: it is no object; {_RESTORE}')
  return found


def read_rows(workdir: str | os.PathLike, task: tasks.Task = tasks.CLASSIFICATION) -> list[dict[str, Any]]:
  """The rows of `metrics.jsonl`, oldest first; a half-written last row is left out.

  Args:
    workdir: the run's folder.
    task: of the run.

  Raises:
    ValueError: one sentence that names the file and the line which is no row of a run.
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  try:
    lines = path.read_bytes().split(b'\n')
  except FileNotFoundError:
    return []
  except OSError as error:
    raise ValueError(f'{path} cannot be read ({error.strerror}): mend it, or move it away') from None
  while lines and not lines[-1].strip():
    lines.pop()
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      row = json.loads(line)
      problem = _row_problem(row, task)
    except (ValueError, RecursionError):
      if number == len(lines) and line.startswith(b'{'):
        break
      problem = 'it is not JSON'
    if problem:
      raise ValueError(
        f'{path} is damaged, line {number} is no row of a run ({problem}): remove this line, or the file'
      )
    rows.append(row)
  return rows


def _row_problem(row: Any, task: tasks.Task) -> str | None:
  if not isinstance(row, dict):
    return f'it is {_shown(row)}, not an object'
  checks = {metric.name: _measured(metric) for metric in task.metrics}
  validated = {f'validation_{name}': check for name, check in checks.items() if f'validation_{name}' in row}
  problem = _problem(row, {**_ROW, **checks, **validated})
  if problem is None and 'budgets' in row:
    problem = _spent_problem(row['budgets'])
  if problem is None and 'bits' in row:
    problem = _problem(row, {'bits': _OBJECT})
    for name, value in {} if problem else row['bits'].items():
      if not _NAME[0](name) or not is_number(value, 0, 32):
        return f'its bits of {_shown(name)} are {_shown(value)}, not {_number(0, 32)[1]}'
  return problem
