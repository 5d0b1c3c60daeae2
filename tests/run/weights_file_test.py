"""Files of weights to start from, by torchvision's names, and one sentence for each mistake."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from tiny import assert_same, refused, tiny

from fracbits_jax import models
from fracbits_jax.data.dataset import SPECS
from fracbits_jax.run import experiment, runner, torchvision, weights


@pytest.fixture
def coloured(monkeypatch):
  """The digits with three colour channels."""
  monkeypatch.setitem(SPECS, 'digits', dataclasses.replace(SPECS['digits'], channels=3))


def narrow(path, **changes):
  """A run of resnet18 x 0.25 whose weights are in `path`."""
  changes = {'model.name': 'resnet18', 'model.width': 0.25, 'data.image_size': 32, 'init_from': str(path), **changes}
  return tiny(**changes)


@pytest.fixture(scope='module')
def narrow_weights():
  """Random ones for resnet18 x 0.25 and ten classes, by torchvision's names."""
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  ours = jax.eval_shape(models.create('resnet18', 10, width=0.25).init, jax.random.key(0), images)
  ours = traverse_util.flatten_dict(ours, sep='/')
  shapes = {
    theirs: torchvision.their_shape(name, ours[name].shape)
    for name, theirs in torchvision.names('resnet18', ours).items()
  }
  rng = np.random.default_rng(0)
  return {theirs: rng.uniform(0.01, 0.1, shape).astype(np.float32) for theirs, shape in shapes.items()}


def load_file(path, network='resnet18', **changes):
  """The weights in a file for resnet18 x 0.25, or the sentence with which they are refused."""
  model = models.create(network, 10, width=0.25, **changes)
  try:
    return weights.load(weights.find(str(path)), network, model, (32, 32, 3))
  except ValueError as error:
    message = str(error)
  assert '\n' not in message
  assert len(message) < 2500
  return message


@pytest.mark.usefixtures('coloured')
def test_what_torchvision_demands_of_a_network_is_recorded_and_handed_on(narrow_weights, tmp_path):
  path, workdir = tmp_path / 'w.safetensors', tmp_path / 'run'
  save_file(narrow_weights, path)
  mean = (123.675, 116.28, 103.53)
  changes = {'phases': ('pretrain',), 'pretrain.epochs': 0.0}
  result = runner.run(narrow(path, **changes), workdir)
  assert result['float_accuracy'] == result['test_accuracy']
  recorded = json.loads((workdir / 'config.json').read_text())['model']
  assert (recorded['image_mean'], recorded['relu6'], recorded['small_images']) == (list(mean), None, False)
  path.unlink()
  following = experiment.prepare(narrow(workdir))
  assert following.float_model.image_mean == following.quant_model.image_mean == mean
  assert not following.float_model.small_images
  chosen = experiment.prepare(narrow(workdir, **{'model.image_mean': ()}))
  assert chosen.float_model.image_mean == ()


def test_relu6_is_demanded_by_mobilenet_v2_and_taken_from_its_runs(tmp_path):
  path = tmp_path / 'w.safetensors'
  save_file({'a': np.zeros(1, np.float32)}, path)
  assert weights.demands(weights.find(str(path)), 'mobilenet_v2')['relu6'] is True
  model = {'name': 'mobilenet_v2', 'image_mean': [1, 2, 3], 'relu6': True, 'small_images': None}
  (tmp_path / 'config.json').write_text(json.dumps({'phases': ['search'], 'model': model}))
  source = weights.Source(given=str(tmp_path), path=tmp_path, phase='search')
  assert weights.demands(source, 'mobilenet_v2') == {'image_mean': (1, 2, 3), 'relu6': True}


@pytest.mark.usefixtures('coloured')
def test_a_file_that_does_not_fit_is_refused_with_every_difference(narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'

  def refuse(**changes):
    return refused(narrow(path, **changes), tmp_path / 'new')

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
  save_file(narrow_weights | {'extra': np.zeros(1, np.float32)}, path)
  assert refuse().endswith('different names, only in the weights: extra; give weights of resnet18')

  save_file(narrow_weights, path)
  assert refuse(**{'model.name': 'resnet34'}).endswith('these are weights of resnet18, so set model.name to that')
  assert 'there are no published weights for model' in refuse(**{'model.name': 'resnet8'})
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
def test_a_file_that_is_damaged_or_holds_no_real_weights_is_refused(narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  refuse = lambda: refused(narrow(path), tmp_path / 'new')
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


def test_images_of_one_colour_do_not_fit_the_stem(narrow_weights, tmp_path):
  save_file(narrow_weights, tmp_path / 'w.safetensors')
  message = refused(narrow(tmp_path / 'w.safetensors'), tmp_path / 'new')
  assert 'conv1.weight is (16, 3, 7, 7) and params/stem/kernel needs (16, 1, 7, 7)' in message
  assert "the stem depends on the images' colours" in message


@pytest.mark.parametrize(
  'prefix', ['module.', 'model.', 'state_dict.', 'module.model.backbone.', 'a.b.c.d.e.f.g.', 'fc.']
)
def test_a_prefix_of_all_names_is_taken_off_and_told(prefix, narrow_weights, tmp_path):
  plain, path = tmp_path / 'plain.safetensors', tmp_path / 'w.safetensors'
  save_file(narrow_weights, plain)
  counter = {f'{prefix}bn1.num_batches_tracked': np.zeros((), np.int64)}
  save_file({prefix + name: value for name, value in narrow_weights.items()} | counter, path)
  found, expected = load_file(path), load_file(plain)
  assert expected.origin == str(plain)
  assert found.origin == f'{path}, whose names begin with {prefix!r}'
  for group in ('params', 'batch_stats'):
    flat = [traverse_util.flatten_dict(w.variables[group], sep='/') for w in (found, expected)]
    assert_same(*flat)


def test_what_a_prefix_does_not_explain_is_named(narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  prefixed = {f'model.{name}': value for name, value in narrow_weights.items()}
  save_file(prefixed | {'loss.weight': np.zeros(1, np.float32), 'fc.bias': np.zeros(10, np.float32)}, path)
  message = load_file(path)
  assert 'only in the weights: fc.bias (without model.), loss.weight; give weights of resnet18' in message
  prefixed.pop('model.fc.bias')
  save_file(prefixed, path)
  assert 'only in the network: params/classifier/bias (fc.bias); give weights' in load_file(path)
  assert load_file(path, 'resnet34').endswith('give weights of resnet34')
  save_file({f'module.{name}': value for name, value in narrow_weights.items()}, path)
  assert load_file(path, 'resnet34').endswith('these are weights of resnet18, so set model.name to that')
  both = {f'{name}.{key}': value for name in ('ema', 'model') for key, value in narrow_weights.items()}
  save_file(both, path)
  assert 'only in the weights: model.bn1.bias, ' in load_file(path)


def test_names_and_lists_of_them_are_cut(narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  save_file({f'x{i}' + 'y' * 5000 + '\n': np.zeros(1, np.float32) for i in range(300)}, path)
  message = load_file(path)
  assert 'only in the weights: x0yyy' in message
  assert 'y...y' in message
  assert ' and 292 more; only in the network: ' in message
  assert message.isprintable()
  save_file({'z' * 9000: np.zeros(1, np.int8)}, path)
  assert 'z...z' in load_file(path)
  save_file(narrow_weights | {'fc.bias': np.zeros((1,) * 30, np.float32)}, path)
  assert 'fc.bias is (1, 1, ' in load_file(path)


@pytest.mark.parametrize(
  'name',
  ['w.pth', 'w.PTH', 'w.pt', 'w.Bin', 'w.ckpt', 'w.pkl', 'w.pickle', 'w.pth.tar', 'w.PTH.TAR', 'w.pth.gz', 'v1.2.pt'],
)
def test_every_kind_of_pickle_gets_the_hint_how_to_convert_it(name, tmp_path):
  for there in (False, True):
    if there:
      (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r' is a pickle, which can run any code .* safetensors.torch.save_file'):
      weights.find(str(tmp_path / name))


def test_values_that_no_training_leaves_are_refused_by_name(narrow_weights, tmp_path):
  path, rng = tmp_path / 'w.safetensors', np.random.default_rng(0)
  names = sorted(narrow_weights)
  for bad in (np.nan, np.inf, -np.inf):
    name = names[rng.integers(len(names))]
    value = narrow_weights[name].copy()
    value.reshape(-1)[rng.integers(value.size)] = bad
    save_file(narrow_weights | {name: value}, path)
    assert f'holds values that are not finite, in {name}: give another file' in load_file(path)
  for name in ('bn1.running_var', 'layer2.0.downsample.1.running_var'):
    value = narrow_weights[name].copy()
    value[3] = -1e-9
    save_file(narrow_weights | {name: value}, path)
    assert f'holds variances below 0, in {name}: give another file' in load_file(path)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, np.bool_, np.uint16])
def test_what_is_of_another_type_is_named(dtype, narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  save_file(narrow_weights | {'epoch': np.zeros((), dtype)}, path)
  assert re.search(r'holds weights of type [A-Z0-9]+, in epoch: give one with F16, BF16, F32, F64', load_file(path))
  save_file(narrow_weights | {'fc.bias': np.zeros(10, dtype)}, path)
  assert re.search(r'holds weights of type [A-Z0-9]+, in fc.bias: ', load_file(path))


def test_axes_in_another_order_are_told_apart_from_other_sizes(narrow_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  turned = {name: np.ascontiguousarray(value.T) for name, value in narrow_weights.items()}
  save_file(turned, path)
  assert load_file(path).endswith('; their axes are in another order, so transpose them')
  save_file(narrow_weights | {'fc.weight': narrow_weights['fc.weight'].T.copy()}, path)
  message = load_file(path)
  assert 'fc.weight is (128, 10) and params/classifier/kernel needs (10, 128); their axes' in message
