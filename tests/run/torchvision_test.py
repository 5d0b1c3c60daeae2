"""Published weights: their logits against a second implementation, written from the definitions in PyTorch."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from jax import lax
from safetensors.numpy import save_file

from fracbits_jax import models
from fracbits_jax.models import efficientnet_lite
from fracbits_jax.run import torchvision, weights

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


# Kernel, expansion, channels, blocks, stride of the first.
_LITE = (
  (3, 1, 16, 1, 1),
  (3, 6, 24, 2, 2),
  (5, 6, 40, 2, 2),
  (3, 6, 80, 3, 2),
  (5, 6, 112, 3, 1),
  (5, 6, 192, 4, 2),
  (3, 6, 320, 1, 1),
)


def lite_shapes(classes, stages=_LITE):
  shapes = {'_conv_stem.weight': (32, 3, 3, 3), **norm_shapes('_bn0', 32)}
  channels, index = 32, 0
  for size, expansion, out, repeats, _ in stages:
    for _ in range(repeats):
      name, hidden = f'_blocks.{index}', channels * expansion
      if expansion > 1:
        shapes |= {f'{name}._expand_conv.weight': (hidden, channels, 1, 1), **norm_shapes(f'{name}._bn0', hidden)}
      shapes |= {f'{name}._depthwise_conv.weight': (hidden, 1, size, size), **norm_shapes(f'{name}._bn1', hidden)}
      shapes |= {f'{name}._project_conv.weight': (out, hidden, 1, 1), **norm_shapes(f'{name}._bn2', out)}
      channels, index = out, index + 1
  shapes |= {'_conv_head.weight': (1280, channels, 1, 1), **norm_shapes('_bn1', 1280)}
  return shapes | {'_fc.weight': (classes, 1280), '_fc.bias': (classes,)}


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


def reference_norm(w, name, x, epsilon=1e-5):
  weight, bias, mean, var = (
    w[f'{name}.{leaf}'][None, :, None, None] for leaf in ('weight', 'bias', 'running_mean', 'running_var')
  )
  return (x - mean) / jnp.sqrt(var + epsilon) * weight + bias


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


def reference_lite(w, images, stages):
  """Padded as TensorFlow does: what is missing for ceil(size / stride) windows, the odd one below and on the right."""

  def conv(name, norm, x, stride=1, groups=1):
    size = w[f'{name}.weight'].shape[-1]
    missing = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
    low = missing // 2
    x = jnp.pad(x, ((0, 0), (0, 0), (low, missing - low), (low, missing - low)))
    return reference_norm(w, norm, reference_conv(w, name, x, stride, 0, groups), 1e-3)

  relu6 = lambda x: jnp.clip(x, 0, 6)
  x = relu6(conv('_conv_stem', '_bn0', (images.transpose(0, 3, 1, 2) - 127) / 128, 2))
  index = 0
  for _, expansion, out, repeats, first_stride in stages:
    for i in range(repeats):
      name, y, stride = f'_blocks.{index}', x, 1 if i else first_stride
      if expansion > 1:
        y = relu6(conv(f'{name}._expand_conv', f'{name}._bn0', y))
      y = relu6(conv(f'{name}._depthwise_conv', f'{name}._bn1', y, stride, y.shape[1]))
      y = conv(f'{name}._project_conv', f'{name}._bn2', y)
      x, index = x + y if stride == 1 and x.shape[1] == out else y, index + 1
  x = jnp.mean(relu6(conv('_conv_head', '_bn1', x)), (2, 3))
  return x @ w['_fc.weight'].T + w['_fc.bias'][None]


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


def test_the_published_weights_of_efficientnet_lite_give_its_logits(tmp_path, monkeypatch):
  stages = ((3, 1, 16, 1, 1), (5, 6, 16, 1, 2), (3, 6, 16, 1, 1))  # odd and even sizes, with a sum and without
  monkeypatch.setattr(efficientnet_lite, '_STAGES', stages)
  jax.clear_caches()  # what is traced is kept by the network's arguments, which are the same
  w, path = random_weights(lite_shapes(20, stages)), tmp_path / 'w.safetensors'
  w['_bn0.running_var'] *= 1e-3  # which shows what is added to it
  save_file(w, path)
  source = weights.find(str(path))
  model = models.create('efficientnet_lite0', num_classes=20, **weights.demands(source, 'efficientnet_lite0'))
  found = weights.load(source, 'efficientnet_lite0', model, (66, 66, 3))
  images = np.random.default_rng(1).integers(256, size=(2, 66, 66, 3)).astype(np.float32)
  with jax.default_matmul_precision('highest'):
    logits = jax.jit(model.apply)(found.variables, images)
    expected = jax.jit(reference_lite, static_argnums=2)(w, images, stages)
  jax.clear_caches()
  assert float(np.std(expected)) > 0.1
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(np.std(expected)))


@pytest.mark.parametrize('network', torchvision.NETWORKS)
def test_every_variable_has_its_published_name_and_shape(network):
  known = {'mobilenet_v2': mobilenet_v2_shapes, 'efficientnet_lite0': lite_shapes}
  expected = known[network](1000) if network in known else resnet_shapes(network, 1000)
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
  found = torchvision.read(path, names, 'resnet18')
  assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
  assert found['params/x/kernel'].shape == (2, 2, 3, 2)
  for position in ((0, 0, 0, 0), (0, 1, 2, 1), (1, 0, 2, 0)):
    i, j, c, k = position
    value = 12 * k + 4 * c + 2 * i + j
    assert found['params/x/kernel'][position] == value
    np.testing.assert_allclose(found['params/stem/kernel'][position], value / 255 / (0.229, 0.224, 0.225)[c], rtol=1e-6)
  np.testing.assert_array_equal(found['params/y/kernel'], [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(found['params/y/bias'], [0, 1, 2])
