"""StableHLO: the network in floating point, quantizers and all, as a program of its own.

The file is what `jax.export` serializes. It takes any number of examples and runs on CPU, GPU and TPU:

    jax.export.deserialize(pathlib.Path('net.stablehlo').read_bytes()).call(images)
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from jax import export, lax

from fracbits_jax.system import extras

with extras.needed():
  import flatbuffers  # noqa: F401  what jax.export serializes with, imported here so that a missing one is said at once

from fracbits_jax.export.source import Source
from fracbits_jax.system.files import write_whole

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(source: Source, path: str | os.PathLike) -> str:
  """Writes the program, whole or not at all; returns what it is."""
  variables = jax.tree.map(jnp.asarray, dict(source.variables))

  def network(inputs: jax.Array) -> jax.Array:
    # Without the barrier a compiler computes with the constants in advance, and rounds otherwise than the network.
    return source.model.apply(lax.optimization_barrier(variables), inputs, **source.call)

  shape = export.symbolic_shape(', '.join(('n', *map(str, source.input.shape[1:]))))
  example = jax.ShapeDtypeStruct(shape, source.input.dtype)
  exported = export.export(jax.jit(network), platforms=PLATFORMS)(example)
  write_whole(path, exported.serialize())
  size = pathlib.Path(path).stat().st_size
  return f'{path}: {size:,} bytes, for {", ".join(PLATFORMS)} and any number of examples'
