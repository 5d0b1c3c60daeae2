import math

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from fracbits_jax import cost, models
from fracbits_jax.layers import QuantConfig, watch_layers

# The networks of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597): inputs, outputs, the parameters that Keras counts
# in the reference models, and the multiply-accumulates of their TFLite files. The definitions are keras_model.py and
# vww_model.py below benchmark/training of mlcommons/tiny, ResNet-8 with 16, 32 and 64 filters as in its weights there.
TINY = {
  'tiny_resnet8': ((32, 32, 3), 10, 78_666, 12_501_632),
  'tiny_mobilenet': ((96, 96, 3), 2, 221_794, 7_489_664),
  'ds_cnn': ((49, 10, 1), 12, 24_908, 2_656_768),
  'autoencoder': ((640,), 640, 269_992, 264_192),
}


def shapes(name, size=224, **kwargs):
  return shapes_at(name, (size, size, 3), **kwargs)


def shapes_at(name, shape, **kwargs):
  model = models.create(name, **kwargs)
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return {k: v.shape for k, v in traverse_util.flatten_dict(variables, sep='/').items()}


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    # As published, or as the definitions widely used count them.
    ('mobilenet_v1', 4_231_976),
    ('mobilenet_v2', 3_504_872),
    ('efficientnet_lite0', 4_652_008),
    ('resnet18', 11_689_512),
    ('resnet34', 21_797_672),
    ('resnet50', 25_557_032),
  ],
)
def test_parameter_counts(name, parameters):
  assert sum(math.prod(v) for k, v in shapes(name).items() if k.startswith('params/')) == parameters


@pytest.mark.parametrize('name', TINY)
def test_parameters_and_multiply_accumulates_are_those_of_mlperf_tiny(name):
  shape, outputs, parameters, macs = TINY[name]
  table = cost.trace(models.create(name, num_classes=outputs), (1, *shape))
  ours = sum(map(math.prod, shapes_at(name, shape, num_classes=outputs).values()))  # as Keras, with batch statistics
  # All layers of the reference have biases. Only the last needs one: the others have a batch norm's bias behind them,
  # or beside them in the same sum.
  biases = sum(layer.channels for layer in table[:-1])
  assert [layer.biases > 0 for layer in table] == [False] * (len(table) - 1) + [True]
  assert ours + biases == parameters
  assert sum(layer.macs for layer in table) == macs


def test_shapes_of_the_keyword_network_are_the_reference_s():
  """'SAME' of a 10 x 4 kernel at stride 2: 49 x 10 to 25 x 5, which stays."""
  outputs = {}
  model = models.create('ds_cnn', num_classes=12)
  with watch_layers(lambda module, x, y: outputs.update({module.name: y.shape})):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 49, 10, 1)))
  assert {shape for name, shape in outputs.items() if name != 'classifier'} == {(1, 25, 5, 64)}


def test_the_mobilenet_of_mlperf_tiny_is_a_quarter_as_wide():
  for width in (1.0, 0.5):
    tiny = models.create('tiny_mobilenet', num_classes=2, width=width)
    assert tiny == models.create('mobilenet_v1', num_classes=2, width=width / 4)


def test_depths_of_the_networks_for_small_images():
  for name, depth in (('resnet8', 8), ('tiny_resnet8', 8 + 2), ('resnet20', 20), ('resnet56', 56), ('resnet110', 110)):
    assert len(cost.trace(models.create(name, num_classes=10), (1, 32, 32, 3))) == depth


def test_signed_inputs_stand_behind_linear_bottlenecks():
  from fracbits_jax.layers.calibrate import quant_configs

  model = models.create('mobilenet_v2', quant=QuantConfig())
  signed = {name for name, quant in quant_configs(model, (224, 224, 3)).items() if quant.signed_input}
  assert signed == {f'block{i}_expand' for i in range(2, 18)} | {'head'}


def test_sat_rescales_only_what_no_batch_norm_follows():
  from fracbits_jax.layers.calibrate import quant_configs

  tiny = {'stage2_block1_shortcut', 'stage3_block1_shortcut', 'classifier'}
  for name, expected in (
    ('mobilenet_v1', {'classifier'}),
    ('preact_resnet18', None),
    ('tiny_resnet8', tiny),
    ('autoencoder', {'output'}),
  ):
    configs = quant_configs(models.create(name, quant=QuantConfig(sat=True)), (64, 64, 3))
    scaled = {layer for layer, quant in configs.items() if quant.sat}
    if expected is None:
      expected = {'classifier', *(k for k in configs if k.endswith(('_conv2', '_shortcut')))}
    assert scaled == expected


@pytest.mark.parametrize('mean', [(1.0,), (1.0, 2.0, 300.0), (1.0, 2.0, float('nan')), ('red', 'green', 'blue')])
def test_a_mean_that_does_not_fit_the_images_is_refused(mean):
  with pytest.raises(ValueError, match=r'image_mean=\(.*\) does not fit images of 3 channel'):
    shapes('resnet8', size=32, image_mean=mean)


def test_unknown_names_and_arguments_are_refused():
  with pytest.raises(ValueError, match=r"model 'vgg' is unknown: choose one of mobilenet_v1"):
    models.create('vgg')
  with pytest.raises(ValueError, match='does not take these arguments'):
    models.create('resnet18', depth=3)
