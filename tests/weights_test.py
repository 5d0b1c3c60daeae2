"""Weights to start from: torchvision's logits against a second implementation, and runs that follow runs."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from jax import lax
from safetensors.numpy import save_file

from configs import digits
from fracbits_jax import cost, data, experiment, models, monitor, run, torchvision, weights
from fracbits_jax.checkpoint import Checkpoints
from fracbits_jax.models import common

# What follows is written from torchvision's definitions: names, layouts [N, C, H, W] and [C_out, C_in, k, k], and
# normalised images. Its forward pass has been compared with PyTorch's own operations.
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_RESNETS = {'resnet18': (2, 2, 2, 2), 'resnet34': (3, 4, 6, 3), 'resnet50': (3, 4, 6, 3)}


def norm_shapes(name, channels):
  return {f'{name}.{leaf}': (channels,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}


def mobilenet_v2_shapes(classes):
  shapes = {'features.0.0.weight': (32, 3, 3, 3), **norm_shapes('features.0.1', 32)}
  channels, index = 32, 0
  for expansion, out, repeats, _ in _INVERTED:
    for _ in range(repeats):
      index += 1
      name, hidden, i = f'features.{index}.conv', channels * expansion, 0
      if expansion > 1:
        shapes |= {f'{name}.0.0.weight': (hidden, channels, 1, 1), **norm_shapes(f'{name}.0.1', hidden)}
        i = 1
      shapes |= {f'{name}.{i}.0.weight': (hidden, 1, 3, 3), **norm_shapes(f'{name}.{i}.1', hidden)}
      shapes |= {f'{name}.{i + 1}.weight': (out, hidden, 1, 1), **norm_shapes(f'{name}.{i + 2}', out)}
      channels = out
  shapes |= {'features.18.0.weight': (1280, 320, 1, 1), **norm_shapes('features.18.1', 1280)}
  return shapes | {'classifier.1.weight': (classes, 1280), 'classifier.1.bias': (classes,)}


def resnet_shapes(network, classes, base=64):
  shapes = {'conv1.weight': (base, 3, 7, 7), **norm_shapes('bn1', base)}
  channels, growth = base, 4 if network == 'resnet50' else 1
  for stage, blocks in enumerate(_RESNETS[network]):
    inner = base * 2**stage
    for block in range(blocks):
      name, out = f'layer{stage + 1}.{block}', inner * growth
      sizes = ((inner, channels, 1), (inner, inner, 3), (out, inner, 1))
      if growth == 1:
        sizes = ((inner, channels, 3), (inner, inner, 3))
      for i, (c_out, c_in, k) in enumerate(sizes, start=1):
        shapes |= {f'{name}.conv{i}.weight': (c_out, c_in, k, k), **norm_shapes(f'{name}.bn{i}', c_out)}
      if channels != out:
        shapes |= {f'{name}.downsample.0.weight': (out, channels, 1, 1), **norm_shapes(f'{name}.downsample.1', out)}
      channels = out
  return shapes | {'fc.weight': (classes, channels), 'fc.bias': (classes,)}


def random_weights(shapes, seed=0):
  """Weights whose logits are of the order of 1 to 10, depend on the image and, in a MobileNetV2, on the 6 of ReLU6."""
  rng = np.random.default_rng(seed)
  found = {}
  for name, shape in shapes.items():
    if name.endswith('running_var'):
      value = rng.uniform(1, 2, shape)
    elif len(shape) > 1:
      value = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    elif name.endswith('weight'):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = rng.normal(0, 1, shape)
    found[name] = value.astype(np.float32)
  return found


def reference_conv(w, name, x, stride=1, padding=0, groups=1):
  return lax.conv_general_dilated(
    x,
    w[f'{name}.weight'],
    (stride, stride),
    ((padding, padding),) * 2,
    dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
    feature_group_count=groups,
    precision='highest',
  )


def reference_norm(w, name, x):
  weight, bias, mean, var = (
    w[f'{name}.{leaf}'][None, :, None, None] for leaf in ('weight', 'bias', 'running_mean', 'running_var')
  )
  return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias


def reference_resnet(w, x, network):
  x = jax.nn.relu(reference_norm(w, 'bn1', reference_conv(w, 'conv1', x, 2, 3)))
  x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-jnp.inf)
  x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), 'VALID')
  for stage, blocks in enumerate(_RESNETS[network]):
    for block in range(blocks):
      name, stride = f'layer{stage + 1}.{block}', 2 if stage and not block else 1
      y = reference_norm(w, f'{name}.bn1', reference_conv(w, f'{name}.conv1', x, stride, 1))
      y = reference_norm(w, f'{name}.bn2', reference_conv(w, f'{name}.conv2', jax.nn.relu(y), 1, 1))
      if f'{name}.downsample.0.weight' in w:
        x = reference_norm(w, f'{name}.downsample.1', reference_conv(w, f'{name}.downsample.0', x, stride))
      x = jax.nn.relu(x + y)
  return jnp.mean(x, (2, 3)) @ w['fc.weight'].T + w['fc.bias'][None]


def reference_mobilenet_v2(w, x):
  def block(name, x, *args):
    return jnp.clip(reference_norm(w, f'{name}.1', reference_conv(w, f'{name}.0', x, *args)), 0, 6)

  x, index = block('features.0', x, 2, 1), 0
  for expansion, out, repeats, first_stride in _INVERTED:
    for i in range(repeats):
      index += 1
      name, y, at, stride = f'features.{index}.conv', x, 0, 1 if i else first_stride
      if expansion > 1:
        y, at = block(f'{name}.0', y), 1
      y = block(f'{name}.{at}', y, stride, 1, y.shape[1])
      y = reference_norm(w, f'{name}.{at + 2}', reference_conv(w, f'{name}.{at + 1}', y))
      x = x + y if stride == 1 and x.shape[1] == out else y
  x = jnp.mean(block('features.18', x), (2, 3))
  return x @ w['classifier.1.weight'].T + w['classifier.1.bias'][None]


def reference_logits(w, images, network):
  mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
  x = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
  run = reference_mobilenet_v2 if network == 'mobilenet_v2' else lambda w, x: reference_resnet(w, x, network)
  return jax.jit(run)(w, x)


@pytest.mark.parametrize(
  ('network', 'shapes'), [('resnet18', resnet_shapes('resnet18', 20)), ('mobilenet_v2', mobilenet_v2_shapes(20))]
)
def test_torchvision_weights_give_torchvision_logits(network, shapes, tmp_path):
  w, path = random_weights(shapes), tmp_path / 'w.safetensors'
  save_file({**w, 'bn1.num_batches_tracked': np.zeros((), np.int64)}, path)
  source = weights.find(str(path))
  model = models.create(network, num_classes=20, **weights.demands(source, network))
  found = weights.load(source, network, model, (64, 64, 3))
  assert found.is_float
  assert not found.clips
  images = np.random.default_rng(1).integers(256, size=(2, 64, 64, 3)).astype(np.float32)
  images[1] //= 4  # a dark one: what the padding is worth shows
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(model.apply)(found.variables, images)
    expected = reference_logits(w, images, network)
  deviation = float(np.std(expected))
  assert 1 < deviation < 20
  assert np.abs(expected[0] - expected[1]).max() > 0.05 * deviation
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * deviation)


@pytest.mark.parametrize('network', torchvision.NETWORKS)
def test_every_variable_has_torchvisions_name_and_shape(network):
  expected = mobilenet_v2_shapes(1000) if network == 'mobilenet_v2' else resnet_shapes(network, 1000)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  ours = jax.eval_shape(models.create(network).init, jax.random.key(0), images)
  ours = traverse_util.flatten_dict(ours, sep='/')
  names = torchvision.names(network, ours)
  assert {theirs: torchvision.their_shape(name, ours[name].shape) for name, theirs in names.items()} == expected


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_kernels_of_any_precision_are_turned_and_the_stem_takes_the_images_scale(dtype, tmp_path):
  path = tmp_path / 'w.safetensors'
  conv, dense = np.arange(24.0).reshape(2, 3, 2, 2).astype(dtype), np.arange(6.0).reshape(2, 3).astype(dtype)
  save_file({'a': conv, 'b': conv, 'c': dense, 'd': dense[0]}, path)
  names = {'params/stem/kernel': 'a', 'params/x/kernel': 'b', 'params/y/kernel': 'c', 'params/y/bias': 'd'}
  found = torchvision.read(path, names)
  assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
  assert found['params/x/kernel'].shape == (2, 2, 3, 2)
  for position in ((0, 0, 0, 0), (0, 1, 2, 1), (1, 0, 2, 0)):
    i, j, c, k = position
    value = 12 * k + 4 * c + 2 * i + j
    assert found['params/x/kernel'][position] == value
    np.testing.assert_allclose(found['params/stem/kernel'][position], value / 255 / (0.229, 0.224, 0.225)[c], rtol=1e-6)
  np.testing.assert_array_equal(found['params/y/kernel'], [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(found['params/y/bias'], [0, 1, 2])


@pytest.mark.parametrize('name', models.names())
def test_every_network_takes_the_mean_of_the_images(name):
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  plain, centred = (models.create(name, small_images=True, width=0.25, image_mean=m) for m in ((), (1.0, 2.0, 3.0)))
  assert cost.trace(centred, (32, 32, 3)) == cost.trace(plain, (32, 32, 3))
  with pytest.raises(ValueError, match='does not fit images of 3 channel'):
    jax.eval_shape(plain.clone(image_mean=(1.0,)).init, jax.random.key(0), images)
  values = np.random.default_rng(0).integers(256, size=images.shape).astype(np.float32)
  np.testing.assert_array_equal(common.centred(values, (1.0, 2.0, 3.0)), values - np.float32([1, 2, 3]))


def tiny(folder, **changes):
  config = digits.get_config()
  config.model.name = 'resnet8'
  config.model.width = 0.5
  config.data.data_dir = str(folder / 'tfds')
  config.data.image_size = 16
  config.data.batch_size = 128  # nine steps an epoch
  config.quant.calibration_batches = 2
  config.pretrain.epochs = 6.0
  config.search.epochs = 1.0
  config.finetune.epochs = 0.0
  config.phases = ('pretrain', 'search')
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')
  return folder, run.run(tiny(folder), folder / 'run')


@pytest.fixture
def searched(finished, tmp_path):
  """The folder of a run that had no `pretrain`."""
  folder, _ = finished
  return shutil.copytree(folder / 'run', tmp_path / 'searched', ignore=shutil.ignore_patterns('pretrain'))


def last_state(workdir, phase):
  checkpoints = Checkpoints(workdir, phase, create=False)
  state, _ = checkpoints.restore()
  checkpoints.close()
  return {group: traverse_util.flatten_dict(state[group], sep='/') for group in ('params', 'batch_stats', 'bits')}


def first_variables(config, workdir, phase='search'):
  started = run.Run(experiment.prepare(config), workdir)
  return {group: traverse_util.flatten_dict(tree, sep='/') for group, tree in started.start(phase, {}).items()}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def without_clips(params):
  return {name: value for name, value in params.items() if not name.endswith('/alpha')}


def test_a_search_starts_from_the_float_weights_of_a_run_bit_for_bit(finished, tmp_path):
  folder, _ = finished
  (tmp_path / 'new').mkdir()
  config = tiny(folder, phases=('search',), init_from=str(folder / 'run'), seed=7)
  found, source = first_variables(config, tmp_path / 'new'), last_state(folder / 'run', 'pretrain')
  assert_same(without_clips(found['params']), source['params'])
  assert_same(found['batch_stats'], source['batch_stats'])
  clips = {float(value) for name, value in found['params'].items() if name.endswith('/alpha')}
  assert len(clips) > 3  # calibrated
  assert {float(value) for value in found['bits'].values()} == {3.5}


def test_pretrain_goes_on_from_the_weights(finished, searched, tmp_path):
  folder, _ = finished
  for source, phase in ((folder / 'run', 'pretrain'), (searched, 'search')):
    found = first_variables(tiny(folder, init_from=str(source)), tmp_path, 'pretrain')
    assert_same(found['params'], without_clips(last_state(source, phase)['params']))
    assert not found['bits']


def test_a_quantized_network_hands_on_its_clips_but_not_its_bits(finished, searched, tmp_path):
  folder, _ = finished
  config = tiny(folder, phases=('search',), init_from=str(searched))
  found, source = first_variables(config, tmp_path), last_state(searched, 'search')
  assert_same(found['params'], source['params'])
  assert_same(found['batch_stats'], source['batch_stats'])
  assert {float(value) for value in found['bits'].values()} == {3.5}
  assert 3.5 not in [float(value) for value in source['bits'].values()]
  assert not experiment.prepare(config).initial.is_float


class Stop(Exception):
  pass


def test_a_run_that_has_begun_needs_its_source_no_more_and_tells_the_float_accuracy(finished, tmp_path, monkeypatch):
  folder, expected = finished
  source, workdir = shutil.copytree(folder / 'run', tmp_path / 'source'), tmp_path / 'new'
  config = tiny(folder, phases=('search',), init_from=str(source))

  def cut(*_):
    raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(monitor.Monitor, 'report', cut)
    with pytest.raises(Stop):
      run.run(config, workdir)
  shutil.rmtree(source)
  result = run.run(config, workdir)
  assert result['phase'] == 'search'
  assert result['float_accuracy'] == expected['float_accuracy'] != result['test_accuracy']
  assert run.run(config, workdir) == result


@pytest.fixture
def coloured(monkeypatch):
  """The digits with three colour channels."""
  monkeypatch.setitem(data.SPECS, 'digits', dataclasses.replace(data.SPECS['digits'], channels=3))


def narrow(folder, path, **changes):
  """A run of the resnet18 x 0.25 whose weights are in `path`."""
  changes = {'model.name': 'resnet18', 'model.width': 0.25, 'data.image_size': 32, 'init_from': str(path), **changes}
  return tiny(folder, **changes)


@pytest.fixture(scope='module')
def narrow_weights():
  return random_weights(resnet_shapes('resnet18', 10, base=16))


@pytest.mark.usefixtures('coloured')
def test_what_torchvision_demands_of_a_network_is_recorded_and_handed_on(finished, narrow_weights, tmp_path):
  folder, _ = finished
  path, workdir = tmp_path / 'w.safetensors', tmp_path / 'run'
  save_file(narrow_weights, path)
  mean = (123.675, 116.28, 103.53)
  changes = {'phases': ('pretrain',), 'pretrain.epochs': 0.0}
  result = run.run(narrow(folder, path, **changes), workdir)
  assert result['float_accuracy'] == result['test_accuracy']
  recorded = json.loads((workdir / 'config.json').read_text())['model']
  assert (recorded['image_mean'], recorded['relu6'], recorded['small_images']) == (list(mean), None, False)
  with pytest.raises(ValueError, match='has no checkpoint yet'):  # it has not trained
    experiment.prepare(narrow(folder, workdir))
  variables = weights.load(weights.find(str(path)), 'resnet18', models.create('resnet18', 10, width=0.25), (32, 32, 3))
  checkpoints = Checkpoints(workdir, 'pretrain')
  checkpoints.save(5, variables.variables, {})
  checkpoints.close()
  path.unlink()
  following = experiment.prepare(narrow(folder, workdir))
  assert following.float_model.image_mean == following.quant_model.image_mean == mean
  assert not following.float_model.small_images
  chosen = experiment.prepare(narrow(folder, workdir, **{'model.image_mean': ()}))
  assert chosen.float_model.image_mean == ()


def test_relu6_is_demanded_by_mobilenet_v2_and_taken_from_its_runs(tmp_path):
  path = tmp_path / 'w.safetensors'
  save_file({'a': np.zeros(1, np.float32)}, path)
  assert weights.demands(weights.find(str(path)), 'mobilenet_v2')['relu6'] is True
  model = {'name': 'mobilenet_v2', 'image_mean': [1, 2, 3], 'relu6': True, 'small_images': None}
  (tmp_path / 'config.json').write_text(json.dumps({'phases': ['search'], 'model': model}))
  source = weights.Source(given=str(tmp_path), path=tmp_path, phase='search')
  assert weights.demands(source, 'mobilenet_v2') == {'image_mean': (1, 2, 3), 'relu6': True}


def refused(config, workdir):
  """The sentence with which a run is refused, before anything is written."""
  with pytest.raises(ValueError) as caught:  # noqa: PT011
    run.run(config, workdir)
  assert '\n' not in str(caught.value)
  assert not workdir.exists()
  return str(caught.value)


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
    message = refused(tiny(folder, init_from=str(tmp_path / name)), tmp_path / 'new')
    assert re.search(expected, message), message
    assert name in message


def test_a_run_of_another_network_is_refused(finished, tmp_path):
  folder, _ = finished
  refuse = lambda **changes: refused(tiny(folder, init_from=str(folder / 'run'), **changes), tmp_path / 'new')
  message = refuse(**{'model.name': 'resnet20'})
  assert 'holds weights of resnet8, but model.name is resnet20' in message
  message = refuse(**{'model.width': 1.0})
  assert 'params/stem/kernel is (3, 3, 1, 8) and needs (3, 3, 1, 16); ' in message
  assert message.endswith('; give weights of the same model.name and model.width')
  assert message.count(' and needs ') == 8


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
  folder, _ = finished
  source = shutil.copytree(folder / 'run', tmp_path / 'source')
  for path in (source / 'checkpoints' / 'pretrain').rglob('*'):
    if path.is_file() and 'state' in path.parts:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  message = refused(tiny(folder, init_from=str(source)), tmp_path / 'new')
  assert re.search('checkpoint pretrain/54 in .* is damaged', message)


@pytest.mark.usefixtures('coloured')
def test_a_file_that_does_not_fit_is_refused_with_every_difference(finished, narrow_weights, tmp_path):
  folder, _ = finished
  path = tmp_path / 'w.safetensors'

  def refuse(**changes):
    return refused(narrow(folder, path, **changes), tmp_path / 'new')

  renamed = dict(narrow_weights)
  renamed['layer1.0.bn3.weight'] = renamed.pop('layer1.0.bn2.weight')
  renamed['extra'] = renamed.pop('bn1.running_var')
  save_file(renamed, path)
  message = refuse()
  assert 'only in the weights: extra, layer1.0.bn3.weight; ' in message
  assert (
    'batch_stats/stem_norm/var (bn1.running_var), params/stage1_block1_norm2/scale (layer1.0.bn2.weight)' in message
  )
  assert message.endswith('give weights of resnet18')

  save_file(narrow_weights, path)
  assert refuse(**{'model.name': 'resnet34'}).endswith('these are weights of resnet18, so set model.name to that')
  assert 'torchvision has no weights for model' in refuse(**{'model.name': 'resnet8'})
  message = refuse(**{'model.small_images': True})
  assert 'conv1.weight is (16, 3, 7, 7) and params/stem/kernel needs (16, 3, 3, 3); ' in message
  assert 'model.small_images' in message
  message = refuse(**{'model.width': 0.5})
  assert message.count(' needs ') == 8
  assert '; and 93 more; ' in message

  classes = {'fc.weight': np.zeros((1000, 128), np.float32), 'fc.bias': np.zeros(1000, np.float32)}
  save_file(narrow_weights | classes, path)
  message = refuse()
  assert 'fc.weight is (1000, 128) and params/classifier/kernel needs (10, 128)' in message
  assert 'fc.bias is (1000,) and params/classifier/bias needs (10,)' in message
  assert 'the classes are those of the data' in message
  assert message.count(' needs ') == 2


@pytest.mark.usefixtures('coloured')
def test_a_file_that_is_damaged_or_holds_no_real_weights_is_refused(finished, narrow_weights, tmp_path):
  folder, _ = finished
  path = tmp_path / 'w.safetensors'
  refuse = lambda: refused(narrow(folder, path), tmp_path / 'new')
  save_file(narrow_weights, path)
  whole = path.read_bytes()
  for part in (b'', whole[:100], whole[:-1], b'\xff' * 100, b'PK\x03\x04' + bytes(100)):
    path.write_bytes(part)
    assert 'cannot be read as .safetensors' in refuse()
  save_file(narrow_weights | {'fc.bias': np.full(10, np.nan, np.float32)}, path)
  assert 'holds values that are not finite, in fc.bias' in refuse()
  save_file(narrow_weights | {'fc.bias': np.full(10, 1e300)}, path)
  assert 'holds values that are not finite, in fc.bias' in refuse()
  save_file(narrow_weights | {'fc.bias': np.zeros(10, np.int8)}, path)
  assert 'holds weights of type I8' in refuse()


def test_images_of_one_colour_do_not_fit_the_stem(finished, narrow_weights, tmp_path):
  folder, _ = finished
  save_file(narrow_weights, tmp_path / 'w.safetensors')
  message = refused(narrow(folder, tmp_path / 'w.safetensors'), tmp_path / 'new')
  assert 'conv1.weight is (16, 3, 7, 7) and params/stem/kernel needs (16, 1, 7, 7)' in message
  assert "the stem depends on the images' colours" in message
