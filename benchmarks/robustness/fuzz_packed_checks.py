"""What a packed network that is read from a broken file has to hold."""

import functools
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.robustness.fuzz_packed import files
from fracbits_jax.export import packed
from fracbits_jax.graph import graph, ops


def own_bytes(found: packed.Packed) -> int:
  """What the arrays of a network take."""
  kernels = [node.params['kernel'] for node in found.graph.nodes if node.op == 'kernel']
  arrays = [x for node in found.graph.nodes for x in node.inputs if not isinstance(x, str)]
  return sum(k.codes.nbytes + k.bits.nbytes for k in kernels) + sum(x.nbytes for x in arrays)


@functools.cache
def _originals() -> tuple[packed.Packed, ...]:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'file'
    found = []
    for content in files():
      path.write_bytes(content)
      found.append(packed.read(path))
  return tuple(found)


def not_the_original(found: packed.Packed, path: pathlib.Path) -> list[str]:
  """A file that is read in spite of its damage has to be one of those that were written, with their answers."""
  written = path.read_bytes() in files() and any(_prints(found) == _prints(other) for other in _originals())
  return [] if written else ['it is another network than was written']


def _prints(found: packed.Packed) -> str:
  with np.printoptions(threshold=2**31):
    return repr(found)


def broken_network(found: packed.Packed, path: pathlib.Path) -> list[str]:
  """The promises of `Packed` that a network read from a file does not keep."""
  counts = [layer[key] for layer in found.layers for key in ('macs', 'weights')]
  names = [found.name, *(layer['name'] for layer in found.layers)]
  promises = {
    'names are printable': all(map(str.isprintable, names)) and len(set(names[1:])) == len(names[1:]),
    'counts are integers from 0': all(type(n) is int and n >= 0 for n in counts),
    'costs are finite': all(type(c) is float and 0 <= c < math.inf for c in (found.bitops_g, found.size_mb)),
    'shapes are those of JAX': all(_as_jax_says(found.graph, images) for images in (1, 3)),
  }
  broken = [promise for promise, kept in promises.items() if not kept]
  if not broken and path.stat().st_size % 64 == 0:  # some of them run, too
    broken += _not_computed(found.graph)
  return broken


def _as_jax_says(network: graph.Graph, images: int) -> bool:
  sized = lambda shape: tuple(-size * images if size < 0 else size for size in shape)
  values = {x.name: jax.ShapeDtypeStruct(sized(x.shape), x.dtype) for x in network.inputs}
  for node in network.nodes:
    inputs = tuple(values[x] if isinstance(x, str) else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in node.inputs)
    values[node.output] = jax.ShapeDtypeStruct(sized(node.shape), node.dtype)
    if node.op == 'kernel':
      continue
    params = ops.sized(node.params, images)
    found = _of_jax(node.op, params, inputs)
    if found != (values[node.output].shape, values[node.output].dtype):
      return False
  return True


_known: dict[tuple[str, str, str], Any] = {}


def _of_jax(op: str, params: Mapping[str, Any], inputs: Sequence[jax.ShapeDtypeStruct]) -> Any:
  """What JAX says that an operation gives, traced once for equal ones."""
  key = op, repr(sorted(params.items())), repr(inputs)
  if key not in _known:
    found = jax.eval_shape(lambda *xs: ops.OPS[op](params, *xs), *inputs)
    _known[key] = found.shape, found.dtype
  return _known[key]


def _not_computed(network: graph.Graph) -> list[str]:
  """What a network fails to give for two inputs, if it computes few numbers."""
  if sum(math.prod(map(abs, node.shape)) for node in network.nodes) > 10**6:
    return []
  sized = lambda shape: tuple(-2 * size if size < 0 else size for size in shape)
  inputs = {x.name: np.zeros(sized(x.shape), x.dtype) for x in network.inputs}
  found, shapes = jax.tree.leaves(graph.evaluate(network, inputs)[0]), network.shapes()
  expected = [sized(shapes[name]) for name in network.outputs]
  return [] if [y.shape for y in found] == expected else ['it gives another shape']
