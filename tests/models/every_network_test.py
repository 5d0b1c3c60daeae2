"""What holds of every network, for one of each kind with few blocks."""

import fewer_blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fracbits_jax import cost, models
from fracbits_jax.layers import QuantConfig, watch_layers
from fracbits_jax.models.resnet import CifarResNet, ResNet
from fracbits_jax.models.vit import VisionTransformer

# What makes blocks other ones, and how a network of a class is made of as few of them as can be.
FLAGS = ('bottleneck', 'preact', 'projections')
SHALLOW = {ResNet: {'stages': (1, 1)}, CifarResNet: {'blocks': 1}, VisionTransformer: {'depth': 1}}


def kinds():
  """A name for each kind of network: those of one kind differ in depth and width alone."""
  found = {}
  for name in models.names():
    model = models.create(name)
    if model.task == 'language':
      continue  # tokens are no images
    found.setdefault((type(model), *(getattr(model, flag, None) for flag in FLAGS)), name)
  return list(found.values())


def shallow(name, **kwargs):
  """A network of a kind, for small images, with few blocks."""
  few = SHALLOW.get(type(models.create(name)), {})
  return models.create(name, small_images=True, **few, **kwargs)


@pytest.fixture(autouse=True, scope='module')
def _fewer_blocks():
  with fewer_blocks.mobilenets():
    yield


def shapes(model):
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return {k: v.shape for k, v in traverse_util.flatten_dict(variables, sep='/').items()}


def test_there_is_a_kind_for_every_block():
  assert len(kinds()) == 13
  assert {'mobilenet_v1', 'resnet50', 'preact_resnet18', 'resnet8', 'tiny_resnet8', 'autoencoder'} <= set(kinds())


@pytest.mark.parametrize('name', kinds())
def test_float_and_quantized_networks_share_their_parameters(name):
  plain, quantized = (shapes(shallow(name, num_classes=10, quant=q)) for q in (None, QuantConfig()))
  added = quantized.keys() - plain.keys()
  assert not plain.keys() - quantized.keys()
  assert all(quantized[k] == v for k, v in plain.items())
  assert all(k.startswith('bits/') or k.endswith('/alpha') for k in added)
  assert not any(k.startswith('bits/stem') for k in added)
  last = 'output' if models.create(name).task == 'regression' else 'classifier'
  assert f'bits/{last}/input' in added
  assert f'bits/{last}/kernel' not in added


@pytest.mark.parametrize('name', kinds())
def test_images_become_logits_or_images(name):
  model = shallow(name, num_classes=7, quant=QuantConfig(), width=0.5)
  images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
  logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  assert logits.shape == (images.shape if name == 'denoiser' else (2, 7))


class Seen(Exception):
  pass


@pytest.mark.parametrize('name', kinds())
def test_every_network_subtracts_the_mean_of_the_images(name):
  plain, centred = (shallow(name, width=0.25, image_mean=mean) for mean in ((), (1.0, 2.0, 3.0)))
  assert cost.trace(centred, (32, 32, 3)) == cost.trace(plain, (32, 32, 3))
  images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3)).astype(np.float32)

  def stop(module, x, y):
    raise Seen(x)

  for model, expected in ((plain, images), (centred, images - np.float32([1, 2, 3])[None, None, None])):
    with watch_layers(stop), pytest.raises(Seen) as caught:
      model.init(jax.random.key(0), images)
    found = caught.value.args[0]  # the autoencoder's are vectors
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
