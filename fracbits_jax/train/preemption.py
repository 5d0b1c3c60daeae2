"""Being asked to stop: a run saves at the next step and ends with a status of its own.

Schedulers send SIGTERM some time before they take a machine away; a person sends SIGINT with Ctrl-C. Of several hosts
any one may be asked: JAX's preemption service, which SIGTERM is then left to, finds a step that all of them stop at.
Input that does not come, of a worker that is stuck, is waited for only a few seconds then.
"""

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from types import FrameType

from jax.experimental import multihost_utils

from fracbits_jax.train import hosts

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on from here

_PATIENCE_SECONDS = 5.0  # for input that does not come, once the run is asked to stop
_AGAIN_SECONDS = 1.0

_asked: signal.Signals | None = None
_waiting = False  # for input
_checks = itertools.count()  # what several hosts count to find a common moment


class Preempted(Exception):
  """The run was asked to stop, and all it has is saved.

  Attributes:
    stuck: whether it was waiting for input that did not come, so that something of it may not end by itself.
  """

  def __init__(self, *args: object, stuck: bool = False):
    super().__init__(*args)
    self.stuck = stuck


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """While this context is open, the first SIGTERM or SIGINT only asks to stop, and a second one stops at once.

  For a program to open in its main thread.
  """
  global _asked
  _asked = None
  if hosts.several():
    handlers = {signal.SIGINT: _ask_all}
  else:
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), _ask)
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  if signal.SIGTERM in handlers and hasattr(signal, 'SIGALRM'):
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _lose_patience)
  try:
    yield
  finally:
    _be_patient()
    for number, handler in before.items():
      signal.signal(number, handler)
    _asked = None


def _ask(number: int, frame: FrameType | None) -> None:
  del frame
  global _asked
  _asked = signal.Signals(number)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if signal.getsignal(getattr(signal, 'SIGALRM', number)) is _lose_patience:
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS, _AGAIN_SECONDS)
  with contextlib.suppress(OSError):  # nobody may be there to read it
    # Not print: a signal may come in the middle of one.
    os.write(2, f'\n{_asked.name}: saves at the next step and stops; once more stops at once\n'.encode())


def _lose_patience(number: int, frame: FrameType | None) -> None:
  """Ends the wait for input of a run that was asked to stop some time ago."""
  del number, frame
  if _waiting:
    _be_patient()
    raise Preempted(_text(), stuck=True)


def _be_patient() -> None:
  """Asks for no more signals: what is left to do is to save."""
  if signal.getsignal(getattr(signal, 'SIGALRM', signal.SIGTERM)) is _lose_patience:
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
  """While this context is open in the main thread, a run that was asked to stop waits for a few seconds only.

  The wait then ends by `Preempted`, which may come at any place within it.
  """
  global _waiting
  _waiting = True
  try:
    yield
  finally:
    _waiting = False


def _ask_all(number: int, frame: FrameType | None) -> None:
  del frame
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGTERM)


def asked() -> bool:
  """Whether the run should stop now. Each of several hosts has to ask equally often."""
  global _asked
  if hosts.several() and multihost_utils.reached_preemption_sync_point(next(_checks)):
    _asked = signal.SIGTERM
  return _asked is not None


def check() -> None:
  """Raises `Preempted` if the run should stop now; for each of several hosts to call equally often."""
  if asked():
    _be_patient()
    raise Preempted(_text())


def _text() -> str:
  assert _asked is not None
  return f'stopped by {_asked.name}: the same command goes on from here'
