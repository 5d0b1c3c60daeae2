"""StableHLO: the network in floating point, quantizers and all, as a program of its own.

The file is what `jax.export` serializes. It takes what the network is called with, with any number of examples, and
runs on CPU, GPU and TPU:

    jax.export.deserialize(pathlib.Path('net.stablehlo').read_bytes()).call(images)
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from fracbits_jax.system import extras

with extras.needed():
  import flatbuffers  # noqa: F401  what jax.export serializes with, imported here so that a missing one is said at once

from fracbits_jax.export.source import Source
from fracbits_jax.graph.calls import for_any_number, named_results
from fracbits_jax.graph.capture import applied
from fracbits_jax.layers.examples import is_array
from fracbits_jax.system.files import write_whole

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(source: Source, path: str | os.PathLike) -> str:
  """Writes the program, whole or not at all; returns what it is.

  It is called with the arrays that the network is called with, by position and by keyword: an argument that is no
  array, such as a flag, is left out, and one within a dictionary or a tuple is `None`. It gives what the network gives;
  trees of other classes than dictionaries, tuples and lists as a dictionary of arrays by name.
  """
  exported, note = for_any_number(source.call, lambda number: _exported(source, number))
  write_whole(path, exported.serialize())
  size = pathlib.Path(path).stat().st_size
  many = '' if note or not any(source.call.batched) else ' and any number of examples'
  return f'{path}: {size:,} bytes, for {", ".join(PLATFORMS)}{many}' + (f'\n{path} {note}' if note else '')


def _exported(source: Source, number: Any) -> export.Exported:
  variables = jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, source.variables)
  arrays, rest = jax.tree.flatten(variables)
  call = source.call

  def network(*args: Any, **kwargs: Any) -> Any:
    # Without the barrier a compiler computes with the constants in advance, and rounds otherwise than the network.
    kept = jax.tree.unflatten(rest, _behind_barrier(arrays))
    args, kwargs = call.with_arrays(jax.tree.leaves((args, kwargs)))
    return _plain(applied(source.model)(kept, *args, **kwargs))

  args, kwargs = call.with_arrays(call.shapes(number))
  only = lambda tree: jax.tree.map(lambda x: x if is_array(x) else None, tree)
  args = tuple(only(arg) for arg in args if jax.tree.leaves(only(arg)))
  kwargs = {name: only(value) for name, value in kwargs.items() if jax.tree.leaves(only(value))}
  return export.export(jax.jit(network), platforms=PLATFORMS)(*args, **kwargs)


def _behind_barrier(leaves: list[Any]) -> list[Any]:
  found = iter(lax.optimization_barrier([x for x in leaves if is_array(x)]))
  return [next(found) if is_array(x) else x for x in leaves]


def _plain(results: Any) -> Any:
  """Results in containers that `jax.export` serializes."""
  if _is_plain(results):
    return results
  leaves = [x for x in jax.tree.leaves(results) if is_array(x)]
  return dict(zip(named_results(results), leaves, strict=True))


def _is_plain(tree: Any) -> bool:
  if type(tree) is dict:
    return all(isinstance(key, str) and _is_plain(value) for key, value in tree.items())
  return all(map(_is_plain, tree)) if type(tree) in (tuple, list) else tree is None or is_array(tree)
