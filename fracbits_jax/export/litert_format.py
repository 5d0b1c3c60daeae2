"""LiteRT: a `.tflite` file of int8 from the image to the outputs, for phones and for microcontrollers.

Inputs of layers are int8 with the scale and zero of their quantizers, kernels int8 or int4 with a scale for each output
channel, biases int32; batch norms, ReLUs and SAT's factor are in those. What sums, means and the outside read has the
range that it takes on some examples.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fracbits_jax.export import grouped, litert_check, litert_file, litert_graph
from fracbits_jax.export.floats import in_float32
from fracbits_jax.export.litert_plan import Plan
from fracbits_jax.export.litert_ranges import Ranges
from fracbits_jax.export.source import Source
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.system.files import write_whole

_IMAGES = (0, 255)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Written:
  """A file that is about to be written.

  Attributes:
    content: the file.
    plan: its tensors and operations.
    graph: what it was made from: the network's graph, its kernels from -127 to 127.
    narrowed: how many weights are another than the network's for that.
    weights: how many weights there are of each type.
  """

  content: bytes
  plan: Plan
  graph: Graph
  narrowed: int
  weights: Mapping[str, int]


def write(source: Source, path: str | os.PathLike, *, examples: Any = None, narrow: bool = True) -> str:
  """Writes a LiteRT file, whole or not at all; returns what it takes on disk.

  Args:
    source: the network.
    path: of the file.
    examples: inputs `[N, ...]` from which the ranges of sums, means and outputs are taken; `None` for those of the run.
    narrow: weights of up to four bits are stored as int4. Where they are, tflite-micro unpacks a layer's weights into
      its arena; `False` stores them as int8.

  Raises:
    ValueError: one sentence: inputs of other than 8 bits, kernels of other than 2, 4 and 8 or without a code for 0, an
      operation that has no counterpart, no examples, or a file that LiteRT does not load; nothing is written then.
  """
  file = built(source, examples=examples, narrow=narrow)
  litert_file.check_loads(file.content, os.fspath(path))
  write_whole(path, file.content)
  by_type = ', '.join(f'{count:,} weights of {dtype}' for dtype, count in sorted(file.weights.items()))
  said = f'{path}: {len(file.content):,} bytes, {len(file.plan.operations)} operations, {by_type}; loaded by LiteRT'
  if file.narrowed:
    said += f'\n{path} has -127 for {file.narrowed:,} of its weights that are -128, which LiteRT leaves out'
  return said + (f'\n{path} {file.graph.note}' if file.graph.note else '')


def built(source: Source, *, examples: Any = None, narrow: bool = True) -> Written:
  """The file of a network before it is written; `ValueError` as of `write`, but for what LiteRT makes of it."""
  grouped.refuse(source.graph, 'LiteRT')
  graph, changed = narrowed(in_float32(source.graph))
  litert_check.check(graph)
  if examples is None and source.training is not None:
    examples = source.training()
  if examples is None:
    raise ValueError(
      f'{source.name} has no examples: give write(source, path, examples=images) some inputs, as the ranges of sums, '
      'means and outputs are taken from them'
    )
  folded = fold_affine(graph)
  ranges = Ranges(folded, examples)
  plan, weights = litert_graph.plan(folded, ranges, images=source.input_range == _IMAGES, narrow=narrow)
  content = litert_file.serialized(plan, description=source.name)
  return Written(content=content, plan=plan, graph=graph, narrowed=changed, weights=weights)


def narrowed(graph: Graph) -> tuple[Graph, int]:
  """The graph with -127 for -128 in its kernels, which LiteRT's specification leaves out, and for how many weights.

  Some of its kernels for ARM add two products in 16 bits, and (-128)^2 + (-128)^2 does not fit.
  """
  found = [_narrowed(node) if node.op == 'kernel' else (node, 0) for node in graph.nodes]
  nodes = tuple(node for node, _ in found)
  return dataclasses.replace(graph, nodes=nodes), sum(count for _, count in found)


def _narrowed(node: Node) -> tuple[Node, int]:
  kernel: Kernel = node.params['kernel']
  lowest = (kernel.codes - kernel.zero == -128) & (kernel.bits > 0)
  if not lowest.any():
    return node, 0
  changed = dataclasses.replace(kernel, codes=kernel.codes + lowest.astype(np.int32), exact=None)
  return dataclasses.replace(node, params={**node.params, 'kernel': changed}), int(lowest.sum())
