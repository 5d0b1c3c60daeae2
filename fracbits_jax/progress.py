"""What a person sees while a run goes on, and what stays of it: a line, `metrics.jsonl`, TensorBoard events."""

import contextlib
import json
import os
import pathlib
import sys
import time
from typing import Any

from fracbits_jax import extras

with extras.needed():
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto.event_pb2 import Event

from fracbits_jax.files import write_whole, writing
from fracbits_jax.records import read_rows

__all__ = ['Progress', 'Silence', 'duration', 'read_rows']

_LINE_SECONDS = 10  # between two lines where the output is not a terminal


def duration(seconds: float) -> str:
  """Seconds as `m:ss` or `h:mm:ss`."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class _Events:
  """TensorBoard events, a copy of what `metrics.jsonl` has: on a full disk they end, and the run says so itself.

  They are written by the caller. The writer that tensorboardX offers has a thread and a queue of its own, which such a
  disk stops at any moment, with a traceback.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._writer: EventsWriter | None = None  # from the first event on

  def write(self, scalars: dict[str, float], step: int) -> None:
    """Writes a value for each name, to disk before it returns."""
    with contextlib.suppress(OSError):
      if self._writer is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / 'events'))
      for name, value in scalars.items():
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
      self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    with contextlib.suppress(OSError):
      if self._writer is not None:
        self._writer.close()


class Progress:
  """The rows of a run, shown as they come in."""

  def __init__(self, workdir: str | os.PathLike, phases: tuple[str, ...]):
    self._path = pathlib.Path(workdir) / 'metrics.jsonl'
    self._phases = phases
    self._events = _Events(pathlib.Path(workdir) / 'tensorboard')
    self._shown_at = 0.0
    self._open_line = False

  def rewind(self, phase: str, step: int) -> None:
    """Forgets what was written after `step` of `phase`, before that stretch is run again."""
    at = (self._phases.index(phase), step)
    kept = [row for row in read_rows(self._path.parent) if (self._phases.index(row['phase']), row['step']) <= at]
    write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in kept))

  def row(self, row: dict[str, Any], *, global_step: int, last: bool) -> None:
    """Keeps a row and shows it; `last` says that it ends its phase."""
    with writing(self._path), self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')
    scalars = {f'{row["phase"]}/{name}': value for name, value in row.items() if isinstance(value, float)}
    scalars |= {f'bits/{name}': value for name, value in row.get('bits', {}).items()}
    self._events.write(scalars, global_step)
    self._show(_line(row), last)

  def _show(self, line: str, last: bool) -> None:
    if sys.stdout.isatty():
      print(f'\r\x1b[K{line}', end='\n' if last else '', flush=True)
      self._open_line = not last
    elif last or time.monotonic() - self._shown_at >= _LINE_SECONDS:
      print(line, flush=True)
      self._shown_at = time.monotonic()

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    print(f'\n{text}' if self._open_line else text, flush=True)
    self._open_line = False

  def close(self) -> None:
    """Closes the file of the TensorBoard events."""
    self._events.close()


class Silence:
  """In the place of `Progress` on the hosts that are not the primary."""

  def rewind(self, phase: str, step: int) -> None:
    pass

  def row(self, row: dict[str, Any], *, global_step: int, last: bool) -> None:
    pass

  def say(self, text: str) -> None:
    pass

  def close(self) -> None:
    pass


def _line(row: dict[str, Any]) -> str:
  parts = [
    f'{row["phase"]:<8} epoch {row["epoch"]:g}/{row["epochs"]:g}',
    f'step {row["step"]}/{row["steps"]}',
    f'loss {row["loss"]:.4f}',
    f'accuracy {row["accuracy"]:.1%}',
  ]
  if 'validation_accuracy' in row:
    parts.append(f'validation {row["validation_accuracy"]:.1%}')
  if 'cost' in row:
    for spent in row['budgets']:
      ratio = spent['cost'] / spent['target']
      parts.append(f'cost {spent["cost"]:.4g}/{spent["target"]:.4g} {spent["unit"]} ({ratio:.3f})')
  parts.append(f'{row["images_per_second"]:,.0f} images/s')
  return '  '.join([*parts, f'{duration(row["seconds_left"])} left'])
