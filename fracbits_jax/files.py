"""Files that are there whole or not at all."""

import os
import pathlib


def write_whole(path: str | os.PathLike, text: str) -> None:
  """Writes a text file under another name first, so that an interruption leaves the old one or the new one."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  partial.replace(path)
