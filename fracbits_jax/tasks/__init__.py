"""What networks are trained for: the loss, what is measured, in which unit and whether more of it is better.

Public: `of`, `of_result`, `names`, and the tasks `CLASSIFICATION`, `REGRESSION`, `LANGUAGE` and `LANGUAGE_OF_BYTES`. A
task is one small file, a `Task`, and its place in the table below; the step, the run and its reports follow it. Each
network says which is its own, see `models.common.Network`.
"""

from collections.abc import Mapping
from typing import Any

from fracbits_jax.tasks.classification import CLASSIFICATION
from fracbits_jax.tasks.language import LANGUAGE, LANGUAGE_OF_BYTES
from fracbits_jax.tasks.regression import REGRESSION
from fracbits_jax.tasks.task import Metric, Task

__all__ = [
  'CLASSIFICATION', 'LANGUAGE', 'LANGUAGE_OF_BYTES', 'REGRESSION', 'Metric', 'Task', 'names', 'of', 'of_result',
]  # fmt: skip

_TASKS = {task.name: task for task in (CLASSIFICATION, REGRESSION, LANGUAGE, LANGUAGE_OF_BYTES)}


def names() -> tuple[str, ...]:
  """The names that `of` knows."""
  return tuple(_TASKS)


def of(name: str) -> Task:
  """A task by its name; raises `ValueError` for one that is unknown."""
  if name not in _TASKS:
    raise ValueError(f'task {name!r} is unknown: choose one of {", ".join(names())}')
  return _TASKS[name]


def of_result(result: Mapping[str, Any]) -> Task:
  """The task of what `result.json` holds: `task`, and classification where it names none."""
  return of(result.get('task', CLASSIFICATION.name))
