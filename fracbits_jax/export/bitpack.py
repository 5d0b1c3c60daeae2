"""Integers of 0 to 16 bits, side by side without gaps."""

import math

import numpy as np


def packed_bytes(shape: tuple[int, ...], bits: np.ndarray) -> int:
  """How many bytes `pack` needs for codes `[..., C_out]` of `bits`, `()` or `[C_out]`."""
  total = math.prod(shape[:-1]) * sum(int(b) for b in np.broadcast_to(bits, shape[-1:]))
  return -(-total // 8)


def pack(codes: np.ndarray, bits: np.ndarray) -> bytes:
  """Packs codes channel by channel, each at its channel's bit-width, the lowest bit of a code and of a byte first.

  Args:
    codes: `[..., C_out]`, from 0 to 2^bits - 1.
    bits: `()` or `[C_out]`, from 0 to 16.
  """
  rows = codes.reshape(-1, codes.shape[-1]).T
  runs = [_to_bits(rows[start:stop], width) for start, stop, width in _runs(bits, len(rows))]
  return np.packbits(np.concatenate(runs), bitorder='little').tobytes() if runs else b''


def unpack(data: bytes, shape: tuple[int, ...], bits: np.ndarray) -> np.ndarray:
  """The codes that `pack` was given, int32; `ValueError` where `data` has another length."""
  if len(data) != packed_bytes(shape, bits):
    raise ValueError(f'{len(data)} bytes for codes that take {packed_bytes(shape, bits)}')
  stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder='little')
  count, channels, at = math.prod(shape[:-1]), shape[-1], 0
  rows = np.zeros((channels, count), np.int32)
  for start, stop, width in _runs(bits, channels):
    size = (stop - start) * count * width
    digits = stream[at : at + size].reshape(stop - start, count, width)
    for i in range(width):
      rows[start:stop] |= digits[..., i].astype(np.int32) << i
    at += size
  return rows.T.reshape(shape)


def _runs(bits: np.ndarray, channels: int) -> list[tuple[int, int, int]]:
  """(first channel, end, bit-width) of neighbouring channels with one bit-width."""
  widths = np.broadcast_to(np.asarray(bits, int), (channels,))
  starts = np.flatnonzero(np.diff(widths, prepend=-1))
  return [
    (int(start), int(stop), int(widths[start])) for start, stop in zip(starts, [*starts[1:], channels], strict=True)
  ]


def _to_bits(rows: np.ndarray, width: int) -> np.ndarray:
  return ((rows[..., None] >> np.arange(width)) & 1).astype(np.uint8).reshape(-1)
