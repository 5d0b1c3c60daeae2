"""Several hosts: they start together, agree on what one of them knows, and end together.

Every host runs the same program on its share of each batch and holds the whole state. Host 0, the primary, alone reads
and writes the run's folder; `primary` tells the others what it found there, or what went wrong.
"""

import contextlib
import ctypes
import errno
import glob
import os
import pickle
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# The service that connects the hosts takes one for dead that has been silent for this long.
_HEARTBEAT_SECONDS = 30
_START_SECONDS = 300  # that the hosts wait for each other at the start

_connected = False
_handlers: list[Any] = []  # that C calls, so they have to stay as long as the process

_ERRORS = (ValueError, OSError, FloatingPointError)  # what is told in one sentence

_LOSS = re.compile('gloo|nccl|socket|connection|heartbeat|coordination|unavailable', re.IGNORECASE)
_LOST = 'error: another host was lost: the same command, given to every host, goes on from the last checkpoint\n'

_TPU_METADATA = 'http://169.254.169.254/computeMetadata/v1/instance/attributes/worker-network-endpoints'


def start(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> None:
  """Connects the hosts, if there are several; to be called before JAX does anything.

  Args:
    coordinator: `HOST:PORT` of host 0, the same on every host. If all three are `None`, TPU pods, SLURM and Open MPI
      are recognised.
    hosts: how many there are.
    host: which one this is, from 0.

  Raises:
    ValueError: one sentence: arguments that do not fit together, or hosts that did not come.
  """
  arguments: dict[str, Any] = {}
  if coordinator is None and hosts is None and host is None:
    if not _in_a_cluster():
      return
  else:
    coordinator, hosts, host = _checked(coordinator, hosts, host)
    if hosts == 1:
      return
    if host == 0:
      _check_port(coordinator)
    arguments = dict(coordinator_address=coordinator, num_processes=hosts, process_id=host)
    arguments['cluster_detection_method'] = 'deactivate'
  global _connected
  arguments |= dict(initialization_timeout=_START_SECONDS, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().split('\n')[0]
    raise ValueError(
      f'the hosts could not be connected ({reason}): start the same command on all of them within minutes, with '
      'the same --coordinator, an address and a free port of host 0, and the same --hosts, each with its own --host'
    ) from None
  _connected = True
  _end_in_words()


def _checked(coordinator: str | None, hosts: int | None, host: int | None) -> tuple[str, int, int]:
  if coordinator is None or hosts is None or host is None:
    raise ValueError('--coordinator, --hosts and --host belong together: give all three, or none of them')
  if not re.fullmatch(r'.+:[0-9]+', coordinator):
    raise ValueError(f'--coordinator={coordinator} is no address: give HOST:PORT of host 0')
  if not 0 < int(coordinator.rpartition(':')[2]) < 2**16:
    raise ValueError(f'--coordinator={coordinator} has no port: give HOST:PORT with one from 1 to {2**16 - 1}')
  if not 0 <= host < hosts:
    raise ValueError(f'--host={host} is none of {hosts} hosts: give a number from 0 to {hosts - 1}')
  return coordinator, hosts, host


def _check_port(coordinator: str) -> None:
  """Raises `ValueError` where the service of the hosts could not listen, which would end this process by a signal."""
  port = int(coordinator.rpartition(':')[2])
  for family, address in ((socket.AF_INET6, '::'), (socket.AF_INET, '')):
    try:
      with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen()
    except OSError as error:
      if error.errno in (errno.EADDRINUSE, errno.EACCES):
        raise ValueError(
          f'--coordinator={coordinator}: port {port} of this machine cannot be used ({error.strerror}): give all hosts '
          'another one'
        ) from None


def _in_a_cluster() -> bool:
  """Whether this process is one of several that something else has started."""
  count = lambda name: int(os.environ.get(name) or 1)
  if count('OMPI_COMM_WORLD_SIZE') > 1 and 'OMPI_MCA_orte_hnp_uri' not in os.environ:
    raise ValueError(
      'this version of Open MPI does not say where rank 0 is: give --coordinator=HOST:PORT with an address of that '
      'machine, --hosts=$OMPI_COMM_WORLD_SIZE and --host=$OMPI_COMM_WORLD_RANK'
    )
  # A script given to sbatch sees the tasks of its job as well, but only srun starts them, each in a step.
  in_a_step = 'SLURM_STEP_NODELIST' in os.environ and count('SLURM_STEP_NUM_TASKS') > 1
  return count('OMPI_COMM_WORLD_SIZE') > 1 or (in_a_step and count('SLURM_NTASKS') > 1) or _tpu_hosts() > 1


def _tpu_hosts() -> int:
  """The hosts of the TPU that this machine belongs to: GKE names them in the environment, Compute Engine on request."""
  slices = int(os.environ.get('MEGASCALE_NUM_SLICES') or 1)
  named = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES')
  if not named and glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*'):
    request = urllib.request.Request(_TPU_METADATA, headers={'Metadata-Flavor': 'Google'})
    try:
      with urllib.request.urlopen(request, timeout=2) as answer:
        named = answer.read().decode()
    except OSError:
      named = None  # not on Compute Engine, or no TPU there
  return slices * len((named or '').split(','))


def is_primary() -> bool:
  """Whether this is the host that reads and writes the run's folder, and prints."""
  return jax.process_index() == 0


def several() -> bool:
  """Whether there is more than one host."""
  return jax.process_count() > 1


def agree(value: Any) -> Any:
  """The primary's `value` on every host: anything that can be pickled, arrays to the last bit.

  All hosts have to call this and the functions below in the same order.
  """
  return _told_by(0, value) if several() else value


def everywhere(make: Callable[[], Any]) -> Any:
  """What `make()` gives, on each host its own; a user's mistake on one of them is raised on all.

  The primary goes first, since it may leave files that the others then find.
  """
  if not several():
    return make()
  made = None
  for turn in (is_primary(), not is_primary()):
    error = None
    try:
      made = make() if turn else made
    except _ERRORS as raised:
      error = raised
    failed = np.flatnonzero(gather(np.int32(error is not None).reshape(1)))
    if failed.size:
      raise _told_by(int(failed[0]), error)
  return made


def primary(make: Callable[[], Any]) -> Any:
  """What `make()` gives on the primary, on every host; a user's mistake there is raised on all."""
  return agree(everywhere(lambda: make() if is_primary() else None))


def gather(value: np.ndarray) -> np.ndarray:
  """The arrays of all hosts, of the same shape on each, as `[hosts, ...]`."""
  return np.asarray(multihost_utils.process_allgather(value)).reshape(jax.process_count(), *value.shape)


def gather_bytes(value: bytes) -> list[bytes]:
  """The bytes of all hosts, of any length."""
  sizes = gather(np.int32(len(value)).reshape(1))[:, 0]
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(value)] = np.frombuffer(value, np.uint8)
  return [row[:size].tobytes() for row, size in zip(gather(padded), sizes, strict=True)]


def _told_by(host: int, value: Any) -> Any:
  """The value of one host on all of them."""
  mine = jax.process_index() == host
  data = np.frombuffer(pickle.dumps(value), np.uint8) if mine else np.zeros(0, np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size), is_source=mine))
  padded = np.zeros(1 << size.bit_length(), np.uint8)  # few sizes, so few programs to compile
  padded[: data.size] = data
  return pickle.loads(multihost_utils.broadcast_one_to_all(padded, is_source=mine)[:size].tobytes())


def lost(error: BaseException) -> bool:
  """Whether an error of JAX means that another host is gone."""
  return several() and isinstance(error, jax.errors.JaxRuntimeError) and bool(_LOSS.search(str(error)))


def leave(text: str, status: int = 1) -> None:
  """Says why and ends this process at once; the usual end would wait for the others, who may be gone or waiting."""
  with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that is closed, or that nobody reads
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
  if _connected and is_primary():
    time.sleep(2)  # the others, who have an error of their own to tell, are connected to this process
  os._exit(status)


def leave_for_lost() -> None:
  """As `leave`, because another host is gone."""
  with contextlib.suppress(OSError):
    os.write(2, _LOST.encode())
  os._exit(1)


def _end_in_words() -> None:
  """Lets the last line be a sentence where JAX aborts the process, as it does when it misses another host."""

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def say(number: int) -> None:
    del number
    leave_for_lost()

  _handlers.append(say)
  # A handler of the module signal would run in the main thread, which is waiting for the host that is gone.
  ctypes.CDLL(None).signal(int(signal.SIGABRT), say)
