"""The best range for each output channel of kernels, such as the nine weights of a depthwise one, or for each group."""

import functools
import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from fracbits_jax.layers.clip_search import SAMPLES, checked, positions, search
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.quantize import groups
from fracbits_jax.quantize.unit import SMALLEST

_LENGTHS = (16, 64, 256, 1024, SAMPLES)  # to which channels are filled up: few lengths are few programs to compile
_AT_ONCE = 2**18  # values of channels that are searched together

Name = TypeVar('Name', bound=Hashable)


def channel_ranges(kernels: Mapping[Name, tuple[np.ndarray, Any, QuantConfig]]) -> dict[Name, np.ndarray]:
  """The range of each channel, or of each group, that quantizes it with the least error, by the layer's criterion.

  A channel, or a group, of zeros takes the mean of the kernel's other ranges, so that its weights find levels of their
  size; 1 where all are zeros.

  Args:
    kernels: by name the channels `[..., C_out, n]`, their bit-widths, broadcastable against `[..., C_out]`, and the
      configuration.

  Returns:
    By name, `[..., C_out]`, or `[..., G, C_out]` in groups, float32.

  Raises:
    ValueError: values that are not finite; names the kernel.
  """
  found: dict[Name, np.ndarray] = {}
  alike: dict[tuple, list[tuple[Name, _Rows]]] = {}
  for name, (values, bits, quant) in kernels.items():
    values = checked(np.asarray(values, np.float32), f'kernel of {name}')
    if not values.size:
      found[name] = np.ones(_shape(values.shape, quant), np.float32)
      continue
    rows = _rows(values, bits, quant)
    # Groups are all of one length, which is a program of its own.
    length = next(length for length in _LENGTHS if length >= rows.values.shape[1])
    length = length if quant.group_size is None else rows.values.shape[1]
    alike.setdefault((rows.choices, quant.kernel_scheme, quant.calibration, length), []).append((name, rows))
  for (choices, scheme, criterion, length), entries in alike.items():
    padded = [np.pad(r.values, ((0, 0), (0, length - r.values.shape[1]))) for _, r in entries]
    bits, counts = (np.concatenate([getattr(r, field) for _, r in entries]) for field in ('bits', 'counts'))
    best = _searched(np.concatenate(padded), bits, counts, choices, scheme, criterion)
    ends = np.cumsum([len(r.counts) for _, r in entries])
    for (name, r), part in zip(entries, np.split(best, ends[:-1]), strict=True):
      values, _, quant = kernels[name]
      found[name] = _with_zeros(part, r).reshape(_shape(np.shape(values), quant))
  return found


class _Rows(NamedTuple):
  """What has ranges of its own in a kernel: the values, of each row the first `counts`, and the bit-widths."""

  values: np.ndarray  # [rows, n]
  counts: np.ndarray  # [rows]
  bits: np.ndarray  # [rows]
  choices: tuple[int, ...]
  kernels: int  # of a stack, so many rows each


def _shape(shape: tuple[int, ...], quant: QuantConfig) -> tuple[int, ...]:
  """The shape of the ranges of channels `[..., C_out, n]`."""
  *stack, channels, contracted = shape
  return (*stack, *([] if quant.group_size is None else [groups.count(contracted, quant.group_size)]), channels)


def _rows(values: np.ndarray, bits: Any, quant: QuantConfig) -> _Rows:
  """The rows of channels `[..., C_out, n]`, in the order of their ranges."""
  *stack, channels, count = values.shape
  choices = quant.allowed_kernel_bits
  if quant.kernel_bits is not None and quant.kernel_bits not in choices:
    choices = (quant.kernel_bits,)
  least = min((b for b in choices if b), default=0)  # nothing tells the ranges of 0 bits apart
  widths = np.broadcast_to(np.maximum(np.asarray(bits, np.float32), least), (*stack, channels))
  counts = np.full(1, count)
  if quant.group_size is not None:
    counts, length = groups.lengths(count, quant.group_size), min(quant.group_size, count)
    beside = [(0, 0)] * (values.ndim - 1)
    values = np.pad(values, (*beside, (0, len(counts) * length - count))).reshape(*stack, channels, -1, length)
    values = np.moveaxis(values, -2, -3)
    widths, count = np.broadcast_to(widths[..., None, :], (*stack, len(counts), channels)), length
  counts = np.broadcast_to(counts[:, None], (math.prod(stack), len(counts), channels)).reshape(-1)
  rows = values.reshape(-1, values.shape[-1])
  if count > SAMPLES:
    drawn = positions(count)
    is_whole = (counts == count).all()
    rows = rows[:, drawn] if is_whole else np.take_along_axis(rows, drawn[None] % counts[:, None], axis=1)
    counts = np.full_like(counts, SAMPLES)
  return _Rows(rows, counts.astype(np.int32), widths.reshape(-1), choices, math.prod(stack))


def _searched(
  rows: np.ndarray, bits: np.ndarray, sizes: np.ndarray, choices: tuple, scheme: str, criterion: str
) -> np.ndarray:
  """The best range of each row, in parts of a few lengths."""
  at_once = min(max(_AT_ONCE // rows.shape[1], 1), 2 ** (len(rows) - 1).bit_length())
  found = []
  for start in range(0, len(rows), at_once):
    part = [array[start : start + at_once] for array in (rows, bits, sizes)]
    given = len(part[0])
    part = [np.pad(array, [(0, at_once - given)] + [(0, 0)] * (array.ndim - 1), mode='edge') for array in part]
    found.append(np.asarray(_of_rows(*part, choices=choices, scheme=scheme, criterion=criterion))[:given])
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnames=('choices', 'scheme', 'criterion'))
def _of_rows(
  rows: jax.Array, bits: jax.Array, sizes: jax.Array, *, choices: tuple[int, ...], scheme: str, criterion: str
) -> jax.Array:
  how = dict(signed=True, choices=choices, scheme=scheme, criterion=criterion)
  return jax.vmap(functools.partial(search, **how))(rows, bits, sizes)


def _with_zeros(ranges: np.ndarray, rows: _Rows) -> np.ndarray:
  """The ranges of rows, with those of rows of zeros as the others of their kernel are in the mean."""
  there = (np.abs(rows.values).max(axis=-1, initial=0) >= SMALLEST).reshape(rows.kernels, -1)
  ranges = ranges.reshape(there.shape)
  count = there.sum(axis=-1, keepdims=True)
  mean = np.where(there, ranges, 0).sum(axis=-1, keepdims=True, dtype=np.float64) / np.maximum(count, 1)
  return np.where(there, ranges, np.where(count > 0, mean, 1)).astype(np.float32)
