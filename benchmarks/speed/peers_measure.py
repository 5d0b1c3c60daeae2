"""Time and memory of steps, in the process that makes them; needs none of the frameworks."""

import ctypes
import dataclasses
import importlib
import importlib.metadata
import math
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

WARM_UP = 2  # steps of a method, then rounds of all of them
MEMORY_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A training step: `run(steps)` makes that many, waits for them and returns the last loss."""

  run: Callable[[int], float]
  facts: dict[str, float]  # what is known of it without running it, such as planned bytes


def peer(name: str) -> Any:
  """The module with a framework's steps.

  Raises:
    ImportError: the framework is not installed, or does not import.
  """
  return importlib.import_module(f'benchmarks.speed.peer_{name}')


def reason(error: BaseException) -> str:
  """Why something does not run, in one sentence."""
  if isinstance(error, ModuleNotFoundError):
    return f'{error.name} is not installed'
  first = next((line.strip() for line in str(error).splitlines() if line.strip()), '')
  text = f'{type(error).__name__}: {first}' if first else type(error).__name__
  return text if len(text) <= 200 else text[:197] + '...'


def times(name: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
  """Seconds of a step for each method of a peer, which take turns, `seconds` long each in a round."""
  try:
    module = peer(name)
  except Exception as error:  # whatever a framework raises as it is imported
    return {'failed': reason(error)}
  rows: dict[str, dict[str, Any]] = {}
  steps, counts = {}, {}
  for method in module.METHODS:
    try:
      steps[method] = module.make(method, batch)
      steps[method].run(WARM_UP)
      counts[method] = math.ceil(seconds / timed(steps[method].run, 1)[1])
    except Exception as error:
      steps.pop(method, None)
      rows[method] = {'failed': reason(error)}
      continue
    print(f'{name} {method}: {counts[method]} steps in {seconds} s', file=sys.stderr, flush=True)
    rows[method] = {**steps[method].facts, 'steps_per_round': counts[method], 'wall': [], 'cpu': []}
  for i in range(-WARM_UP, rounds):
    for method in list(steps)[:: 1 if i % 2 == 0 else -1]:
      wall, cpu = timed(steps[method].run, counts[method])
      if i >= 0:
        rows[method]['wall'].append(wall)
        rows[method]['cpu'].append(cpu)
  for method, step in steps.items():
    rows[method]['loss'] = step.run(1)
  return {'versions': module.versions(), 'rows': {method: rows[method] for method in module.METHODS}}


def timed(run: Callable[[int], Any], count: int) -> tuple[float, float]:
  """Seconds of one of `count` steps: by the clock, and of the processor in this process."""
  wall, cpu = time.perf_counter(), time.process_time()
  run(count)
  return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def memory(name: str, method: str, batch: int) -> dict[str, Any]:
  """Memory of a process that does nothing but steps of one method, in bytes.

  `process_bytes` is the most that the process held, with all that it imports and with compilation. `step_bytes` is how
  far it grows during a step above what it holds between steps; only Linux tells.
  """
  try:
    run = peer(name).make(method, batch).run
    run(WARM_UP)
    most = _most_bytes()
    found = {'step_bytes': between - rest} if (rest := _resting_bytes()) and (between := _peak_bytes(run)) else {}
  except Exception as error:
    return {'failed': reason(error)}
  return {**found, 'process_bytes': max(most, _most_bytes())}


def _most_bytes() -> int:
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(field: str) -> int:
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ':'))


def _resting_bytes() -> int | None:
  """What the process holds once freed memory has gone back to the system."""
  try:
    ctypes.CDLL(None).malloc_trim(0)
    return _status('VmRSS')
  except (OSError, AttributeError):
    return None


def _peak_bytes(run: Callable[[int], Any]) -> int | None:
  """The most that the process holds while it makes steps."""
  try:
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak so far is forgotten
    run(MEMORY_STEPS)
    return _status('VmHWM')
  except OSError:
    return None


def ratios(rows: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
  """What each method takes in multiples of the method `float`: of its time within each round, and of its memory.

  Args:
    rows: by method, with `wall` and `cpu` seconds of each round and the bytes that are known, or with `failed`.
    base: the row of another process whose median step is `of_base` of.
  """
  one = rows.get('float', {})
  found: dict[str, dict[str, Any]] = {}
  for method, row in rows.items():
    if 'failed' in row:
      found[method] = {'failed': row['failed']}
      continue
    found[method] = {}
    if base is not None:
      found[method]['of_base'] = statistics.median(row['cpu']) / statistics.median(base['cpu'])
    if 'failed' in one or not one:
      continue
    for kind in ('cpu', 'wall'):
      each = [a / b for a, b in zip(row[kind], one[kind], strict=True)]
      found[method][kind] = (statistics.median(each), min(each), max(each))
    for kind in ('temp_bytes', 'step_bytes', 'process_bytes'):
      if kind in row and one.get(kind):
        found[method][kind] = row[kind] / one[kind]
  return found
