"""Learned mixed-precision quantization for JAX and Flax.

Importing this package loads nothing but itself; each submodule is imported when it is first used, and the submodules
named here need JAX and Flax only.
"""

import importlib

__version__ = '0.3.0'

_SUBMODULES = ('cost', 'layers', 'models', 'policy', 'quantize')
_FUNCTIONS = {'from_float': 'program', 'quantize_model': 'program'}

__all__ = ['__version__', *_SUBMODULES, *_FUNCTIONS]


def __getattr__(name: str):
  if name in _SUBMODULES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _FUNCTIONS:
    return getattr(importlib.import_module(f'{__name__}.{_FUNCTIONS[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_SUBMODULES, *_FUNCTIONS])
