"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


def write_whole(path: str | os.PathLike, text: str) -> None:
  """Writes a text file under another name first, so that an interruption leaves the old one or the new one.

  Raises:
    OSError: one sentence, if it cannot be written.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  with writing(path):
    partial.write_text(text)
    partial.replace(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Makes an error of the system one sentence that names the file and says how to go on."""
  try:
    yield
  except OSError as error:
    raise OSError(
      error.errno,
      f'{path} cannot be written ({error.strerror or error}): make room or mend it, and the same command goes on from '
      'the last checkpoint',
    ) from None
