"""A whole run of an autoencoder that reconstructs digits, a task that is no classification: from rows to an export."""

import json
import types

import numpy as np
import pytest
from tiny import SMALLEST, data_dir

from configs import tiny_autoencoder
from fracbits_jax.commands import export as export_command
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export import integer, packed
from fracbits_jax.layers import wrap
from fracbits_jax.models import autoencoder
from fracbits_jax.report import summary
from fracbits_jax.run import checks, events, experiment, finished, monitor, records, runner
from fracbits_jax.tasks import REGRESSION

CHANGES = {
  **SMALLEST,
  'model.name': 'autoencoder',
  'model.width': 1.0,
  'data.dataset': 'digits',
  'quant.stochastic': False,
  'quant.input_choices': None,
  'pretrain.epochs': 24.0,
  'pretrain.learning_rate': 0.02,
  'distill.weight': 0.5,
  'distill.phases': ('finetune',),
}


class Stop(Exception):
  pass


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that is cut off within its search and goes on: its folder, its configuration, its result."""
  folder = tmp_path_factory.mktemp('regression')
  config = tiny_autoencoder.get_config()
  config.update_from_flattened_dict({**CHANGES, 'data.data_dir': data_dir(), 'checkpoint_steps': 5})
  original = monitor.Monitor.report

  def cut(self, step, state, metrics):
    if (self._phase, step) == ('search', 18):
      raise Stop
    original(self, step, state, metrics)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(autoencoder, '_FEATURES', (16, 8, 16))  # fewer layers, of the same kinds
    with patch.context() as stopped:
      stopped.setattr(monitor.Monitor, 'report', cut)
      with pytest.raises(Stop):
        runner.run(config, folder / 'run', report=summary)
    result = runner.run(config, folder / 'run', report=summary)
    yield types.SimpleNamespace(folder=folder / 'run', config=config, result=result)


@pytest.fixture(scope='module')
def images(run):
  dataset = experiment.prepare(run.config).dataset
  found = [batch['image'][batch['mask'] > 0] for batch in eval_batches(dataset, 'test', batch_size=128)]
  return np.concatenate(found).astype(np.float32)


def test_the_result_is_what_the_network_that_was_left_reaches_on_the_test_split(run, images):
  left = finished.load(run.folder)
  network = wrap.with_fixed_bits(left.experiment.quant_model)
  outputs = np.asarray(network.apply(left.variables, images))
  mse = np.mean((outputs - images.reshape(len(images), -1) / 255) ** 2)
  assert run.result['test_mse'] == pytest.approx(mse, rel=1e-4)
  assert run.result['test_psnr'] == pytest.approx(-10 * np.log10(mse), abs=1e-3)
  assert json.loads((run.folder / 'result.json').read_text()) == run.result
  assert run.result['task'] == 'regression'
  assert not [name for name in run.result if 'accuracy' in name]
  assert run.result['cost'] <= run.result['target']


def test_every_network_beats_the_mean_image_and_training_lowers_the_error(run, images):
  of_mean = np.mean((images - images.mean(0)) ** 2) / 255**2
  assert max(run.result[f'{which}_mse'] for which in ('float', 'searched', 'test')) < 0.8 * of_mean
  rows = records.read_rows(run.folder, REGRESSION)
  assert [row['step'] for row in rows] == [*range(9, 217, 9), 9, 18, 27, 9, 18]
  assert rows[23]['validation_mse'] < rows[0]['validation_mse'] / 2
  assert [row['phase'] for row in rows if 'distill_loss' in row] == ['finetune'] * 2
  for row in rows:
    assert row['mse'] == row['loss']
    assert row['validation_psnr'] == pytest.approx(-10 * np.log10(row['validation_mse']))
  scalars = {(name, step): value for name, step, value in events.read(run.folder / 'tensorboard')}
  assert scalars['finetune/validation_psnr', 216 + 27 + 18] == pytest.approx(rows[-1]['validation_psnr'])


def test_the_best_state_is_that_of_the_least_error(run):
  by_step = {row['step']: row['validation_mse'] for row in records.read_rows(run.folder, REGRESSION)[-2:]}
  best = min(by_step, key=by_step.get)
  assert run.result['best'] == {'step': best, 'validation_mse': by_step[best]}


def test_page_and_summary_speak_of_the_error(run):
  mse, psnr = f'{run.result["test_mse"]:#.4g}', f'{run.result["test_psnr"]:.2f} dB'
  page = (run.folder / 'report.html').read_text()
  assert f'The test targets are met with a PSNR of {psnr} and an MSE of {mse}, ' in page
  for part in ('<h2>MSE</h2>', 'test PSNR</th>', REGRESSION.note):
    assert part in page
  assert 'ccuracy' not in page.partition('All settings')[0]
  assert {path.stem for path in (run.folder / 'plots').iterdir()} >= {'mse_over_time', 'bits_by_layer'}
  assert f'final     test MSE {mse}  PSNR {psnr}' in summary.summary(run.folder, run.result)


def test_its_packed_network_gives_its_reconstructions_in_integers(run, images):
  out = run.folder.parent / 'network.fracbits'
  assert export_command.main(['--workdir', str(run.folder), '--format', 'packed', '--out', str(out)]) == 0
  outputs, _ = integer.inference(packed.read(out).graph)(images)
  mse = np.mean((outputs - images.reshape(len(images), -1) / 255) ** 2)
  assert run.result['test_mse'] == pytest.approx(mse, rel=0.01)


def test_what_does_not_go_with_the_task_is_said(run):
  found = experiment.prepare(run.config)
  config = run.config.copy_and_resolve_references()
  config.distill.temperature = 2.0
  with pytest.raises(
    ValueError, match=r'temperature=2 softens logits, and the outputs of model.name=autoencoder are no'
  ):
    experiment.prepare(config)
  config.quant.scheme = 'original'
  said = checks.notes(config, found.float_model, found.dataset, None, found.task, found.layers)
  assert [note for note in said if 'quant.scheme=original gives the last kernel a scale of its own' in note]
  assert not any('quant.scheme' in note for note in found.notes)
