"""What a person sees: lines that are shown where there is somewhere to show them, however wide that is."""

import os
import sys

_USUAL_COLUMNS = 80


def show(text: str, end: str = '\n') -> None:
  """Prints; a reader that is gone is no reason to end, nor are characters that the output cannot have."""
  try:
    print(text, end=end, flush=True)
  except UnicodeEncodeError:
    encoding = getattr(sys.stdout, 'encoding', None) or 'ascii'
    show(text.encode(encoding, 'backslashreplace').decode(encoding), end)
  except (OSError, ValueError):  # a pipe that was closed, a terminal that is gone; an output that this program closed
    pass


def is_there() -> bool:
  """Whether the output is a terminal on which a line can be written again."""
  try:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get('TERM') != 'dumb'
  except ValueError:  # it is closed
    return False


def columns() -> int:
  """The width of the terminal, as it is now."""
  try:
    return os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL_COLUMNS
  except (OSError, ValueError, AttributeError):
    return _USUAL_COLUMNS
