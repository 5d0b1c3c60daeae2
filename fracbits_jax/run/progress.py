"""What a person sees while a run goes on, and what stays of it: a line, `metrics.jsonl`, TensorBoard events."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from fracbits_jax import tasks
from fracbits_jax.run.events import Events
from fracbits_jax.run.records import read_rows
from fracbits_jax.system import terminal
from fracbits_jax.system.files import write_whole, writing

__all__ = ['Progress', 'Silence', 'duration', 'read_rows']

_LINE_SECONDS = 10  # between two lines where the output is not a terminal
_CLEAR = '\r\x1b[K'  # to the start of the line, and what is in it away


def duration(seconds: float) -> str:
  """Seconds as `m:ss` or `h:mm:ss`."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Progress:
  """The rows of a run, shown as they come in."""

  def __init__(self, workdir: str | os.PathLike, phases: tuple[str, ...], task: tasks.Task = tasks.CLASSIFICATION):
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    self._phases, self._task = phases, task
    self._events = Events(pathlib.Path(workdir) / 'tensorboard')
    self._shown_at = 0.0
    self._open = ''  # what stands in a line that is still open: nothing, a row, or what is being done
    self._doing = ''

  def rewind(self, phase: str, step: int, *, global_step: int | None = None) -> None:
    """Forgets what was written after `step` of `phase`, the `global_step` of the run, before that is run again."""
    at, order = (self._phases.index(phase), step), {phase: i for i, phase in enumerate(self._phases)}
    place = lambda row: (order.get(row['phase'], len(order)), row['step'])
    kept = [row for row in read_rows(self._path.parent, self._task) if place(row) <= at]
    write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in kept))
    if global_step is not None:
      self._events.rewind(global_step)

  def row(self, row: dict[str, Any], *, global_step: int, last: bool) -> None:
    """Keeps a row and shows it; `last` says that it ends its phase."""
    with writing(self._path), self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    scalars = {f'{row["phase"]}/{name}': value for name, value in row.items() if isinstance(value, float)}
    scalars |= {f'bits/{name}': value for name, value in row.get('bits', {}).items()}
    self._events.write(scalars, global_step)
    self._show(row, last)

  def _show(self, row: dict[str, Any], last: bool) -> None:
    if terminal.is_there():
      terminal.show(f'{_CLEAR}{line(row, terminal.columns() - 1, self._task)}', end='\n' if last else '')
      self._open = '' if last else 'row'
    elif last or time.monotonic() - self._shown_at >= _LINE_SECONDS:
      terminal.show(line(row, task=self._task))
      self._shown_at = time.monotonic()

  def doing(self, text: str) -> None:
    """Shows what takes a while; on a terminal until there is something else to show."""
    if terminal.is_there():
      terminal.show(f'{self._line_before()}{_CLEAR}{text[: terminal.columns() - 1]}', end='')
      self._open = 'doing'
    elif text != self._doing:
      terminal.show(text)
    self._doing = text

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    clear = _CLEAR if self._open == 'doing' else ''
    terminal.show(f'{self._line_before()}{clear}{text}')
    self._open = ''

  def _line_before(self) -> str:
    return '\n' if self._open == 'row' else ''

  def close(self) -> None:
    """Closes the file of the TensorBoard events."""
    self._events.close()


class Silence:
  """In the place of `Progress` on the hosts that are not the primary."""

  def rewind(self, phase: str, step: int, *, global_step: int | None = None) -> None:
    pass

  def row(self, row: dict[str, Any], *, global_step: int, last: bool) -> None:
    pass

  def doing(self, text: str) -> None:
    pass

  def say(self, text: str) -> None:
    pass

  def close(self) -> None:
    pass


def line(row: Mapping[str, Any], width: int | None = None, task: tasks.Task = tasks.CLASSIFICATION) -> str:
  """A row as a line of at most `width` characters: what matters less is left out first."""
  # (how much it matters, text), in the order in which they stand.
  parts = [(8, f'{row["phase"]:<8} epoch {row["epoch"]:g}/{row["epochs"]:g}')]
  parts += [(2, f'step {row["step"]}/{row["steps"]}'), (3, f'loss {row["loss"]:.4f}')]
  metric = task.metric
  parts += [(5, f'{metric.title} {metric.text(row[metric.name], short=True)}')]
  if f'validation_{metric.name}' in row:
    parts.append((7, f'validation {metric.text(row[f"validation_{metric.name}"], short=True)}'))
  spent = [(b, b['cost'] / b['target']) for b in row['budgets']] if 'cost' in row else []
  long = [(0, f'cost {b["cost"]:.4g}/{b["target"]:.4g} {b["unit"]} ({ratio:.3f})') for b, ratio in spent]
  short = [(6, f'cost {max(ratio for _, ratio in spent):.1%}')] if spent else []  # of the target
  end = [(1, f'{row["images_per_second"]:,.0f} {task.examples}/s'), (4, f'{duration(row["seconds_left"])} left')]
  join = lambda parts: '  '.join(text for _, text in parts)
  found = [*parts, *long, *end]
  if width is None or len(join(found)) <= width:
    return join(found)
  found = [*parts, *short, *end]
  while len(found) > 1 and len(join(found)) > width:
    found.remove(min(found))
  return join(found)[:width]
