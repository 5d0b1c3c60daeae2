"""What a program sees to before all else: standard streams that are there and outlast their readers, a home folder.

It imports nothing of the project, so that it can go first: the next file that is opened would take the place of a
stream that is closed, and some packages look for the home folder when they are imported.
"""

import errno
import io
import os
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
  from _typeshed import ReadableBuffer

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe without a reader, a terminal that is no more


def settle() -> None:
  """Opens what is closed, and lets output go on into nothing when nobody reads it any more; for programs to call."""
  _open_streams()
  sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
  _find_home()


def _open_streams() -> None:
  """Gives the numbers 0, 1 and 2 to nothing where they are closed, as `>&-` leaves them."""
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the least number that is free, this one


class _Lasting(io.FileIO):
  """A file that takes what is written to it even where that fails."""

  def write(self, data: 'ReadableBuffer', /) -> int:
    try:
      return super().write(data)
    except OSError as error:
      if error.errno in _GONE:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())
        os.close(nothing)
      return memoryview(data).nbytes


def _lasting(stream: TextIO | None) -> TextIO:
  """The same output, which raises no more; names of files that are not text are written as they are."""
  if stream is None:
    return open(os.devnull, 'w')
  if not isinstance(stream, io.TextIOWrapper):
    return stream  # somebody else's
  try:
    raw = _Lasting(stream.fileno(), 'w', closefd=False)
  except (OSError, ValueError):
    return stream
  utf8 = (stream.encoding or '').lower().replace('-', '') == 'utf8'
  return io.TextIOWrapper(
    raw if stream.write_through else io.BufferedWriter(raw),
    encoding=stream.encoding,
    errors='surrogateescape' if utf8 else 'backslashreplace',
    line_buffering=stream.line_buffering,
    write_through=stream.write_through,
  )


def home() -> pathlib.Path:
  """The home folder, or one of this user among the temporary ones where there is none that can be written to."""
  try:
    found = pathlib.Path.home()
    if found.is_dir() and os.access(found, os.W_OK | os.X_OK):
      return found
  except RuntimeError:  # a user without a name, as in a container
    pass
  user = os.getuid() if hasattr(os, 'getuid') else os.getpid()
  folder = pathlib.Path(tempfile.gettempdir()) / f'fracbits_jax-{user}'
  try:
    folder.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_symlink() and (not hasattr(os, 'getuid') or folder.stat().st_uid == user):
      return folder
  except OSError:
    pass
  return pathlib.Path(tempfile.mkdtemp(prefix='fracbits_jax-'))  # somebody else has made that one


def _find_home() -> None:
  """Names a folder that can be written to to those who look for the home folder, where it is none."""
  folder, given = home(), pathlib.Path(os.path.expanduser('~'))
  if folder == given:
    return
  if not given.is_dir():
    os.environ['HOME'] = str(folder)
  places = {'XDG_CACHE_HOME': '.cache', 'MPLCONFIGDIR': 'matplotlib', 'TFDS_DATA_DIR': 'tensorflow_datasets'}
  for variable, name in places.items():
    if not (given / name).is_dir() or variable == 'XDG_CACHE_HOME':  # data that can only be read are read
      os.environ.setdefault(variable, str(folder / name))
  text = f'no home folder can be written to: {folder} takes its place, for caches and data'
  print(text, file=sys.stderr)
