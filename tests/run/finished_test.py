"""A whole run with every option at once, read back and compacted."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import left_over
import numpy as np
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from tiny import tiny

from benchmarks.shared.tiny import TINY
from fracbits_jax import cost
from fracbits_jax.commands import export
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export import integer, packed
from fracbits_jax.export.source import source_of_run
from fracbits_jax.policy import compact
from fracbits_jax.run import finished, progress, runner

README = (pathlib.Path(__file__).parents[2] / 'README.md').read_text()


@pytest.fixture(scope='module')
def pruned(tmp_path_factory):
  """Pruned, quantized with learned steps for each channel, two budgets."""
  folder = tmp_path_factory.mktemp('options')
  config = tiny(**TINY)  # with layers enough to meet two budgets
  config.phases = ('search', 'finetune')
  config.quant.granularity = 'kernel'
  config.quant.choices = tuple(range(9))
  config.quant.scheme = 'lsq'
  config.quant.kernel_ranges = 'channel'
  config.quant.input_offset = True
  config.quant.stochastic = False
  config.quant.mixture = 'elements'
  config.quant.recalibrate = True
  config.optimizer.hardening = 0.5
  config.optimizer.dampening = 1e-4
  config.quant.input_choices = (2, 3, 4)  # so that kernels have to give way: to 0.5 bits on average
  config.budget.equivalent_bits = 1.0
  config.budget.also.size = 0.0045
  config.search.epochs = 2.0
  config.finetune.epochs = 1.0
  return runner.run(config, folder / 'run'), folder / 'run'


def test_hardened_bits_are_integers_when_the_search_ends(pruned):
  _, folder = pruned
  row = [row for row in progress.read_rows(folder) if row['phase'] == 'search'][-1]
  inputs = [bits for name, bits in row['bits'].items() if name.endswith('input')]
  assert inputs
  assert inputs == np.round(inputs).tolist()


def test_every_option_at_once_holds_its_budgets(pruned):
  result, workdir = pruned
  left = finished.load(workdir)
  assert left.result == result
  budget, table = left.experiment.budget, left.experiment.layers
  assert [b.metric for b in budget.all] == ['bitops', 'size']
  # The finetuning is looked at once, at its end, which so is the best as well.
  assert result['best']['step'] == progress.read_rows(workdir)[-1]['step']
  jax.tree.map(np.testing.assert_array_equal, finished.load(workdir, best=True).variables, left.variables)
  bits = left.policy.bits()
  assert budget.holds(bits, table)
  assert budget.ratio(bits, table) > 0.99
  assert left.policy.pruned_channels > 0
  jax.tree.map(np.testing.assert_array_equal, left.variables['bits'], jax.tree.map(np.float32, bits))
  assert [b['metric'] for b in result['budgets']] == ['bitops', 'size']
  assert all(b['cost'] <= b['target'] for b in result['budgets'])
  rows = progress.read_rows(workdir)
  assert rows[-1]['ratio'] == pytest.approx(budget.ratio(bits, table))


def test_a_finished_run_compacts_to_a_network_with_the_same_answers(pruned):
  _, workdir = pruned
  left = finished.load(workdir)
  experiment = left.experiment
  model, shape = experiment.quant_model.clone(axis_name=None), experiment.dataset.image_shape
  smaller, fewer = compact.compact(model, left.variables, shape)
  bits = jax.tree.map(lambda x: np.asarray(x, np.float64), fewer['bits'])
  table = cost.trace(smaller, shape)
  assert sum(l.weights for l in table) < sum(l.weights for l in experiment.layers)
  np.testing.assert_allclose(cost.bitops(bits, table), left.result['bitops_g'], rtol=1e-9)
  np.testing.assert_allclose(cost.model_size(bits, table), left.result['size_mb'], rtol=1e-9)
  images = jnp.float32(next(eval_batches(experiment.dataset, 'validation', batch_size=64))['image'])
  expected = jax.jit(model.apply)(left.variables, images)
  np.testing.assert_allclose(
    jax.jit(smaller.apply)(fewer, images), expected, atol=1e-5 * float(jnp.abs(expected).max())
  )


def test_the_example_of_compaction_in_the_readme_runs_word_for_word(pruned, tmp_path, monkeypatch):
  (code,) = [block for block in re.findall(r'```python\n(.*?)```', README, re.S) if 'compact.compact(' in block]
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'digits_prune').symlink_to(pruned[1])
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(code, names)
  shapes = jax.eval_shape(names['model'].init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
  assert jax.tree.map(jnp.shape, names['variables']) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize(('lost', 'best'), [('best', True), ('finetune', False)])
@pytest.mark.parametrize('empty', [False, True])
def test_lost_checkpoints_are_named(pruned, tmp_path, lost, best, empty):
  shutil.copytree(pruned[1], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / lost)
  if empty:
    (tmp_path / 'run' / 'checkpoints' / lost).mkdir()
  with pytest.raises(ValueError, match=f'has lost the checkpoints of {lost}'):
    finished.load(tmp_path / 'run', best=best)


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match='holds no finished run'):
    finished.load(tmp_path)
  for text, message in (('{}', 'another version'), ('[]', 'another version'), ('{', 'is damaged')):
    for name in ('config.json', 'result.json'):
      (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
      finished.load(tmp_path)


def test_a_pruned_run_is_exported_without_its_pruned_channels(pruned, tmp_path, capsys):
  _, workdir = pruned
  left = finished.load(workdir)
  assert export.main(['--workdir', str(workdir), '--format', 'packed', '--out', str(tmp_path / 'net')]) == 0
  said = capsys.readouterr().out
  found = packed.read(tmp_path / 'net')
  assert found.size_mb == pytest.approx(left.policy.size_mb)
  assert f'{round(left.policy.size_mb * 1e6):,} of kernels and biases' in said
  images = next(eval_batches(left.experiment.dataset, 'test', batch_size=8))['image'].astype(np.float32)
  expected = jax.jit(left.experiment.quant_model.clone(axis_name=None).apply)(left.variables, images)
  outputs, _ = integer.inference(found.graph)(images)
  np.testing.assert_allclose(outputs, expected, atol=0.02 * np.abs(expected).max())
  np.testing.assert_array_equal(outputs.argmax(-1), expected.argmax(-1))


def test_a_pruned_run_in_the_other_formats(pruned, tmp_path, capsys):
  _, workdir = pruned
  left = finished.load(workdir)
  images = next(eval_batches(left.experiment.dataset, 'test', batch_size=8))['image'].astype(np.float32)
  expected = jax.jit(left.experiment.quant_model.clone(axis_name=None).apply)(left.variables, images)
  for kind in ('qonnx', 'stablehlo'):
    assert export.main(['--workdir', str(workdir), '--format', kind, '--out', str(tmp_path / kind)]) == 0
  program = jax.export.deserialize((tmp_path / 'stablehlo').read_bytes())
  np.testing.assert_allclose(program.call(images), expected, atol=0.02 * np.abs(expected).max())
  network = ModelWrapper(str(tmp_path / 'qonnx'))
  outputs = [execute_onnx(network, {'input': x[None].transpose(0, 3, 1, 2)})['output'] for x in images[:2]]
  np.testing.assert_allclose(np.concatenate(outputs), expected[:2], atol=0.02 * np.abs(expected).max())
  capsys.readouterr()
  for kind, remedy in (('onnx', 'choices=(2, 4, 8)'), ('litert', "input_choices='(8,)'"), ('qwix', "choices='(8,)'")):
    assert export.main(['--workdir', str(workdir), '--format', kind, '--out', str(tmp_path / kind)]) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert said.count('\n') == 1


def test_a_run_has_examples_of_what_it_was_trained_on(pruned):
  examples = source_of_run(pruned[1]).training()
  assert examples.shape == (512, 16, 16, 1)
  assert examples.dtype == np.uint8
  assert np.ptp(examples) > 200


def test_a_run_without_integer_bits_is_not_exported(tmp_path, capsys):
  left_over.leave(tmp_path / 'run', phases=('pretrain', 'search'))
  for kind in export.FORMATS:
    assert export.main(['--workdir', str(tmp_path / 'run'), '--format', kind]) == 2
    said = capsys.readouterr().err
    assert 'ended with search, so its bit-widths are not integers' in said
    assert said.count('\n') == 1
