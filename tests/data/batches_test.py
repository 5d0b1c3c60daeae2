import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from images_test import encode, photo

from fracbits_jax.data import sets
from fracbits_jax.data.batches import eval_batches, train_batches
from fracbits_jax.run import evaluation
from fracbits_jax.train import preemption


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A folder of 40 images in two classes, 36 for training, with one for evaluation that is cut off."""
  root = tmp_path_factory.mktemp('pictures')
  for i in range(44):
    path = root / ('train' if i < 40 else 'test') / 'ab'[i % 2] / f'{i:02d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(photo(40 + i, 50, seed=i)).data[: -30 if i == 42 else None])
  return sets.load('folder', data_dir=str(root), image_size=16)


def take(batches, count):
  return [{**batch} for batch in itertools.islice(batches, count)]


def assert_equal(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_worker_processes_change_neither_batches_nor_positions(pictures):
  create = lambda workers: train_batches(pictures, batch_size=8, seed=4, workers=workers)
  thread = create(0)
  expected = take(thread, 5)  # four batches an epoch
  state = thread.get_state()
  expected += take(thread, 4)
  with contextlib.closing(create(2)) as batches:
    assert_equal(take(batches, 5), expected[:5])
    assert batches.get_state() == state
  with contextlib.closing(create(1)) as batches:
    batches.set_state(state)
    assert_equal(take(batches, 4), expected[5:])


def test_evaluation_is_the_same_with_workers(pictures):
  expected = list(eval_batches(pictures, 'validation', batch_size=3))
  assert_equal(list(eval_batches(pictures, 'validation', batch_size=3, workers=2)), expected)
  assert sum(batch['mask'].sum() for batch in expected) == 4


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_is_the_same_sentence_with_workers(workers, pictures):
  with pytest.raises(ValueError, match=r'test/a/42.jpg is cut off, its image data have no end: replace or remove it$'):
    list(eval_batches(pictures, 'test', batch_size=3, workers=workers))


def test_a_worker_that_died_is_explained(pictures):
  with contextlib.closing(train_batches(pictures, batch_size=8, seed=0, workers=1)) as batches:
    next(batches)
    for child in multiprocessing.active_children():
      child.kill()
    with pytest.raises(
      ChildProcessError, match=r'a worker process .* exit code -9.* give fewer data.workers'
    ) as caught:
      take(batches, 10)
  assert '\n' not in str(caught.value)


def test_the_shares_of_hosts_are_disjoint_and_together_the_whole_batch(pictures):
  whole = take(train_batches(pictures, batch_size=10, seed=2), 5)  # three batches an epoch, six images left over
  shares = [take(train_batches(pictures, batch_size=10, seed=2, shard=(i, 2)), 5) for i in range(2)]
  for batch, first, second in zip(whole, *shares, strict=True):
    for name in batch:
      assert len(first[name]) == 5
      np.testing.assert_array_equal(batch[name][0::2], first[name])
      np.testing.assert_array_equal(batch[name][1::2], second[name])
  assert len({image.tobytes() for image in whole[0]['image']}) == 10


def test_hosts_evaluate_each_image_once_in_the_same_number_of_batches(pictures):
  whole = list(eval_batches(pictures, 'train', batch_size=10))
  shares = [list(eval_batches(pictures, 'train', batch_size=10, shard=(i, 5))) for i in range(5)]
  assert {len(share) for share in shares} == {len(whole)} == {4}
  seen = lambda batches: sorted(i.tobytes() for b in batches for i in b['image'][b['mask'] == 1])
  assert seen(itertools.chain(*shares)) == seen(whole)
  assert len(seen(whole)) == 36


def stopped_workers():
  """Stops all worker processes, as a file system does that does not answer."""
  children = multiprocessing.active_children()
  for child in children:
    os.kill(child.pid, signal.SIGSTOP)
  return children


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_worker_that_is_stuck(pictures, monkeypatch):
  monkeypatch.setattr(preemption, '_PATIENCE_SECONDS', 0.3)
  expected = take(train_batches(pictures, batch_size=8, seed=1), 12)
  batches = train_batches(pictures, batch_size=8, seed=1, workers=1, wait=preemption.waiting)
  began = time.monotonic()
  with contextlib.closing(batches), preemption.watched():
    got = take(batches, 1)
    children = stopped_workers()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(preemption.Preempted, match='stopped by SIGTERM: the same command goes on') as caught:
      got.extend(batches)
  assert caught.value.stuck
  assert time.monotonic() - began < 20  # Grain alone would wait for each worker as long
  for child in children:
    child.join(5)
    assert not child.is_alive()
  assert batches.get_state() == {'next_index': len(got)}
  with contextlib.closing(train_batches(pictures, batch_size=8, seed=1)) as again:
    again.set_state(batches.get_state())
    assert_equal([*got, *take(again, 12 - len(got))], expected)


def test_an_evaluation_that_is_asked_to_stop_does_not_wait_either(pictures, monkeypatch):
  monkeypatch.setattr(preemption, '_PATIENCE_SECONDS', 0.3)
  batches = eval_batches(pictures, 'train', batch_size=3, workers=1)
  with preemption.watched():
    next(batches)
    stopped_workers()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(preemption.Preempted):
      list(evaluation._received(batches))


ORPHANS = """
import multiprocessing, os, sys
from fracbits_jax.data import sets
from fracbits_jax.data.batches import train_batches
if __name__ == '__main__':
  pictures = sets.load('folder', data_dir=sys.argv[1], image_size=16)
  batches = train_batches(pictures, batch_size=8, seed=0, workers=2)
  next(batches)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), 9)
"""


def is_running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
def test_workers_end_with_a_main_process_that_was_killed(tmp_path):
  for i in range(18):
    path = tmp_path / 'train' / 'ab'[i % 2] / f'{i}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(photo(20, 20)).data)
  (tmp_path / 'script.py').write_text(ORPHANS)
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, str(tmp_path / 'script.py'), str(tmp_path)]
  done = subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(root)}, stdout=subprocess.PIPE, check=False)
  workers = [int(pid) for pid in done.stdout.split()]
  assert len(workers) == 2
  until = time.monotonic() + 20
  while any(map(is_running, workers)) and time.monotonic() < until:
    time.sleep(0.05)
  assert not any(map(is_running, workers))
