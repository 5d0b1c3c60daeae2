"""Integers of 0 to 16 bits, side by side without gaps."""

import math

import numpy as np

_BLOCK = 2**16  # codes that are unpacked at a time: their indices take several times as many bytes


def packed_bytes(shape: tuple[int, ...], bits: np.ndarray) -> int:
  """How many bytes `pack` needs for codes `[..., C_out]` of `bits`, `()` or `[C_out]`."""
  widths = int(np.sum(bits, dtype=np.int64)) if np.ndim(bits) else shape[-1] * int(bits)
  return -(-math.prod(shape[:-1]) * widths // 8)


def pack(codes: np.ndarray, bits: np.ndarray) -> bytes:
  """Packs codes channel by channel, each at its channel's bit-width, the lowest bit of a code and of a byte first.

  Args:
    codes: `[..., C_out]`, from 0 to 2^bits - 1.
    bits: `()` or `[C_out]`, from 0 to 16.
  """
  rows = codes.reshape(-1, codes.shape[-1]).T
  runs = [_to_bits(rows[start:stop], width) for start, stop, width in _runs(bits, len(rows))]
  return np.packbits(np.concatenate(runs), bitorder='little').tobytes() if runs else b''


def unpack(data: bytes | memoryview, shape: tuple[int, ...], bits: np.ndarray) -> np.ndarray:
  """The codes that `pack` was given, int32; `ValueError` where `data` has another length."""
  if len(data) != packed_bytes(shape, bits):
    raise ValueError(f'{len(data)} bytes for codes that take {packed_bytes(shape, bits)}')
  count, channels = math.prod(shape[:-1]), shape[-1]
  stream = np.append(np.frombuffer(data, np.uint8), np.zeros(2, np.uint8))  # a code is looked for in three bytes
  widths = np.broadcast_to(np.asarray(bits, np.int64), (channels,))
  starts = np.cumsum(widths * count) - widths * count
  codes = np.zeros((channels, count), np.int32)
  for width in np.unique(widths[widths > 0]).tolist():
    of_width = np.flatnonzero(widths == width)
    for first in range(0, len(of_width) * count, _BLOCK):
      nth, column = np.divmod(np.arange(first, min(first + _BLOCK, len(of_width) * count)), count)
      row = of_width[nth]
      codes[row, column] = _codes(stream, starts[row] + column * width, width)
  return codes.T.reshape(shape)


def _codes(stream: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
  """The codes of one bit-width that begin at bits of a stream of bytes."""
  byte = at >> 3
  word = stream[byte] | stream[byte + 1].astype(np.int32) << 8 | stream[byte + 2].astype(np.int32) << 16
  return (word >> (at & 7).astype(np.int32)) & (2**width - 1)


def _runs(bits: np.ndarray, channels: int) -> list[tuple[int, int, int]]:
  """(first channel, end, bit-width) of neighbouring channels with one bit-width."""
  widths = np.broadcast_to(np.asarray(bits, int), (channels,))
  starts = np.flatnonzero(np.diff(widths, prepend=-1))
  return [
    (int(start), int(stop), int(widths[start])) for start, stop in zip(starts, [*starts[1:], channels], strict=True)
  ]


def _to_bits(rows: np.ndarray, width: int) -> np.ndarray:
  return ((rows[..., None] >> np.arange(width)) & 1).astype(np.uint8).reshape(-1)
