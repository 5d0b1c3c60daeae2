"""The constants of a C program: kernels packed by rows, tables of rescalings, shapes of products, pools and moves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.export.arithmetic import Recorded
from fracbits_jax.export.bitpack import pack
from fracbits_jax.graph.graph import Node

INSTEAD = 'export with --format packed or stablehlo'  # what C has not
_MOST_BITS = 16


def kernel_node(node: Node, producers: Mapping[str, Node]) -> Node:
  """The `kernel` node that a product multiplies with."""
  for x in node.inputs:
    name = x
    while name in producers and producers[name].op != 'kernel' and producers[name].op != 'quantize':
      before = producers[name].inputs
      name = before[0] if before and isinstance(before[0], str) else ''
    if name in producers and producers[name].op == 'kernel' and not isinstance(x, np.ndarray):
      return producers[name]
  raise ValueError(f'{node.output} multiplies with no quantized kernel: quantize it')


def packed_rows(rows: np.ndarray, allowed: Sequence[int], layer: str) -> tuple[list[int], bytes]:
  """Kernels of output channels at the fewest bits that hold them.

  Args:
    rows: integers `[C_out, weights]`.
    allowed: bit-widths that the layer has.
    layer: its name.

  Returns:
    For each channel bits + 32 form, and the bytes; see `fb_product` in `c/fracbits.h`.
  """
  forms, chunks = [], []
  for row in rows:
    if not row.any():
      forms.append(0)
      continue
    form, bits, codes = _coded(row, sorted({*allowed, *range(max(allowed, default=1), _MOST_BITS + 1)} - {0}), layer)
    forms.append(bits | form << 5)
    chunks.append(pack(codes[:, None], np.asarray(bits)))
  return forms, b''.join(chunks)


def _coded(row: np.ndarray, allowed: Sequence[int], layer: str) -> tuple[int, int, np.ndarray]:
  """Form, bits and codes of a channel's integers."""
  odd = row % 2 == 1
  for bits in allowed:
    half = 2 ** (bits - 1)
    if -half <= row.min() and row.max() < half:
      return 0, bits, row + half
    if odd.all() and np.abs(row).max() < 2 * half:
      return 1, bits, (row + 2 * half - 1) // 2
    if not odd.any() and -2 * half <= row.min() and row.max() < 2 * half:
      return 2, bits, (row + 2 * half) // 2
  raise ValueError(f'the kernel of {layer} needs more than {_MOST_BITS} bits: allow it fewer')


def table(arrays: Sequence[np.ndarray], shape: Sequence[int]) -> list[np.ndarray]:
  """Arrays that broadcast against a shape, as tables of one length; element i of the tensor has number i modulo it."""
  arrays = [np.asarray(a).reshape((1,) * (len(shape) - np.ndim(a)) + np.shape(a)) for a in arrays]
  axis = min((i for a in arrays for i, size in enumerate(a.shape) if size > 1), default=len(shape))
  inner = (1,) * axis + tuple(shape[axis:])
  return [np.broadcast_to(a, inner).reshape(-1).astype(np.int64) for a in arrays]


def dense(node: Node, root: Recorded, layer: str) -> tuple[np.ndarray, dict[str, Any]]:
  """The rows of a matrix product and its fields, as a convolution of 1 x 1."""
  (of_x, of_kernel), batch = node.params['dimension_numbers']
  x, kernel = root.operands[0], root.params['kernel']
  trailing = tuple(range(x.ndim - len(of_x), x.ndim))
  if isinstance(node.inputs[0], np.ndarray) or tuple(of_x) != trailing or tuple(map(len, batch)) != (0, 0):
    raise ValueError(
      f'{layer} sums over other axes than the last ones of its inputs: C has dense layers over the last; {INSTEAD}'
    )
  rows = np.moveaxis(kernel, of_kernel, range(-len(of_kernel), 0))
  length, positions = math.prod(kernel.shape[axis] for axis in of_kernel), math.prod(x.shape[: trailing[0]])
  rows = rows.reshape(-1, length)
  return rows, {
    'size': (1, positions, length),
    'kernel': (1, 1),
    'strides': (1, 1),
    'dilation': (1, 1),
    'padding': (0, 0),
    'groups': 1,
    'out': (1, positions, len(rows)),
  }


def convolution(node: Node, root: Recorded, layer: str) -> tuple[np.ndarray, dict[str, Any]]:
  """The rows of a convolution and its fields."""
  p, x, kernel = node.params, root.operands[0], root.params['kernel']
  numbers, rank = p['dimension_numbers'], x.ndim
  last = (0, rank - 1, *range(1, rank - 1))
  if rank not in (3, 4) or tuple(numbers['lhs_spec']) != last or tuple(numbers['out_spec']) != last:
    raise ValueError(
      f'{layer} is no convolution of [N, W, C] or [N, H, W, C]: C has those, with the channels last; {INSTEAD}'
    )
  if any(d != 1 for d in p['lhs_dilation']) or p['batch_group_count'] != 1:
    raise ValueError(f'{layer} is a transposed convolution: C has none; {INSTEAD}')
  out_axis, in_axis, *spatial = numbers['rhs_spec']
  rows = np.transpose(kernel, (out_axis, *spatial, in_axis))
  two = lambda values, other: tuple(values) if rank == 4 else (other, *values)
  return rows.reshape(len(rows), -1), {
    'size': (*two(x.shape[1:-1], 1), x.shape[-1]),
    'kernel': two(rows.shape[1:-1], 1),
    'strides': two(p['window_strides'], 1),
    'dilation': two(p['rhs_dilation'], 1),
    'padding': two([before for before, _ in p['padding']], 0),
    'groups': p['feature_group_count'],
    'out': (*two(root.shape[1:-1], 1), root.shape[-1]),
  }


def window(node: Node, shape: Sequence[int]) -> dict[str, Any]:
  """The fields of a pool of a tensor of some shape."""
  rank, p = len(shape), node.params
  where = f'{node.output} ({node.op})'
  if rank not in (3, 4):
    raise ValueError(f'{where} is no pool of [N, W, C] or [N, H, W, C]: C has those, with the channels last; {INSTEAD}')
  two = lambda values, other: tuple(values) if rank == 4 else (other, *values)
  if node.op.startswith('reduce_window'):
    keys = ('window_dimensions', 'window_strides', 'window_dilation', 'base_dilation')
    sizes, strides, dilation, base = (tuple(p[key]) for key in keys)
    if any(x[0] != 1 or x[-1] != 1 for x in (sizes, strides)) or any(d != 1 for d in base):
      raise ValueError(f'{where} takes windows of examples or channels: C has windows of height and width; {INSTEAD}')
    padding = [before for before, _ in p['padding'][1:-1]]
    ends = zip(shape[1:-1], p['padding'][1:-1], sizes[1:-1], strides[1:-1], dilation[1:-1], strict=True)
    out = [(n + sum(pad) - (size - 1) * d - 1) // stride + 1 for n, pad, size, stride, d in ends]
    return {
      'size': (*two(shape[1:-1], 1), shape[-1]),
      'window': two(sizes[1:-1], 1),
      'strides': two(strides[1:-1], 1),
      'dilation': two(dilation[1:-1], 1),
      'padding': two(padding, 0),
      'out': two(out, 1),
    }
  if sorted(p['axes']) != list(range(1, rank - 1)):
    raise ValueError(f'{where} takes other axes than height and width together: C has those; {INSTEAD}')
  whole = two(shape[1:-1], 1)
  ones = {'strides': (1, 1), 'dilation': (1, 1), 'padding': (0, 0), 'out': (1, 1)}
  return {'size': (*whole, shape[-1]), 'window': whole, **ones}


def moves(index: np.ndarray) -> dict[str, Any]:
  """How elements move: where those within a box come from by strides, or the place of each; see `fb_move`."""
  squeezed = index.reshape([size for size in index.shape if size > 1] or [1])
  if squeezed.ndim <= 4:
    places = squeezed.reshape((1,) * (4 - squeezed.ndim) + squeezed.shape)
    inside = places >= 0
    low, high, stride = [0] * 4, [0] * 4, [0] * 4
    if not inside.any():
      return {'index': None, 'size': places.shape, 'low': low, 'high': high, 'stride': stride, 'start': 0}
    for axis in range(4):
      along = np.flatnonzero(inside.any(tuple(i for i in range(4) if i != axis)))
      low[axis], high[axis] = int(along[0]), int(along[-1]) + 1
    box = places[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    for axis in range(4):
      if box.shape[axis] > 1:
        stride[axis] = int(np.take(box, 1, axis).flat[0] - box.flat[0])
    expected = box.flat[0] + sum(s * i for s, i in zip(stride, np.indices(box.shape), strict=True))
    if inside.sum() == box.size and (box == expected).all():
      return {
        'index': None, 'size': places.shape, 'low': low, 'high': high, 'stride': stride, 'start': int(box.flat[0])
      }  # fmt: skip
  sizes = (index.size, 1, 1, 1)
  return {'index': index.reshape(-1), 'size': sizes, 'low': [0] * 4, 'high': [0] * 4, 'stride': [0] * 4, 'start': 0}
