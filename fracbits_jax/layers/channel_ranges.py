"""The best range for each output channel of kernels, such as the nine weights of a depthwise one, all at once."""

import functools
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from fracbits_jax.layers.clip_search import SAMPLES, checked, positions, search
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.quantize.unit import SMALLEST

_LENGTHS = (16, 64, 256, 1024, SAMPLES)  # to which channels are filled up: few lengths are few programs to compile
_AT_ONCE = 2**18  # values of channels that are searched together

Name = TypeVar('Name', bound=Hashable)


def channel_ranges(kernels: Mapping[Name, tuple[np.ndarray, Any, QuantConfig]]) -> dict[Name, np.ndarray]:
  """The range of each channel that quantizes it with the least error, by the layer's criterion.

  A channel of zeros takes the mean of the kernel's other ranges, so that its weights find levels of their size; 1 where
  all are zeros.

  Args:
    kernels: by name the channels `[..., C_out, n]`, their bit-widths, broadcastable against `[..., C_out]`, and the
      configuration.

  Returns:
    By name, `[..., C_out]`, float32.

  Raises:
    ValueError: values that are not finite; names the kernel.
  """
  found: dict[Name, np.ndarray] = {}
  groups: dict[tuple, list[tuple[Name, np.ndarray, np.ndarray]]] = {}
  for name, (values, bits, quant) in kernels.items():
    values = checked(np.asarray(values, np.float32), f'kernel of {name}')
    shape, count = values.shape[:-1], values.shape[-1]
    if not values.size:
      found[name] = np.ones(shape, np.float32)
      continue
    if count > SAMPLES:
      values, count = values[..., positions(count)], SAMPLES
    length = next(length for length in _LENGTHS if length >= count)
    choices = quant.allowed_kernel_bits
    if quant.kernel_bits is not None and quant.kernel_bits not in choices:
      choices = (quant.kernel_bits,)
    least = min((b for b in choices if b), default=0)  # nothing tells the ranges of 0 bits apart
    widths = np.broadcast_to(np.maximum(np.asarray(bits, np.float32), least), shape).reshape(-1)
    groups.setdefault((choices, quant.kernel_scheme, quant.calibration, length), []).append(
      (name, values.reshape(-1, count), widths)
    )
  for (choices, scheme, criterion, length), group in groups.items():
    padded = [np.pad(rows, ((0, 0), (0, length - rows.shape[1]))) for _, rows, _ in group]
    sizes = [np.full(len(rows), rows.shape[1], np.int32) for _, rows, _ in group]
    rows, bits, counts = map(np.concatenate, (padded, [widths for *_, widths in group], sizes))
    best = _searched(rows, bits, counts, choices, scheme, criterion)
    ends = np.cumsum([len(rows) for _, rows, _ in group])
    found |= {name: part for (name, *_), part in zip(group, np.split(best, ends[:-1]), strict=True)}
  return {name: _with_zeros(found[name], np.asarray(values)) for name, (values, _, _) in kernels.items()}


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


def _with_zeros(ranges: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Ranges `[..., C_out]` with those of channels of zeros as the others of their kernel are in the mean."""
  there = np.abs(values).max(axis=-1, initial=0) >= SMALLEST
  ranges = ranges.reshape(there.shape)
  count = there.sum(axis=-1, keepdims=True)
  mean = np.where(there, ranges, 0).sum(axis=-1, keepdims=True, dtype=np.float64) / np.maximum(count, 1)
  return np.where(there, ranges, np.where(count > 0, mean, 1)).astype(np.float32)
