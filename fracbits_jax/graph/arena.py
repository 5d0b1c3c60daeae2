"""The plan of one block of memory: where the tensors of a network lie, those that are live at once side by side."""

from collections.abc import Sequence

import numpy as np


def peak(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> int:
  """The largest sum of sizes that are live at once: what no plan can be below."""
  steps = max(last, default=-1) + 1
  live = np.zeros(steps + 1, np.int64)
  for size, start, end in zip(sizes, first, last, strict=True):
    live[start] += size
    live[end + 1] -= size
  return int(np.cumsum(live).max(initial=0))


def place(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> tuple[list[int], int]:
  """Offsets of tensors in one block, and the size of the block.

  Each tensor goes to the lowest place that is free as long as it lives, in several orders: by size, by the sum that is
  live around it, by time. The best is taken; most networks reach the `peak`.

  Args:
    sizes: of the tensors, in bytes.
    first: the step that makes each of them.
    last: the last step that reads it.
  """
  least, spans = peak(sizes, first, last), range(len(sizes))
  crowd = [sum(sizes[j] for j in spans if first[j] <= last[i] and first[i] <= last[j]) for i in spans]
  orders = (
    lambda i: (-sizes[i], first[i]),
    lambda i: (-crowd[i], -sizes[i]),
    lambda i: (first[i], -sizes[i]),
    lambda i: (-last[i], -sizes[i]),
    lambda i: (-(last[i] - first[i]), -sizes[i]),
    lambda i: (-(last[i] - first[i]) * sizes[i], first[i]),
  )
  best: tuple[list[int], int] | None = None
  for order in orders:
    found = _placed(sorted(spans, key=order), sizes, first, last)
    if best is None or found[1] < best[1]:
      best = found
    if best[1] == least:
      break
  assert best is not None
  return best


def _placed(
  order: Sequence[int], sizes: Sequence[int], first: Sequence[int], last: Sequence[int]
) -> tuple[list[int], int]:
  offsets = [0] * len(order)
  done: list[int] = []
  for i in order:
    beside = sorted((offsets[j], sizes[j]) for j in done if first[j] <= last[i] and first[i] <= last[j])
    at = 0
    for offset, size in beside:
      if at + sizes[i] <= offset:
        break
      at = max(at, offset + size)
    offsets[i] = at
    done.append(i)
  return offsets, max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)
