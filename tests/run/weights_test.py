"""Runs to start from, and one sentence for each mistake; `weights_file_test` has files."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from tiny import assert_same, refused
from tiny import tiny as tiny_run

from fracbits_jax.run import begin, checks, experiment, monitor, runner, weights
from fracbits_jax.run.checkpoint import Checkpoints


def tiny(**changes):
  epochs = {'pretrain.epochs': 6.0, 'search.epochs': 1.0, 'finetune.epochs': 0.0}
  return tiny_run(**{'phases': ('pretrain', 'search'), **epochs, **changes})


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')
  return folder, runner.run(tiny(), folder / 'run')


@pytest.fixture
def searched(finished, tmp_path):
  """The folder of a run that had no `pretrain`."""
  folder, _ = finished
  return shutil.copytree(folder / 'run', tmp_path / 'searched', ignore=shutil.ignore_patterns('pretrain'))


def last_state(workdir, phase):
  checkpoints = Checkpoints(workdir, phase, create=False)
  _, state, _ = checkpoints.restore()
  checkpoints.close()
  return {group: traverse_util.flatten_dict(state[group], sep='/') for group in ('params', 'batch_stats', 'bits')}


def first_variables(config, workdir, phase='search'):
  started = runner.Run(experiment.prepare(config), workdir).phase(phase, {})
  return {group: traverse_util.flatten_dict(tree, sep='/') for group, tree in started.start().items()}


def without_clips(params):
  return {name: value for name, value in params.items() if not name.endswith('/alpha')}


def test_a_search_starts_from_the_float_weights_of_a_run_bit_for_bit(finished, tmp_path):
  folder, _ = finished
  (tmp_path / 'new').mkdir()
  config = tiny(phases=('search',), init_from=str(folder / 'run'), seed=7)
  found, source = first_variables(config, tmp_path / 'new'), last_state(folder / 'run', 'pretrain')
  assert_same(without_clips(found['params']), source['params'])
  assert_same(found['batch_stats'], source['batch_stats'])
  clips = {float(value) for name, value in found['params'].items() if name.endswith('/alpha')}
  assert len(clips) == 3  # calibrated
  assert {float(value) for value in found['bits'].values()} == {3.5}


def test_pretrain_goes_on_from_the_weights(finished, searched, tmp_path):
  folder, _ = finished
  for source, phase in ((folder / 'run', 'pretrain'), (searched, 'search')):
    found = first_variables(tiny(init_from=str(source)), tmp_path, 'pretrain')
    assert_same(found['params'], without_clips(last_state(source, phase)['params']))
    assert not found['bits']


def test_a_quantized_network_hands_on_its_clips_but_not_its_bits(searched, tmp_path):
  config = tiny(phases=('search',), init_from=str(searched))
  found, source = first_variables(config, tmp_path), last_state(searched, 'search')
  assert_same(found['params'], source['params'])
  assert_same(found['batch_stats'], source['batch_stats'])
  assert {float(value) for value in found['bits'].values()} == {3.5}
  assert 3.5 not in [float(value) for value in source['bits'].values()]
  assert not experiment.prepare(config).initial.is_float


def test_clips_of_inputs_become_ranges_with_an_offset_of_0_and_the_reverse_is_refused(searched):
  as_range = begin._as_range
  np.testing.assert_array_equal(as_range(np.float32(3), (2,), own=1, has_offset=True), [3, 0])
  np.testing.assert_array_equal(as_range(np.float32([3, 1]), (2,), own=1, has_offset=True), [3, 1])
  np.testing.assert_array_equal(as_range(np.float32([3, 1]), (2, 2), own=1, has_offset=True), [[3, 0], [1, 0]])
  np.testing.assert_array_equal(as_range(np.float32(3), (2,), own=1), [3, 3])
  np.testing.assert_array_equal(as_range(np.float32([3, 1]), (2, 2), own=1), [[3, 3], [1, 1]])  # layers of a stack
  np.testing.assert_array_equal(as_range(np.float32([3, 1]), (2, 2), own=2), [[3, 1], [3, 1]])  # channels in groups
  config = tiny(phases=('search',), init_from=str(searched), **{'quant.scheme': 'lsq'})
  prepared = experiment.prepare(config)
  of_offsets = dataclasses.replace(prepared.initial, clips={'classifier/alpha': np.ones(2)})
  for changes in ({'quant.scheme': 'lsq'}, {'quant.scheme': 'original', 'quant.input_offset': False}):
    config = tiny(phases=('search',), init_from=str(searched), **changes)
    with pytest.raises(ValueError, match=r'has offsets of inputs, and quant\.scheme=\w+ with'):
      checks.check_ranges(config, of_offsets, prepared.layers)


def test_the_axis_of_a_stack_is_taken_for_no_range(searched):
  changes = {'quant.scheme': 'lsq', 'quant.kernel_ranges': 'layer'}
  config = tiny(phases=('search',), init_from=str(searched), **changes)
  prepared = experiment.prepare(config)
  rows = [
    dataclasses.replace(prepared.layers[1], name=f'loop/{i}', path='loop', input_path='loop', stack=(3,), index=(i,))
    for i in range(3)
  ]
  given = lambda **shapes: dataclasses.replace(
    prepared.initial, clips={f'loop/{name}': np.ones(shape) for name, shape in shapes.items()}
  )
  checks.check_ranges(config, given(alpha=3, kernel_alpha=3), rows)
  for shapes, said in (
    ({'alpha': (3, 2)}, 'has offsets of inputs'),
    ({'kernel_alpha': (3, 8)}, 'has a range for each output channel'),
    ({'kernel_alpha': (3, 4, 8)}, 'has ranges of other groups'),
  ):
    with pytest.raises(ValueError, match=said):
      checks.check_ranges(config, given(**shapes), rows)


def test_the_range_of_a_kernel_becomes_that_of_each_channel_and_the_reverse_is_refused(searched):
  changes = {'phases': ('search',), 'init_from': str(searched), 'quant.scheme': 'lsq'}
  prepared = experiment.prepare(tiny(**changes, **{'quant.kernel_ranges': 'channel'}))
  shapes = traverse_util.flatten_dict(begin.shapes(prepared, 'search')['params'], sep='/')
  clips = {name: np.float32(1 + i) for i, name in enumerate(shapes) if name.endswith('alpha')}
  given = dataclasses.replace(prepared, initial=dataclasses.replace(prepared.initial, clips=clips))
  found = begin.quantized_variables(given, begin.float_variables(given), begin.initial_bits(given))
  flat = traverse_util.flatten_dict(found['params'], sep='/')
  assert {flat[name].ndim for name in clips} == {0, 1}
  for name, clip in clips.items():
    assert flat[name].shape == shapes[name].shape
    np.testing.assert_array_equal(flat[name], clip)
  of_channels = dataclasses.replace(given.initial, clips={name: flat[name] for name in clips})
  checks.check_ranges(given.config, of_channels, given.layers)
  with pytest.raises(ValueError, match=r'has a range for each output channel, and quant\.kernel_ranges=layer leaves'):
    checks.check_ranges(tiny(**changes), of_channels, given.layers)


class Stop(Exception):
  pass


def test_a_run_that_has_begun_needs_its_source_no_more_and_tells_the_float_accuracy(finished, tmp_path, monkeypatch):
  folder, expected = finished
  source, workdir = shutil.copytree(folder / 'run', tmp_path / 'source'), tmp_path / 'new'
  config = tiny(phases=('search',), init_from=str(source))

  def cut(*_):
    raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(monitor.Monitor, 'report', cut)
    with pytest.raises(Stop):
      runner.run(config, workdir)
  shutil.rmtree(source)
  result = runner.run(config, workdir)
  assert result['phase'] == 'search'
  assert result['float_accuracy'] == expected['float_accuracy'] != result['test_accuracy']
  assert runner.run(config, workdir) == result


def test_what_is_no_source_is_refused(finished, tmp_path):
  folder, _ = finished
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'begun').mkdir()
  shutil.copy(folder / 'run' / 'config.json', tmp_path / 'begun')
  (tmp_path / 'odd').mkdir()
  (tmp_path / 'odd' / 'config.json').write_text('{"phases": ["search"], "model": {"name": "resnet8", "relu6": 6}}')
  (tmp_path / 'torn').mkdir()
  (tmp_path / 'torn' / 'config.json').write_text('{"phases": ["sea')
  (tmp_path / 'w.npz').touch()
  for name, expected in {
    'none': 'does not exist: give a run',
    'none.safetensors': 'does not exist: give a run',
    'w.npz': "is neither a run's folder nor a .safetensors file",
    'w.pth': 'is a pickle, .* safetensors.torch.save_file',
    'w.pt': 'is a pickle',
    'empty': 'has no config.json: give what was the --workdir',
    'begun': 'has no checkpoint yet',
    'odd': 'is broken: "relu6" is 6',
    'torn': 'config.json is broken',
  }.items():
    message = refused(tiny(init_from=str(tmp_path / name)), tmp_path / 'new')
    assert re.search(expected, message), message
    assert name in message


def test_a_run_of_another_network_is_refused(finished, tmp_path):
  folder, _ = finished
  refuse = lambda **changes: refused(tiny(init_from=str(folder / 'run'), **changes), tmp_path / 'new')
  message = refuse(**{'model.name': 'resnet20'})
  assert 'holds weights of smallest, but model.name is resnet20' in message
  message = refuse(**{'model.width': 0.25})
  assert 'params/stem/kernel is (3, 3, 1, 8) and needs (3, 3, 1, 16); ' in message
  assert message.endswith('; give weights of the same model.name and model.width')
  assert message.count(' and needs ') == 8


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
  folder, _ = finished
  source = shutil.copytree(folder / 'run', tmp_path / 'source')
  for path in (source / 'checkpoints' / 'pretrain').rglob('*'):
    if path.is_file() and 'state' in path.parts:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  message = refused(tiny(init_from=str(source)), tmp_path / 'new')
  assert re.search('checkpoint pretrain/54 in .* is damaged', message)


def test_names_that_only_look_like_pickles_are_none(finished, tmp_path):
  folder, _ = finished
  shutil.copytree(folder / 'run', tmp_path / 'run.pt')
  assert weights.find(str(tmp_path / 'run.pt')).phase == 'pretrain'
  for name in ('w.bin.safetensors', 'w.SAFETENSORS'):
    save_file({'a': np.zeros(1, np.float32)}, tmp_path / name)
    assert weights.find(str(tmp_path / name)).phase is None
