"""Runs that are over in seconds: the smallest network on small digits; also a recipe for `main.py --config`."""

import functools

from benchmarks.shared.tiny import TINY
from configs import digits
from fracbits_jax import models
from fracbits_jax.models.resnet import ResNet

# A stem, one residual block and a classifier, of eight channels: half of what the smallest network of the package takes
# to trace and to compile, which is most of a run's time.
smallest = functools.partial(ResNet, stages=(1,), small_images=True)
models._MODELS['smallest'] = smallest
SMALLEST = {**TINY, 'model.name': 'smallest', 'model.width': 0.125, 'data.image_size': 8}
FLAGS = (f'--config={__file__}', *(f'--config.{name}={value}' for name, value in SMALLEST.items()))


def get_config():
  config = digits.get_config()
  config.update_from_flattened_dict(SMALLEST)
  return config


def tiny(folder, **changes):
  """The configuration, with its data beside the run's folder."""
  config = get_config()
  config.update_from_flattened_dict({'data.data_dir': str(folder / 'tfds'), **changes})
  return config
