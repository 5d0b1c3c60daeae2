"""A whole run of the recipe for a denoising autoencoder, shortened: what it learns, what it leaves, what is refused."""

import numpy as np
import pytest
from tiny import data_dir, refused

from configs import digits_denoise
from fracbits_jax.commands import export as export_command
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export import integer, packed
from fracbits_jax.layers import wrap
from fracbits_jax.report import summary
from fracbits_jax.run import experiment, finished, runner
from fracbits_jax.tasks import REGRESSION

SHORT = {
  'model.width': 0.5,
  'pretrain.epochs': 16.0,
  'search.epochs': 4.0,
  'finetune.epochs': 4.0,
  'quant.calibration_batches': 2,
}


def shortened(**changes):
  config = digits_denoise.get_config()
  config.update_from_flattened_dict({'data.data_dir': data_dir(), **SHORT, **changes})
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('denoising') / 'run'
  return folder, runner.run(shortened(), folder, report=summary)


def test_it_takes_more_out_of_new_images_than_leaving_them_alone_does(run):
  folder, result = run
  left = finished.load(folder)
  network, squares = wrap.with_fixed_bits(left.experiment.quant_model), {'noise': [], 'network': []}
  for batch in eval_batches(left.experiment.dataset, 'test', batch_size=100):
    outputs = np.asarray(network.apply(left.variables, np.float32(batch['image'])))
    assert outputs.shape == batch['target'].shape == batch['image'].shape
    squares['noise'].append((np.float32(batch['image']) / 255 - batch['target']) ** 2)
    squares['network'].append((outputs - batch['target']) ** 2)
  errors = {name: np.mean(np.concatenate(values)) for name, values in squares.items()}
  assert result['test_mse'] == pytest.approx(errors['network'], rel=1e-3)
  assert errors['network'] < errors['noise'] / 2
  assert result['task'] == REGRESSION.name
  assert result['cost'] <= result['target']


def test_its_packed_network_gives_the_same_images_in_integers(run):
  folder, _ = run
  out = folder.parent / 'network.fracbits'
  assert export_command.main(['--workdir', str(folder), '--format', 'packed', '--out', str(out)]) == 0
  left = finished.load(folder)
  images = next(eval_batches(left.experiment.dataset, 'test', batch_size=64))['image'].astype(np.float32)
  outputs, _ = integer.inference(packed.read(out).graph)(images)
  expected = wrap.with_fixed_bits(left.experiment.quant_model).apply(left.variables, images)
  differences = np.abs(np.asarray(outputs) - np.asarray(expected)).reshape(64, -1).max(1)
  assert np.mean(differences < 1e-4) > 0.9  # but for a value within a rounding of two codes


def test_what_c_has_not_is_said_with_what_to_do_instead(run, capsys):
  folder, _ = run
  assert export_command.main(['--workdir', str(folder), '--format', 'c', '--out', str(folder.parent / 'c')]) == 2
  said = capsys.readouterr().err
  assert 'up is a transposed convolution: C has none; export with --format packed or stablehlo' in said


def test_what_litert_has_not_is_said_before_other_bits_are(run, capsys):
  folder, _ = run
  assert export_command.main(['--workdir', str(folder), '--format', 'litert', '--out', str(folder.parent / 'x')]) == 2
  assert (
    'up is a transposed convolution, which LiteRT files are not written for: export with --' in capsys.readouterr().err
  )


def test_bits_of_0_where_nothing_can_be_pruned_are_remarked_upon():
  prune = {'quant.granularity': 'kernel', 'quant.choices': tuple(range(9))}
  said = experiment.prepare(shortened(**prune)).notes
  assert [note for note in said if 'allows 0 bits, and model.name=denoiser has no channels that can be pruned' in note]
  others = experiment.prepare(shortened(**prune, **{'model.name': 'resnet8', 'data.noise': 0.0})).notes
  assert not [note for note in others if '0 bits' in note]


def test_what_cannot_be_denoised_is_refused(tmp_path):
  workdir = tmp_path / 'run'
  message = refused(shortened(**{'data.image_size': 10}), workdir)
  assert message.startswith('the denoiser is for images whose height and width are multiples of 4, and these have 10 x')
  message = refused(shortened(**{'model.name': 'resnet8'}), workdir)
  assert message == (
    'data.noise=0.3 is for networks that give images back without it, and the task of model.name=resnet8 is '
    'classification: leave it at 0, or take denoiser'
  )
  file = tmp_path / 'found.npz'
  np.savez(file, train_images=np.zeros((200, 8, 4, 1), np.uint8), train_targets=np.zeros((200, 3)))
  changes = {'data.noise': 0.0, 'data.dataset': 'arrays', 'data.data_dir': str(file), 'data.image_size': None}
  message = refused(shortened(**changes), workdir)
  assert message.startswith(
    'model.name=denoiser has 32 outputs an example, and the data have 3 values that they are to'
  )
