"""Runs that are over in seconds: the smallest network on small digits; also a recipe for `main.py --config`."""

import atexit
import functools
import shutil
import tempfile

import numpy as np
import pytest

from benchmarks.shared.tiny import TINY
from configs import digits
from fracbits_jax import models
from fracbits_jax.models.resnet import ResNet
from fracbits_jax.run import runner

# A stem, one residual block and a classifier, of eight channels: half of what the smallest network of the package takes
# to trace and to compile, which is most of a run's time.
smallest = functools.partial(ResNet, stages=(1,), small_images=True)
models._MODELS['smallest'] = smallest
SMALLEST = {**TINY, 'model.name': 'smallest', 'model.width': 0.125, 'data.image_size': 8}


def get_config():
  config = digits.get_config()
  config.update_from_flattened_dict(SMALLEST)
  return config


@functools.cache
def data_dir():
  """Where the runs of all tests in this process find digits, which the first of them prepares."""
  folder = tempfile.mkdtemp(prefix='digits')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def tiny(**changes):
  """The configuration, with changes."""
  config = get_config()
  config.update_from_flattened_dict({'data.data_dir': data_dir(), **changes})
  return config


def flags():
  """The same for `main.py`."""
  settings = {**SMALLEST, 'data.data_dir': data_dir()}
  return (f'--config={__file__}', *(f'--config.{name}={value}' for name, value in settings.items()))


def refused(config, workdir):
  """The sentence with which a run is refused, before anything is written."""
  with pytest.raises(ValueError) as caught:  # noqa: PT011
    runner.run(config, workdir)
  assert '\n' not in str(caught.value)
  assert not workdir.exists()
  return str(caught.value)


def assert_same(found, expected):
  """Two groups of arrays by name, equal bit for bit."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
