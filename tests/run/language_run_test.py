"""A whole run of a decoder whose blocks are one loop, on a text in a file: from rows to exports."""

import contextlib
import copy
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from configs import text_gpt_bitops
from fracbits_jax.commands import export as export_command
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.data.datasets import phrases
from fracbits_jax.export import integer, packed
from fracbits_jax.layers import wrap
from fracbits_jax.report import summary
from fracbits_jax.run import begin, events, experiment, finished, monitor, records, runner, weights
from fracbits_jax.run.checkpoint import Checkpoints
from fracbits_jax.tasks import LANGUAGE

CHANGES = {
  'model.width': 0.125,
  'model.decoder.depth': 2,
  'model.decoder.head_dim': 8,
  'model.decoder.scan': True,
  'data.dataset': 'text',
  'data.context': 16,
  'data.batch_size': 32,
  'quant.calibration_batches': 2,
  'quant.recalibrate': True,
  'pretrain.epochs': 1.0,
  'pretrain.warmup_epochs': 0.0,
  'search.epochs': 0.5,
  'finetune.epochs': 0.4,
  'distill.weight': 0.5,
  'distill.phases': ('finetune',),
  'report_steps': 7,
  'eval_epochs': 0.4,
  'checkpoint_steps': 5,
}
PHASES = ('pretrain', 'search', 'finetune')


class Stop(Exception):
  pass


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that is cut off within its search and its finetuning and goes on: its folder, configuration, and result."""
  folder = tmp_path_factory.mktemp('language')
  (folder / 'text.txt').write_text(phrases.text(20_000))
  config = text_gpt_bitops.get_config()
  config.update_from_flattened_dict({**CHANGES, 'data.data_dir': str(folder / 'text.txt')})
  original, cuts = monitor.Monitor.report, [('search', 14), ('finetune', 7)]

  def cut(self, step, state, metrics):
    if cuts and (self._phase, step) == cuts[0]:
      cuts.pop(0)
      raise Stop
    original(self, step, state, metrics)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(monitor.Monitor, 'report', cut)
    for _ in range(2):
      with pytest.raises(Stop):
        runner.run(config, folder / 'run', report=summary)
    result = runner.run(config, folder / 'run', report=summary)
  assert not cuts
  return types.SimpleNamespace(folder=folder / 'run', config=config, result=result)


def left(workdir: pathlib.Path):
  """What a run computed, whatever time it took."""
  found = {}
  for phase in PHASES:
    with contextlib.closing(Checkpoints(workdir, phase, create=False)) as checkpoints:
      step, state, _ = checkpoints.restore()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found |= {(phase, step, jax.tree_util.keystr(path)): np.asarray(x).tobytes() for path, x in leaves}
  own = ('images_per_second', 'seconds_left', 'seconds', 'made_with')
  plain = lambda d: {name: value for name, value in d.items() if name not in own}
  found['rows'] = [plain(row) for row in records.read_rows(workdir, LANGUAGE)]
  return found | {name: plain(json.loads((workdir / name).read_text())) for name in ('policy.json', 'result.json')}


def test_a_run_that_was_cut_off_twice_ends_as_one_that_was_not_bit_for_bit(run):
  undisturbed = run.folder.parent / 'undisturbed'
  runner.run(run.config, undisturbed)
  one, other = left(run.folder), left(undisturbed)
  assert one.keys() == other.keys()
  assert [name for name in one if one[name] != other[name]] == []


def told(run):
  """The tokens of the test text that are to be told, the inputs before them, and which of them count."""
  dataset = experiment.prepare(run.config).dataset
  found = list(eval_batches(dataset, 'test', batch_size=32))
  tokens, mask = (np.concatenate([batch[name] for batch in found]) for name in ('tokens', 'mask'))
  return tokens[:, 1:], tokens[:, :-1], mask


def bits_per_character(logits, following, mask):
  of = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), following[..., None], axis=-1)[..., 0]
  return -np.sum(of * mask) / np.sum(mask) / np.log(2)


def test_the_result_is_what_the_network_that_was_left_tells_of_the_test_text(run):
  following, inputs, mask = told(run)
  assert mask.sum() == 999  # of a twentieth, all but its first
  finish = finished.load(run.folder)
  network = wrap.with_fixed_bits(finish.experiment.quant_model)
  bits = bits_per_character(jax.jit(network.apply)(finish.variables, inputs), following, mask)
  assert run.result['test_bits_per_character'] == pytest.approx(bits, rel=1e-4)
  assert run.result['test_perplexity'] == pytest.approx(2**bits, rel=1e-3)
  assert run.result['task'] == 'language'
  assert run.result['cost'] <= run.result['target']
  assert run.result['float_bits_per_character'] < np.log2(finish.experiment.dataset.num_classes)
  rows = records.read_rows(run.folder, LANGUAGE)
  best = min((row for row in rows if row['phase'] == 'finetune' and 'validation_bits_per_character' in row),
             key=lambda row: row['validation_bits_per_character'])  # fmt: skip
  assert run.result['best'] == {name: best[name] for name in ('step', 'validation_bits_per_character')}
  assert {'layers/0/query/kernel', 'layers/1/down/input', 'embed/kernel'} <= rows[-1]['bits'].keys()
  scalars = {name for name, _, _ in events.read(run.folder / 'tensorboard')}
  assert {'finetune/validation_bits_per_character', 'finetune/validation_perplexity'} <= scalars


def test_page_and_summary_speak_of_bits(run):
  bits = f'{run.result["test_bits_per_character"]:.4f}'
  page = (run.folder / 'report.html').read_text()
  assert f'The test text takes {bits} bits per character, a perplexity of ' in page
  for part in ('<h2>Bits per character</h2>', LANGUAGE.note):
    assert part in page
  assert 'ccuracy' not in page.partition('All settings')[0]
  assert {path.stem for path in (run.folder / 'plots').iterdir()} >= {'bits_per_character_over_time', 'bits_by_layer'}
  assert f'test bits per character {bits:>7}' in summary.summary(run.folder, run.result)


def test_another_run_starts_from_its_weights_and_then_from_those_that_it_keeps(run, tmp_path):
  config = copy.deepcopy(run.config)
  config.phases, config.init_from = ('search',), str(run.folder)
  with contextlib.closing(Checkpoints(run.folder, 'pretrain', create=False)) as checkpoints:
    _, state, _ = checkpoints.restore()
  for _ in range(2):
    prepared = experiment.prepare(config, tmp_path)
    found = begin.quantized_variables(prepared, begin.float_variables(prepared), begin.initial_bits(prepared))
    np.testing.assert_array_equal(found['params']['final_norm']['scale'], state['params']['final_norm']['scale'])
    np.testing.assert_array_equal(found['params']['embed']['kernel'], state['params']['embed']['kernel'])
    begin.state(found, begin.optimizer(prepared, 'search', lambda step: 0.1))
    weights.keep(tmp_path, prepared.initial)
    (tmp_path / 'config.json').write_text(config.to_json())


def test_its_packed_network_tells_as_well(run):
  out = run.folder.parent / 'network.fracbits'
  assert export_command.main(['--workdir', str(run.folder), '--format', 'packed', '--out', str(out)]) == 0
  following, inputs, mask = told(run)
  logits, _ = integer.inference(packed.read(out).graph)(inputs)
  assert bits_per_character(logits, following, mask) == pytest.approx(run.result['test_bits_per_character'], rel=0.01)


def test_its_program_takes_tokens(run):
  out = run.folder.parent / 'network.stablehlo'
  assert export_command.main(['--workdir', str(run.folder), '--format', 'stablehlo', '--out', str(out)]) == 0
  following, inputs, mask = told(run)
  logits = jax.export.deserialize(bytearray(out.read_bytes())).call(inputs)
  assert bits_per_character(logits, following, mask) == pytest.approx(run.result['test_bits_per_character'], rel=1e-4)


def test_what_does_not_go_with_texts_is_said(run):
  config = run.config.copy_and_resolve_references()
  for changes, said in (
    ({'model.name': 'resnet8'}, 'does not take these arguments'),
    ({'data.dataset': 'digits', 'data.data_dir': None}, 'the data are images, and the task language is for text'),
    ({'data.batch_size': 2000}, 'is more than the 1125 training windows of text'),
  ):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=said):
      experiment.prepare(other)
