"""Files: written whole or not at all, read whatever is in them."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator


def write_whole(path: str | os.PathLike, content: str | bytes | bytearray) -> None:
  """Writes a file under another name first, so that an interruption leaves the old one or the new one.

  Raises:
    OSError: one sentence, if it cannot be written.
  """
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  with writing(path):
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def check_name(path: str | os.PathLike, remedy: str) -> None:
  """Raises `ValueError` with one sentence where a path is not text, which some libraries cannot open.

  Args:
    path: of a file or a folder, there or not.
    remedy: how the sentence ends.
  """
  whole = str(pathlib.Path(path).absolute())
  if whole != readable(whole):
    raise ValueError(f'{readable(os.fspath(path))}: its path, {readable(whole)}, is not text in UTF-8: {remedy}')


def readable(text: str) -> str:
  """A text in which bytes of names that are no text are replaced, so that it can be written anywhere."""
  return re.sub('[\ud800-\udfff]', '\ufffd', text)


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


def read_text(path: str | os.PathLike, *, max_bytes: int, kind: str) -> str:
  """The text of a file that anybody may have written, without a byte order mark.

  Args:
    path: the file.
    max_bytes: the largest size that is read into memory.
    kind: what the file should be, such as `JSON`, for messages.

  Raises:
    ValueError: if the file cannot be read, is too large, or is not text in UTF-8.
  """
  try:
    with pathlib.Path(path).open('rb') as file:
      content = file.read(max_bytes + 1)
  except OSError as error:
    raise ValueError(f'the file cannot be read: {error.strerror}') from None
  if len(content) > max_bytes:
    raise ValueError(f'the file is larger than {max_bytes:,} bytes: give a {kind} file of at most this size')
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError:
    text = '\0'
  if '\0' in text:
    raise ValueError(f'the file is not text in UTF-8: give a {kind} file')
  return text


def shown(name: str | os.PathLike) -> str:
  """A name of a file for a sentence: what cannot be printed, as bytes that are no UTF-8 or a line's end, is escaped."""
  name = os.fspath(name)
  if name.isprintable():
    return name
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in name)


def reason(error: Exception) -> str:
  """What a library says of a broken file, short enough for a sentence: its hashes and positions help nobody."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return shown(text.split(' (')[0].split(';')[0][:120])
