import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from fracbits_jax.run import lock

ROOT = pathlib.Path(__file__).parents[2]
HOLD = (
  'import sys, time\n'
  'from fracbits_jax.run.lock import Lock\n'
  'lock = Lock(sys.argv[1])\n'
  'print("holds", flush=True)\n'
  'time.sleep(60)\n'
)


@contextlib.contextmanager
def holder(folder):
  """Another process that holds the lock."""
  command = [sys.executable, '-c', HOLD, str(folder)]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout.readline() == 'holds\n'
      yield process
    finally:
      process.kill()


def hold(folder, said=None):
  lock.Lock(folder, said.append if said is not None else print).close()


def written(folder, **changes):
  """The lock of a process that is not there any more."""
  mine = {'host': 'node7', 'pid': 2**22 - 1, 'started': '1', 'machine': 'another', 'since': '2026-01-02 03:04:05'}
  (folder / lock.NAME).write_text(json.dumps({**mine, **changes}))


def test_another_process_is_named_and_that_of_a_killed_one_is_taken_over(tmp_path):
  said = []
  with holder(tmp_path) as other:
    with pytest.raises(ValueError, match=rf'is in use by process {other.pid} on .* since 20.*choose another --workdir'):
      hold(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
  hold(tmp_path, said)
  assert said == [f'takes over the lock of process {other.pid} on {os.uname().nodename}, which is gone']
  assert list(tmp_path.iterdir()) == []


def test_of_many_that_want_it_at_once_one_holds_it(tmp_path):
  inside, most, refused = [], [], []

  def work():
    for _ in range(20):
      try:
        with contextlib.closing(lock.Lock(tmp_path)):
          inside.append(1)
          most.append(len(inside))
          inside.pop()
      except ValueError as error:
        refused.append(str(error))

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert set(most) == {1}
  assert len(most) + len(refused) == 80
  assert all('is in use by' in text for text in refused)


def without_system_locks(monkeypatch):
  def refuse(file, how):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)


def test_without_locks_of_the_system_a_living_process_of_this_machine_is_found(tmp_path, monkeypatch):
  without_system_locks(monkeypatch)
  with holder(tmp_path) as other, pytest.raises(ValueError, match=f'in use by process {other.pid}'):
    hold(tmp_path)
  said = []
  hold(tmp_path, said)
  assert 'which is gone' in said[0]
  written(tmp_path, machine=lock._machine(), pid=os.getpid(), started='1')  # the number is that of another now
  hold(tmp_path)


def test_the_lock_of_another_machine_is_kept_while_it_is_touched_and_taken_over_when_it_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_DEAD_SECONDS', 0.3)
  monkeypatch.setattr(lock, '_POLL_SECONDS', 0.02)
  said = []
  written(tmp_path)
  hold(tmp_path, said)
  assert [text.split(': ')[-1] for text in said] == [
    'looks for 0 s whether it is still there',
    'takes over the lock of process 4194303 on node7, which is gone',
  ]
  written(tmp_path)
  done = threading.Event()

  def touch():
    while not done.wait(0.05):
      os.utime(tmp_path / lock.NAME)

  thread = threading.Thread(target=touch)
  thread.start()
  with pytest.raises(ValueError, match=r'in use by process 4194303 on node7 since 2026-01-02 03:04:05'):
    hold(tmp_path)
  done.set()
  thread.join()
  old = os.stat(tmp_path / lock.NAME).st_mtime - 60  # it need not be looked at for long
  os.utime(tmp_path / lock.NAME, (old, old))
  said.clear()
  hold(tmp_path, said)
  assert len(said) == 1


def test_who_holds_it_touches_it(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_TOUCH_SECONDS', 0.02)
  touched = threading.Event()
  monkeypatch.setattr(lock.os, 'utime', lambda path: touched.set())
  with contextlib.closing(lock.Lock(tmp_path)):
    assert touched.wait(10)


@pytest.mark.parametrize('content', ['', '{', '5', '[' * 50_000, '{"pid": 1}', '{"pid": -1, "host": 3}'])
def test_a_file_that_says_nothing_is_no_lock(content, tmp_path):
  (tmp_path / lock.NAME).write_text(content)
  hold(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removes_while_it_is_opened_is_made_anew(tmp_path, monkeypatch):
  original, opened = lock._flock, []

  def flock(file):
    if not opened:
      (tmp_path / lock.NAME).unlink()
    opened.append(file)
    return original(file)

  monkeypatch.setattr(lock, '_flock', flock)
  with contextlib.closing(lock.Lock(tmp_path)):
    assert len(opened) == 2
    with pytest.raises(ValueError, match=f'in use by process {os.getpid()}'):
      hold(tmp_path)
