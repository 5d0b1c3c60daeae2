"""Networks of packages that others wrote, at tiny sizes, with random parameters: one function for each."""

import importlib
import inspect
from collections.abc import Callable

from benchmarks.shared.foreign import Foreign

# By the module that makes them, so that a package that is missing takes its own networks away.
MODULES = {
  'huggingface': ('bert', 'gpt2', 't5', 'vit', 'resnet', 'regnet', 'clip', 'whisper', 'unet'),
  'nnx_networks': ('dinov2', 'dinov2_swiglu', 'mamba2', 'mamba2_forecaster', 'nnx_recurrent', 'nnx_training'),
  'haiku_equinox': (
    *('haiku_mlp', 'haiku_cnn', 'haiku_attention', 'haiku_lstm'),
    *('equinox_mlp', 'equinox_cnn', 'equinox_attention', 'equinox_gru'),
  ),
  'flax_linen': ('lstm', 'gru', 'scanned', 'remat', 'mixture', 'lora'),
}
NAMES = {name: module for module, names in MODULES.items() for name in names}


def describe(name: str) -> str:
  """What the network of this name is: the first line of its function's docstring."""
  return inspect.getdoc(_function(name)).split('\n')[0].removesuffix('.')


def _function(name: str) -> Callable[[], Foreign]:
  return getattr(importlib.import_module(f'{__name__}.{NAMES[name]}'), name)


def build(name: str) -> Foreign:
  """The network of this name."""
  return _function(name)()
