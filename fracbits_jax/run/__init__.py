"""A run: from a configuration to checked objects, phases, checkpoints, and what is read back of them.

Public: `runner.run`, all of it; `finished.load`, the network of a finished run.
"""

from typing import Any


def __getattr__(name: str) -> Any:
  """`run.run`, as the pages of version 0.1.0 say it, without loading the input pipeline for whoever needs a part."""
  if name == 'run':
    from fracbits_jax.run.runner import run

    return run
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
