import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax.run.checkpoint import Checkpoints, newest_step

STATE = {'params': {'w': np.arange(6, dtype=np.float32).reshape(2, 3)}, 'step': np.asarray(7, np.int32)}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, STATE))


def saved(folder, steps=(1,)):
  checkpoints = Checkpoints(folder, 'search')
  for step in steps:
    checkpoints.save(step, {**STATE, 'step': np.asarray(step, np.int32)}, {'seconds': step / 2})
  checkpoints.close()
  return Checkpoints(folder, 'search')


def test_the_newest_state_comes_back_as_it_was(tmp_path):
  checkpoints = saved(tmp_path, steps=(1, 5, 9))
  assert newest_step(tmp_path, 'search') == 9
  step, state, meta = checkpoints.restore(LIKE)
  assert step == 9
  np.testing.assert_array_equal(state['params']['w'], STATE['params']['w'])
  assert state['step'] == 9
  assert meta == {'seconds': 4.5}
  assert sorted(p.name for p in (tmp_path / 'checkpoints' / 'search').iterdir()) == ['5', '9']


def test_a_phase_without_checkpoints_has_no_step(tmp_path):
  assert newest_step(tmp_path, 'search') is None
  assert Checkpoints(tmp_path, 'search').restore() is None


def test_a_state_of_another_structure_is_refused_in_one_sentence(tmp_path):
  checkpoints = saved(tmp_path)
  with pytest.raises(ValueError, match=r'checkpoint .*search/1 is of another network') as caught:
    checkpoints.restore({**LIKE, 'params': {'v': LIKE['params']['w']}})
  assert '\n' not in str(caught.value)
