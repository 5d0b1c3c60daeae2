"""Which real numbers of a network matter: beyond the clips of the layers that they reach, nothing depends on them.

A sum of two tensors in fixed-point numbers needs digits for the numbers that can change a code behind it. Where one of
two summands can be a million and the clip behind the sum is 2, it may stop a little beyond 2 and what the other can be.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.values import shared
from fracbits_jax.graph.fold import as_affine
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.graph.grid import Grid

Interval = tuple[Any, Any]  # two arrays that broadcast against a tensor, float64

EVERYTHING: Interval = (np.float64(-math.inf), np.float64(math.inf))

_SAME: tuple[str, ...] = ('convert_element_type', 'reduce_window_max', 'reduce_max', 'concatenate', 'copy', 'gather')
_SAME += ('reshape', 'pad', 'transpose', 'squeeze', 'expand_dims', 'slice', 'rev', 'broadcast_in_dim')
_LIMITS = ('max', 'min', 'clamp')


def needed(
  graph: Graph, intervals: Mapping[str, Interval], shapes: Mapping[str, Sequence[int]], keep: Sequence[str]
) -> dict[str, Interval]:
  """For each value the interval beyond which it may stop.

  Args:
    graph: the network.
    intervals: what values can be, of those that are integers.
    shapes: of all values, as `Node` has them.
    keep: names of values that are looked at from outside, beside the outputs.
  """
  found = dict.fromkeys((*keep, *graph.outputs), EVERYTHING)
  for node in reversed(graph.nodes):
    before = of_operands(node, found.get(node.output, EVERYTHING), intervals, shapes)
    for name, interval in zip(node.inputs, before, strict=True):
      if isinstance(name, str):
        found[name] = _union(found[name], interval) if name in found else interval
  return found


def of_operands(
  node: Node, out: Interval, intervals: Mapping[str, Interval], shapes: Mapping[str, Sequence[int]]
) -> list[Interval]:
  """For each operand of a node the interval beyond which it may stop, given that of the result."""
  names = [x for x in node.inputs if isinstance(x, str)]
  ranges = [intervals.get(x) if isinstance(x, str) else None for x in node.inputs]
  if node.op == 'quantize':
    return [_of_grid(node.params['grid'])]
  affine = as_affine(node)
  if affine is not None:
    return [_before_affine(out, *affine[1:])] * len(ranges)
  if node.op in ('add', 'sub') and len(names) == 2:
    (first, second), sign = ranges, 1 if node.op == 'add' else -1
    if first is not None and second is not None:
      return [_minus(out, _times(second, sign)), _times(_minus(out, first), sign)]
  if node.op in ('reduce_sum', 'reduce_window_sum') and ranges[0] is not None:
    return [_of_summand(_overall(out), ranges[0], *terms(node, shapes[names[0]]))]
  if node.op in _LIMITS and len(names) == 1:
    return [out] * len(ranges)
  return [_overall(out) if node.op in _SAME else EVERYTHING] * len(ranges)


def terms(node: Node, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
  """The axes along which a sum or a maximum takes the numbers of a tensor of some shape, and how many."""
  if node.op.startswith('reduce_window'):
    sizes = {axis: size for axis, size in enumerate(node.params['window_dimensions']) if size > 1}
  else:
    sizes = {axis: shape[axis] for axis in node.params['axes']}
  return tuple(sizes), abs(math.prod(sizes.values()))


def _of_grid(grid: Grid) -> Interval:
  """A step beyond the clips, behind which all codes are the first or the last."""
  moved = grid.moved * grid.scale
  return np.float64(moved - (grid.alpha if grid.signed else 0) - grid.step), np.float64(moved + grid.alpha + grid.step)


def _before_affine(out: Interval, scale: np.ndarray | np.float64, offset: np.ndarray | np.float64) -> Interval:
  with np.errstate(divide='ignore', invalid='ignore'):
    ends = [np.where(scale == 0, 0.0, (end - offset) / scale) for end in out]
  return np.minimum(*ends), np.maximum(*ends)


def _minus(out: Interval, other: Interval) -> Interval:
  return out[0] - other[1], out[1] - other[0]


def _times(interval: Interval, sign: int) -> Interval:
  return interval if sign > 0 else (-interval[1], -interval[0])


def _of_summand(out: Interval, each: Interval, axes: Sequence[int], count: int) -> Interval:
  least, most = shared(each[0], axes, np.min), shared(each[1], axes, np.max)
  return out[0] - (count - 1) * most, out[1] - (count - 1) * least


def _union(first: Interval, second: Interval) -> Interval:
  return np.minimum(first[0], second[0]), np.maximum(first[1], second[1])


def _overall(interval: Interval) -> Interval:
  return np.min(interval[0]), np.max(interval[1])
