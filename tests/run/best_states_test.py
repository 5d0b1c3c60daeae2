import random

import numpy as np
import pytest

from fracbits_jax.run.best_states import FOLDER, BestStates, superseded
from fracbits_jax.run.checkpoint import Checkpoints, steps


@pytest.mark.parametrize('seed', range(20))
def test_every_checkpoint_that_is_kept_finds_its_best_state(seed):
  rng = random.Random(seed)
  best, kept, best_at = [], [], {}
  for step in range(1, 200):
    if rng.random() < 0.2:
      best.append(step)
    if rng.random() < 0.1:
      kept = [*kept, step][-2:]
      best_at[step] = max(best, default=None)
    if rng.random() < 0.05 and kept:  # killed, and started again from one of them
      start = rng.choice(kept)
      kept, best = [s for s in kept if s <= start], [b for b in best if b <= start]
      assert max(best, default=None) == best_at[start]
    best = [b for b in best if b not in superseded(best, kept)]
    assert len(best) <= 3
    for s in kept:
      assert max((b for b in best if b <= s), default=None) == best_at[s]


def states(folder, start):
  return BestStates(folder, 'finetune', start=start, say=print)


def found(folder, create=False):
  checkpoints = Checkpoints(folder, FOLDER, create=create)
  step, state, meta = checkpoints.restore()
  checkpoints.close()
  return step, float(state['w']), meta


def test_a_state_that_is_newer_than_where_the_phase_goes_on_is_dropped_and_one_made_again_replaces_the_old(tmp_path):
  best = states(tmp_path, start=0)
  for step in (3, 6, 9):
    best.save(step, {'w': np.float32(step)}, {'step': step})
  best.close()
  best = states(tmp_path, start=6)
  assert steps(tmp_path, FOLDER) == [3, 6]
  best.save(6, {'w': np.float32(60)}, {'step': 6, 'again': True})
  best.close()
  assert found(tmp_path) == (6, 60.0, {'step': 6, 'again': True})
  best = states(tmp_path, start=8)
  checkpoints = Checkpoints(tmp_path, 'finetune')
  for step in (4, 8):
    checkpoints.save(step, {'w': np.float32(0)}, {})
  checkpoints.close()
  best.save(9, {'w': np.float32(9)}, {})
  best.wait()
  best.tidy()
  assert steps(tmp_path, FOLDER) == [3, 6, 9]
  best.save(10, {'w': np.float32(10)}, {})
  best.wait()
  best.tidy()
  best.close()
  assert steps(tmp_path, FOLDER) == [3, 6, 10]
