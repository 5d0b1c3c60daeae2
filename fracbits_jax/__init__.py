"""Learned mixed-precision quantization for JAX and Flax.

Importing this package loads nothing but itself; each submodule is imported when it is first used, and the submodules
named here need JAX and Flax only.
"""

import importlib

__version__ = '0.1.0'

_SUBMODULES = ('cost', 'layers', 'models', 'policy', 'quantize')

__all__ = ['__version__', *_SUBMODULES]


def __getattr__(name: str):
  if name in _SUBMODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_SUBMODULES])
