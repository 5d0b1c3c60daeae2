"""How far a command is: a bar that moves in a terminal, elsewhere a line now and then."""

import shutil
import sys
import time

_WIDTH = 24  # characters of the bar itself
_LINE_SECONDS = 10  # between two lines where the output is not a terminal
_DRAWN_SECONDS = 0.1  # between two drawings in a terminal


class Bar:
  """Called with how many are done, of how many; the output that it goes to is standard output.

  Args:
    unit: what is counted, in the plural.
  """

  def __init__(self, unit: str):
    self._unit = unit
    self._start = self._shown_at = time.monotonic()

  def __call__(self, done: int, total: int) -> None:
    now, last, terminal = time.monotonic(), done == total, sys.stdout.isatty()
    waits = _DRAWN_SECONDS if terminal else _LINE_SECONDS
    if now - self._shown_at < waits and not (last and terminal):
      return
    self._shown_at = now
    rate = done / max(now - self._start, 1e-9)
    minutes, seconds = divmod(round((total - done) / max(rate, 1e-9)), 60)
    line = f'{done:,}/{total:,} {self._unit}  {rate:,.0f} {self._unit}/s  {minutes}:{seconds:02} left'
    if not terminal:
      print(line, flush=True)
      return
    full = _WIDTH * done // max(total, 1)
    line = f'[{"#" * full}{"." * (_WIDTH - full)}] {line}'[: shutil.get_terminal_size().columns - 1]
    print(f'\r\x1b[K{line}', end='\n' if last else '', flush=True)
