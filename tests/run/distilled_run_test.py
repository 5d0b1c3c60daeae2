"""A run that is distilled from its float network and ends with batch norm statistics computed anew."""

import itertools

import jax
import numpy as np
import pytest
from tiny import tiny

from fracbits_jax.data.batches import train_batches
from fracbits_jax.layers import wrap
from fracbits_jax.run import finished, monitor, progress, runner
from fracbits_jax.run.evaluation import Evaluator
from fracbits_jax.run.settings import PHASES
from fracbits_jax.train import placement
from fracbits_jax.train.step import AXIS

CHANGES = {
  'distill.weight': 0.5,
  'distill.temperature': 2.0,
  'distill.phases': ('finetune',),
  'finetune.reestimate_batches': 2,
  'pretrain.epochs': 1.0,
  'search.epochs': 1.0,
}


class Stop(Exception):
  pass


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('distilled')
  return folder, runner.run(tiny(**CHANGES), folder / 'run')


def test_only_the_phases_that_are_named_are_distilled(undisturbed):
  folder, _ = undisturbed
  rows = progress.read_rows(folder / 'run')
  assert [row['phase'] for row in rows if 'distill_loss' in row] == ['finetune'] * 2
  assert all(row['distill_loss'] > 0 for row in rows if 'distill_loss' in row)


def test_the_saved_statistics_are_the_means_over_the_first_batches_of_the_phase(undisturbed):
  folder, result = undisturbed
  left = finished.load(folder / 'run')
  config, dataset = left.experiment.config, left.experiment.dataset
  reader = train_batches(dataset, batch_size=config.data.batch_size, seed=config.seed + PHASES.index('finetune'))
  batches = [batch['image'].astype(np.float32) for batch in itertools.islice(reader, 2)]
  reader.close()
  model = wrap.with_fixed_bits(left.experiment.quant_model)
  nothing = jax.tree.map(np.zeros_like, left.variables['batch_stats'])

  @jax.jit
  def moved(images):
    apply = lambda part: model.apply(
      {**left.variables, 'batch_stats': nothing}, part, train=True, mutable=['batch_stats']
    )
    _, updated = jax.vmap(apply, axis_name=AXIS)(images.reshape(4, -1, *images.shape[1:]))
    return jax.tree.map(lambda x: x[0], updated['batch_stats'])

  expected = jax.tree.map(lambda x, y: 10 * (x + y) / 2, *map(moved, batches))
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-2)  # sums in another order cross a level
  jax.tree.map(close, left.variables['batch_stats'], expected)
  evaluate = Evaluator(model, dataset, config.data.batch_size)
  assert evaluate(placement.replicate(left.variables), 'test')['accuracy'] == result['test_accuracy']
  last = progress.read_rows(folder / 'run')[-1]
  assert evaluate(placement.replicate(left.variables), 'validation')['accuracy'] == last['validation_accuracy']


def test_a_run_that_is_cut_off_finds_its_teacher_and_its_statistics_again(undisturbed, monkeypatch):
  folder, expected = undisturbed
  original = monitor.Monitor.report

  def cut(self, step, state, metrics):
    if (self._phase, step) == ('finetune', 18):  # the statistics are there, but nothing of them is saved
      raise Stop
    original(self, step, state, metrics)

  config = tiny(**CHANGES, checkpoint_steps=5)
  with monkeypatch.context() as patch:
    patch.setattr(monitor.Monitor, 'report', cut)
    with pytest.raises(Stop):
      runner.run(config, folder / 'cut')
  result = runner.run(config, folder / 'cut')
  same = ('test_accuracy', 'float_accuracy', 'cost', 'best')
  assert {k: result[k] for k in same} == {k: expected[k] for k in same}
  mine, theirs = (finished.load(folder / name).variables for name in ('cut', 'run'))
  jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_the_teacher_may_be_the_network_that_the_run_starts_from(undisturbed):
  folder, expected = undisturbed
  changes = {**CHANGES, 'phases': ('search', 'finetune'), 'init_from': str(folder / 'run'), 'finetune.epochs': 1.0}
  result = runner.run(tiny(**changes), folder / 'from')
  assert result['float_accuracy'] == expected['float_accuracy']
  assert any('distill_loss' in row for row in progress.read_rows(folder / 'from'))
