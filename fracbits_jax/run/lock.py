"""The lock of a run's folder: one run at a time works there, and another one is told which process that is.

The file `run.lock` names the process that holds it, and is locked by the system (`flock`), which lets go of it when the
process ends, however it ends. Machines that share a folder need not share such locks, so the time of the file tells of
them: who holds the lock touches it every ten seconds, and one of another machine that was not touched for thirty is
taken over. Programs that only read a folder ask for no lock.
"""

import contextlib
import errno
import importlib
import io
import json
import os
import pathlib
import socket
import threading
import time
import types
import uuid
from collections.abc import Callable
from typing import Any

fcntl: types.ModuleType | None = None
with contextlib.suppress(ImportError):  # not on Windows
  fcntl = importlib.import_module('fcntl')

NAME = 'run.lock'
_TOUCH_SECONDS = 10.0
_DEAD_SECONDS = 30.0  # without a touch
_POLL_SECONDS = 0.5
_MAX_BYTES = 10_000
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system without them says


class Lock:
  """The lock of a run's folder, held until `close`.

  Args:
    workdir: the folder, which is made if need be.
    say: is told whose lock is taken over, and when it takes a while to find out whether it can be.

  Raises:
    ValueError: one sentence: another process works in the folder, or it cannot be written.
  """

  def __init__(self, workdir: str | os.PathLike, say: Callable[[str], None] = print):
    self._path = pathlib.Path(workdir) / NAME
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file, shared = _open(self._path)
      try:
        _wait_until_free(self._path, self._file, shared, say)
        self._mine = _write(self._file)
      except BaseException:
        self._file.close()
        raise
    except OSError as error:
      raise ValueError(f'{workdir} cannot be written: {error.strerror}; choose another --workdir') from None
    self._done = threading.Event()
    threading.Thread(target=self._touch, name=NAME, daemon=True).start()

  def _touch(self) -> None:
    while not self._done.wait(_TOUCH_SECONDS):
      with contextlib.suppress(OSError, ValueError):
        os.utime(self._path)

  def close(self) -> None:
    """Lets go of the lock."""
    self._done.set()
    with contextlib.suppress(OSError):
      if _read(self._path) == self._mine:  # nobody has taken it over
        self._path.unlink()
    self._file.close()


def _open(path: pathlib.Path) -> tuple[io.FileIO, bool]:
  """The file, locked by the system, and whether the system has such locks."""
  while True:
    file = path.open('ab', buffering=0)
    try:
      shared = _flock(file)
    except BlockingIOError:
      file.close()
      raise _in_use(path, _read(path)) from None
    with contextlib.suppress(OSError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file, shared
    file.close()  # who held it has removed it in between


def _flock(file: io.FileIO) -> bool:
  if fcntl is None:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError as error:
    if error.errno in _NO_LOCKS:
      return False
    raise
  return True


def _wait_until_free(path: pathlib.Path, file: io.FileIO, shared: bool, say: Callable[[str], None]) -> None:
  """Returns once nobody else works in the folder; raises `ValueError` if somebody does.

  Args:
    path: of the lock.
    file: it, locked by the system where that is possible.
    shared: whether it was.
    say: see `Lock`.
  """
  other = _read(path)
  if other is None:
    return
  here = other['machine'] == _machine()
  alive = (not shared and _is_alive(other)) if here else _is_touched(path, file, other, say)
  if alive:
    raise _in_use(path, other)
  say(f'takes over the lock of process {other["pid"]} on {other["host"]}, which is gone')


def _is_touched(path: pathlib.Path, file: io.FileIO, other: dict[str, Any], say: Callable[[str], None]) -> bool:
  """Whether a process of another machine touches its lock within the time after which it counts as dead."""
  before = os.fstat(file.fileno()).st_mtime_ns
  left = _DEAD_SECONDS - (_now(path) - before) / 1e9
  if left > 0:
    say(f'{path} is of process {other["pid"]} on {other["host"]}: looks for {left:.0f} s whether it is still there')
  until = time.monotonic() + left
  while time.monotonic() < until:
    time.sleep(_POLL_SECONDS)
    if os.fstat(file.fileno()).st_mtime_ns != before or _read(path) != other:
      return True
  return False


def _now(path: pathlib.Path) -> int:
  """The time in ns by the clock of the file system, which need not be that of this machine."""
  probe = path.with_name(f'{NAME}.{uuid.uuid4().hex}')
  try:
    probe.touch()
    return probe.stat().st_mtime_ns
  finally:
    probe.unlink(missing_ok=True)


def _is_alive(other: dict[str, Any]) -> bool:
  try:
    os.kill(other['pid'], 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass  # it is there, and of another user
  return _started(other['pid']) == other['started']


def _started(pid: int) -> str | None:
  """When a process of this machine started, so that it is told from a later one of the same number."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
  except (OSError, IndexError):
    return None


def _machine() -> str:
  """Tells machines apart, whatever they are called; those of containers on one machine share its locks."""
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return f'{socket.gethostname()} {uuid.getnode()}'


def _write(file: io.FileIO) -> dict[str, Any]:
  pid = os.getpid()
  mine = {'host': socket.gethostname(), 'pid': pid, 'started': _started(pid), 'machine': _machine()}
  mine['since'] = time.strftime('%Y-%m-%d %H:%M:%S')
  file.truncate(0)
  file.write(json.dumps(mine).encode())
  os.fsync(file.fileno())
  return mine


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Who holds the lock; `None` if the file says nothing."""
  try:
    with path.open('rb') as file:
      found = json.loads(file.read(_MAX_BYTES))
  except (OSError, ValueError, RecursionError):
    return None
  kinds: dict[str, Any] = {'host': str, 'pid': int, 'started': str | None, 'machine': str, 'since': str}
  whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
  return found if whole and 0 < found['pid'] < 2**31 else None


def _in_use(path: pathlib.Path, other: dict[str, Any] | None) -> ValueError:
  who = 'another process' if other is None else f'process {other["pid"]} on {other["host"]} since {other["since"]}'
  return ValueError(f'{path.parent} is in use by {who}: wait for it or stop it, or choose another --workdir')
