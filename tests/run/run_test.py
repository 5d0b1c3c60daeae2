"""Whole runs of a tiny network on digits, and what `main.py` says to bad input."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import tiny

from configs import mbv1_bitops
from fracbits_jax import cost, policy
from fracbits_jax.layers import wrap
from fracbits_jax.report import summary
from fracbits_jax.run import begin, checkpoint, events, experiment, monitor, progress, runner, workdir
from fracbits_jax.run import finished as finished_run
from fracbits_jax.train import placement

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return folder, runner.run(tiny(), folder / 'run', report=summary)


def test_a_run_leaves_a_policy_within_budget_and_a_result(finished):
  folder, result = finished
  workdir = folder / 'run'
  assert json.loads((workdir / 'result.json').read_text()) == result
  promised = (
    'phase test_accuracy float_accuracy metric target cost bitops_g size_mb epochs steps seconds reference made_with'
  )
  assert set(promised.split()) <= result.keys()
  assert 0.9 * result['target'] <= result['cost'] <= result['target']
  assert result['steps'] == 8 * 9
  assert result['made_with']['jax'] == jax.__version__
  table = experiment.prepare(tiny()).layers
  found = policy.load(workdir / 'policy.json', table)
  assert found.cost == result['cost']
  np.testing.assert_allclose(cost.bitops(found.bits(), table), result['bitops_g'], rtol=1e-9)
  assert (workdir / 'config.json').exists()
  assert list((workdir / 'tensorboard').iterdir())


def test_the_rows_tell_every_epoch_of_every_phase(finished):
  folder, _ = finished
  rows = progress.read_rows(folder / 'run')
  assert [(row['phase'], row['step']) for row in rows] == [
    *(('pretrain', s) for s in (9, 18, 27)),
    *(('search', s) for s in (9, 18, 27)),
    *(('finetune', s) for s in (9, 18)),
  ]
  assert [row['phase'] for row in rows if 'multiplier' in row] == ['search'] * 3
  searched = [row['bits'] for row in rows if row['phase'] == 'search']
  assert searched[0] != searched[-1]
  final = [row['bits'] for row in rows if row['phase'] == 'finetune']
  assert final[0] == final[-1]
  assert all(value == int(value) for value in final[0].values())


def test_the_report_holds_its_plots_and_the_summary_its_numbers(finished):
  folder, result = finished
  page = (folder / 'run' / 'report.html').read_text()
  names = ('bits_by_layer', 'cost_by_layer', 'bits_over_time', 'cost_over_time', 'accuracy_over_time')
  assert page.count('<svg') == page.count('</svg>') == 2 * len(names)  # each for a wide and for a narrow window
  for name in names:
    for kind in ('png', 'svg'):
      assert (folder / 'run' / 'plots' / f'{name}.{kind}').stat().st_size > 1000
  text = summary.summary(folder / 'run', result)
  for part in ('float', 'searched', 'final', 'classifier', f'{result["test_accuracy"]:.2%}'):
    assert part in text


def test_a_finished_run_prints_its_result_and_trains_nothing(finished, capsys):
  folder, result = finished
  before = {p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*') if p.is_file()}
  assert runner.run(tiny(), folder / 'run', report=summary) == result
  assert 'is finished' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in (folder / 'run').rglob('*') if p.is_file()}


def test_another_configuration_in_the_same_folder_is_refused(finished):
  folder, _ = finished
  with pytest.raises(ValueError, match=r'seed is 5 and was 0; choose another --workdir'):
    runner.run(tiny(seed=5), folder / 'run')


class Stop(Exception):
  pass


def test_what_an_attempt_leaves_that_is_not_gone_on_with_is_made_anew(finished, monkeypatch):
  folder, _ = finished
  workdir = folder / 'attempts'
  how = {'phases': ('finetune',), 'report_steps': 3, 'eval_epochs': 1 / 3}

  def attempt(rate, stop_at=None):
    original = monitor.Monitor.report

    def cut(self, step, state, metrics):
      original(self, step, state, metrics)
      self.best = {'step': step, 'validation_accuracy': self.best['validation_accuracy'] + 1} if stop_at else self.best
      if step == stop_at:
        raise Stop

    with monkeypatch.context() as patch:
      patch.setattr(monitor.Monitor, 'report', cut)
      return runner.run(tiny(**how, **{'finetune.learning_rate': rate}), workdir)

  with pytest.raises(Stop):
    attempt(0.3, stop_at=12)  # of whose states that of the third step is the best, with no checkpoint behind it
  assert checkpoint.steps(workdir, 'best')
  result = attempt(0.001)
  found = finished_run.load(workdir, best=True)
  expected = checkpoint.Checkpoints(workdir, 'best', create=False)
  assert expected.restore()[2] == result['best']
  expected.close()
  assert max(checkpoint.steps(workdir, 'best')) == result['best']['step']
  rows = progress.read_rows(workdir)
  assert [row['step'] for row in rows] == [3, 6, 9, 12, 15, 18]
  by_step = {row['step']: row['validation_accuracy'] for row in rows}
  assert result['best']['validation_accuracy'] == max(by_step.values()) == by_step[result['best']['step']]
  network = wrap.with_fixed_bits(found.experiment.quant_model)
  evaluate = begin.evaluator(network, found.experiment.dataset, 128)
  again = evaluate(placement.replicate(found.variables), 'validation')['accuracy']
  assert again == result['best']['validation_accuracy']
  scalars = [(name, step) for name, step, _ in events.read(workdir / 'tensorboard')]
  assert len(scalars) == len(set(scalars))
  assert {step for name, step in scalars if name == 'finetune/loss'} == {3, 6, 9, 12, 15, 18}
  (workdir / 'checkpoints' / 'best' / str(result['best']['step'])).rename(folder / 'elsewhere')
  with pytest.raises(
    ValueError, match=rf'has lost the checkpoints of best, the best state, that of step {result["best"]["step"]}'
  ):
    finished_run.load(workdir, best=True)


def test_a_given_policy_is_finetuned_without_a_search(finished):
  folder, searched = finished
  changes = {'phases': ('finetune',), 'policy': str(folder / 'run' / 'policy.json'), 'finetune.epochs': 1.0}
  result = runner.run(tiny(**changes), folder / 'given')
  assert result['cost'] == searched['cost']
  assert policy.load(folder / 'given' / 'policy.json') == policy.load(folder / 'run' / 'policy.json')


def test_a_finetuning_of_no_steps_leaves_a_network_which_is_read_where_its_policy_file_is_gone(finished):
  folder, _ = finished
  given = folder / 'given.json'
  given.write_text((folder / 'run' / 'policy.json').read_text())
  changes = {'phases': ('finetune',), 'policy': str(given), 'init_from': str(folder / 'run'), 'finetune.epochs': 0.0}
  for batches in (0, 2):
    runner.run(tiny(**changes, **{'finetune.reestimate_batches': batches}), folder / f'of_given{batches}')
  given.unlink()
  plain, found = (finished_run.load(folder / f'of_given{batches}').variables for batches in (0, 2))
  for same in ('params', 'bits'):
    jax.tree.map(np.testing.assert_array_equal, found[same], plain[same])
  moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), found['batch_stats'], plain['batch_stats'])
  assert max(jax.tree.leaves(moved)) > 0


def test_without_search_and_policy_the_bits_are_uniform(finished):
  folder, searched = finished
  result = runner.run(tiny(**{'phases': ('finetune',), 'finetune.epochs': 1 / 9}), folder / 'uniform')
  found = policy.load(folder / 'uniform' / 'policy.json')
  assert {getattr(e, which) for e in found.layers for which in e.learned} == {3}
  assert result['cost'] == result['target'] == searched['target']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model.name': 'vgg'}, "model 'vgg' is unknown"),
    ({'data.dataset': 'mnist3d'}, "dataset 'mnist3d' is unknown"),
    ({'phases': ('pretrain', 'sleep')}, 'sleep.*give some of pretrain, search, finetune'),
    ({'phases': ('search', 'pretrain')}, 'out of order'),
    ({'phases': ()}, 'holds nothing'),
    ({'budget.metric': 'flops'}, "metric 'flops' is unknown"),
    ({'budget.metric': 'lookup'}, 'a lookup budget needs budget.table: give one of bit_fusion'),
    ({'budget.table': 'bit_fusion'}, 'used by no budget: give budget.metric=lookup'),
    ({'budget.metric': 'lookup', 'budget.table': 'nowhere.csv'}, 'lookup table nowhere.csv: there is no such file'),
    ({'budget.also.size': 1e-6}, 'the size budget beside it, 1e-06 MB, cannot be met'),
    ({'optimizer.bits_name': 'lion'}, "optimizer.bits_name='lion' is unknown: give one of sgd, adam"),
    ({'optimizer.bits_name': 'adam', 'optimizer.bits_balance': 1.0}, 'optimizer.bits_name=adam takes every scale away'),
    ({'optimizer.dampening': 0.1}, 'optimizer.dampening=0.1 draws weights to the levels of learned ranges'),
    ({'quant.recalibrate': True, 'quant.calibration_batches': 0}, 'quant.recalibrate=True calibrates'),
    ({'quant.mixture': 'halves'}, "mixture='halves' is unknown: choose one of 'values', 'elements'"),
    ({'quant.mixture': 'elements', 'quant.stochastic': True}, 'stochastic=True draws bit-widths as wholes'),
    ({'budget.also.bitops': 1.0}, 'budget.also.bitops=1 stands beside budget.metric=bitops: leave it out'),
    ({'quant.choices': (0, 1, 2, 4)}, 'a pruned channel: set quant.granularity=kernel'),
    ({'quant.input_choices': (0, 2, 4)}, 'inputs of 0 bits'),
    (
      {'quant.choices': (0, 2, 4), 'quant.granularity': 'kernel', 'quant.stochastic': True},
      'stochastic=True cannot prune',
    ),
    ({'budget.target': 1e-9}, 'cannot be met .* at least'),
    ({'budget.target': 1e9}, 'already met .* below'),
    ({'data.batch_size': 130}, '130 does not divide over the 4 devices'),
    ({'data.batch_size': 0}, 'data.batch_size=0 is out of range: give a number of at least 1'),
    ({'data.accumulate': 0}, 'data.accumulate=0 is out of range: give a number of at least 1'),
    ({'data.accumulate': 3}, '128 does not divide over 4 devices x data.accumulate=3: give a multiple of 12'),
    ({'data.batch_size': 4096}, 'more than the 1197 training images'),
    ({'quant.choices': ()}, r'choices=\(\) are not bit-widths'),
    ({'quant.choices': (4, 2)}, r'choices=\(4, 2\) are not bit-widths'),
    ({'quant.granularity': 'channel'}, "granularity='channel' is unknown"),
    ({'search.epochs': -1.0}, 'search.epochs=-1.0 is out of range'),
    ({'search.cosine': (0.5, 0.2)}, 'search.cosine'),
    ({'search.cosine': (0.5,)}, 'search.cosine'),
    ({'search.epochs': float('inf')}, 'search.epochs=inf is out of range'),
    ({'quant.calibration_batches': -1}, 'quant.calibration_batches=-1 is out of range'),
    ({'model.dtype': 'float64'}, "model.dtype='float64' is unknown"),
    ({'model.width': -1.0}, 'model.width=-1.0 is out of range'),
    ({'data.image_size': 0}, 'data.image_size=0 is out of range'),
    ({'data.workers': -1}, 'data.workers=-1 is out of range'),
    ({'budget.discretization': 'nearest'}, "discretization='nearest' is unknown: give one of exact, offset"),
    ({'distill.weight': 1.5}, 'distill.weight=1.5 is out of range: give a number from 0 to 1'),
    ({'distill.temperature': 0.0}, 'distill.temperature=0.0 is out of range'),
    ({'distill.weight': 0.5, 'distill.phases': ('pretrain',)}, 'distill.phases=.* give some of search, finetune'),
    ({'distill.weight': 0.5, 'phases': ('search',)}, 'needs a float network to learn from: add pretrain'),
    ({'finetune.reestimate_batches': -1}, 'finetune.reestimate_batches=-1 is out of range'),
    ({'data.dataset': 'folder', 'data.data_dir': '/nowhere'}, 'the folder /nowhere does not exist'),
    ({'data.dataset': 'voc'}, "dataset 'voc' is not made of an image and a class label each"),
    ({'optimizer.momentum': 5.0}, 'optimizer.momentum=5.0 is out of range: give a number from 0 to 1'),
    ({'policy': 'nowhere.json', 'phases': ('finetune',)}, 'policy file nowhere.json: the file cannot be read'),
    ({'policy': 'nowhere.json'}, 'leave search out of phases'),
  ],
)
def test_bad_settings_are_one_sentence_before_anything_is_written(changes, message, tmp_path):
  config = tiny(**changes)
  with pytest.raises(ValueError, match=message) as caught:
    runner.run(config, tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


def test_a_policy_for_another_network_is_refused(finished, tmp_path):
  folder, _ = finished
  changes = {'model.width': 1.0, 'phases': ('finetune',), 'policy': str(folder / 'run' / 'policy.json')}
  with pytest.raises(ValueError, match='for another network'):
    runner.run(tiny(**changes), tmp_path / 'run')


def test_a_policy_over_the_budget_is_refused(finished, tmp_path):
  folder, _ = finished
  changes = {'budget.equivalent_bits': 2.5, 'phases': ('finetune',), 'policy': str(folder / 'run' / 'policy.json')}
  with pytest.raises(ValueError, match='over the budget'):
    runner.run(tiny(**changes), tmp_path / 'run')


def test_a_policy_that_was_edited_in_the_folder_is_checked_as_a_given_one(finished, tmp_path):
  folder, _ = finished
  config = tiny(**{'phases': ('finetune',), 'finetune.epochs': 1.0})
  path = tmp_path / 'run' / 'policy.json'
  path.parent.mkdir()
  original = (folder / 'run' / 'policy.json').read_text()
  for old, new, message in (
    (r'"kernel": [0-7],', '"kernel": 8,', r'run/policy.json costs .* GBitOPs, over the budget of .*: put the old one'),
    (r'"kernel": [0-7],', '"kernel": 16,', 'has kernel bits 16 outside the allowed'),
    (r'"name": "stem"', '"name": "root"', 'root is not in the network'),
  ):
    path.write_text(re.sub(old, new, original))
    with pytest.raises(ValueError, match=message) as caught:
      runner.run(config, tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with pytest.raises(FloatingPointError, match=r'the loss is (nan|inf) at step [0-9]+ of pretrain'):
    runner.run(tiny(**{'pretrain.learning_rate': 1e30}), tmp_path / 'run')


def test_the_paper_recipe_explains_where_its_data_is_missing(tmp_path):
  config = mbv1_bitops.get_config()
  config.data.data_dir = str(tmp_path)
  with pytest.raises(ValueError, match='imagenet2012 has not been prepared'):
    experiment.prepare(config)


def test_the_paper_recipe_runs_on_digits_by_the_override_that_it_names(tmp_path):
  config = mbv1_bitops.get_config()
  config.update_from_flattened_dict({'data.dataset': 'digits', 'model.width': 0.25, 'data.data_dir': str(tmp_path)})
  found = experiment.prepare(config)
  assert found.budget.target == pytest.approx(0.0327, rel=0.01)
  assert found.init_bits == pytest.approx(3.5)


@pytest.mark.parametrize(
  ('config_file', 'folder'),
  [
    ('configs/mbv1_bitops.py', 'runs/mbv1_bitops'),
    ('configs/mbv1_bitops.py:4', 'runs/mbv1_bitops-4'),
    ('/home/me/own.py:2.5', 'runs/own-2.5'),
    ('own.py:a/b', 'runs/own-a_b'),
  ],
)
def test_the_default_folder_of_a_run_tells_the_recipe_and_its_argument(config_file, folder):
  assert workdir.default(config_file) == pathlib.Path(folder)


def command(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, 'main.py', *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
  )


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.budgt.target=5', 'budgt'),
    ('--config.model.name=vgg', "error: model 'vgg' is unknown"),
    ('--config=configs/none.py', 'none.py'),
    (
      '--config=configs/mbv1_bitops.py:four',
      "error: the config does not load: equivalent bits 'four' are not a number",
    ),
    ('extra', 'error: unexpected arguments extra'),
  ],
)
def test_the_command_line_refuses_in_words_and_fails(argument, message, tmp_path):
  done = command(argument, f'--workdir={tmp_path / "run"}')
  assert done.returncode != 0
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_several_devices_are_there_for_these_tests():
  assert jax.local_device_count() == 4
