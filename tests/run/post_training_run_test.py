"""A search that keeps the weights and the float network's batch norm statistics, on the common loop."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax import traverse_util
from tiny import tiny

from fracbits_jax.run import begin, experiment, phase, runner
from fracbits_jax.run.checkpoint import Checkpoints

POST_TRAINING = {
  'model.frozen_norm': True,
  'quant.scheme': 'lsq',
  'distill.weight': 1.0,
  'budget.controlled': True,
  'optimizer.name': 'adamw',
  'search.weights_rate': 0.0,
  'finetune.weights_rate': 0.1,
  'search.reestimate_batches': 2,
  'finetune.reestimate_batches': 2,
  **{f'{phase}.epochs': 1.0 for phase in ('pretrain', 'search', 'finetune')},
  **{f'{phase}.warmup_epochs': 0.0 for phase in ('pretrain', 'search', 'finetune')},
}


def state(folder, phase):
  checkpoints = Checkpoints(folder, phase, create=False)
  _, found, _ = checkpoints.restore()
  checkpoints.close()
  return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(found, sep='/').items() if 'opt_state' not in k}


def test_the_search_keeps_the_weights_and_batch_norm_stays_near_the_float_network(tmp_path):
  result = runner.run(tiny(**POST_TRAINING), tmp_path)
  assert result['phase'] == 'finetune'
  trained, searched, tuned = (state(tmp_path, phase) for phase in ('pretrain', 'search', 'finetune'))
  weights = [name for name in trained if name.startswith('params/')]
  assert weights
  for name in weights:
    np.testing.assert_array_equal(searched[name], trained[name], err_msg=name)
  assert any(np.any(tuned[name] != trained[name]) for name in weights)
  ranges = [name for name in searched if name.endswith('alpha')]
  assert all(np.any(tuned[name] != searched[name]) for name in ranges)
  deviation = lambda name: np.sqrt(trained[name.replace('/mean', '/var')] + 1e-5)
  for name in trained:
    if name.startswith('batch_stats/') and name.endswith('/mean'):
      assert np.abs((searched[name] - trained[name]) / deviation(name)).max() < 1
      assert np.any(searched[name] != trained[name])


def refuse(**changes):
  with pytest.raises(ValueError, match=r'^[^\n]+$') as caught:
    experiment.prepare(tiny(**changes))
  return str(caught.value)


def test_a_float_network_that_is_not_there_cannot_be_kept():
  phases = {'phases': ('search', 'finetune')}
  assert 'add pretrain to phases, or give one by init_from' in refuse(**{'model.frozen_norm': True}, **phases)
  assert refuse(**{'pretrain.weights_rate': 0.0}).startswith('pretrain.weights_rate=0 keeps the weights')


def test_statistics_that_are_not_moved_need_no_float_network(tmp_path, monkeypatch):
  def refused(experiment):
    raise AssertionError('a float network is made')

  monkeypatch.setattr(begin, 'float_variables', refused)
  monkeypatch.setattr(begin, 'with_statistics', lambda experiment, name, state, kept=None: (state, kept))
  experiment_of = lambda **changes: experiment.prepare(tiny(**changes))
  computed = phase.Phase('finetune', experiment_of(phases=('search', 'finetune')), tmp_path, states={})
  assert computed._with_statistics('state') == ('state', None)
  trained = SimpleNamespace(variables='of the float network')
  kept = phase.Phase('finetune', experiment_of(**POST_TRAINING), tmp_path, states={'pretrain': trained})
  assert kept._with_statistics('state') == ('state', 'of the float network')
