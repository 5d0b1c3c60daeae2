"""The integers of Qwix: which of its types, and which of its ranges, hold the levels of a layer exactly.

A type of Qwix is `int2` to `int8`; those of up to four bits are stored as int4, the others as int8. It quantizes inputs
with a range that a rule gives:

    fixed,-a,a       code = clip(round(x / s), -2^(b-1), 2^(b-1) - 1),    s = a / (2^(b-1) - 1/2)
    fixed,low,high   code = clip(round(x / s + z), -2^(b-1), 2^(b-1) - 1),    s = (high - low) / (2^b - 1),
                     z = round(-2^(b-1) - low / s), of int4 and int8 alone

So two's complement levels are the first with b bits, with an offset the second; levels from 0 to 2^b - 1 are the second
at 8 bits, and where no input is negative the first with one bit more.
"""

import dataclasses

import numpy as np

from fracbits_jax.export.values import of_kernel
from fracbits_jax.graph.grid import Grid, Kernel

MOST_BITS = 8
_OFFSET_BITS = (4, 8)  # at which a type has a zero point
SEARCH = "search with --config.quant.choices='(4, 8)'"
LSQ = 'train with --config.quant.scheme=lsq'


def is_narrow(qtype: str) -> bool:
  """Whether a type is stored as int4, not as int8."""
  return int(qtype.removeprefix('int')) <= 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """How Qwix quantizes inputs.

  Attributes:
    qtype: `int2` to `int8`.
    method: the calibration method of the rule, with the range.
  """

  qtype: str
  method: str


def of_inputs(layer: str, grid: Grid, *, nonnegative: bool, is_conv: bool) -> Range:
  """The type and the range of a layer's inputs.

  Args:
    layer: its name.
    grid: where its quantized inputs lie.
    nonnegative: whether none of its inputs is negative.
    is_conv: whether it is a convolution, which XLA runs with int8 alone: on the CPU it refuses int4.

  Raises:
    ValueError: one sentence: no type of Qwix has these levels.
  """
  bits, scale = grid.bits, grid.scale
  if not 0 < bits <= MOST_BITS:
    raise ValueError(f'the inputs of {layer} have {bits} bits, and Qwix takes 1 to 8: {SEARCH}')
  if not grid.alpha > 0:
    raise ValueError(f'the inputs of {layer} are clipped at 0, so they are all 0: give the layer a larger clip')
  if grid.signed and grid.zero % 1:
    raise ValueError(f'the inputs of {layer} have their zero between two levels, and Qwix has it at one: {LSQ}')
  half = 2 ** (bits - 1)
  if not grid.signed:
    if bits == MOST_BITS or (bits == 4 and not nonnegative):
      found = Range(qtype=f'int{bits}', method=_between(0.0, (2**bits - 1) * scale))
    elif nonnegative:
      found = _around_zero(bits + 1, scale)
    else:
      raise ValueError(
        f'the inputs of {layer} may be negative and are cut at 0 to {bits} bits, which Qwix has with 4 and 8 alone: '
        f"search with --config.quant.input_choices='(8,)'"
      )
  elif not grid.moved:
    found = _around_zero(bits, scale)
  elif bits in _OFFSET_BITS:
    found = Range(qtype=f'int{bits}', method=_between((grid.moved - half) * scale, (grid.moved + half - 1) * scale))
  else:
    raise ValueError(
      f'the inputs of {layer} have a range with an offset at {bits} bits, which Qwix has with 4 and 8 alone: search '
      "with --config.quant.input_choices='(8,)' or --config.quant.input_offset=False"
    )
  if is_conv and is_narrow(found.qtype):
    raise ValueError(
      f'the inputs of {layer}, a convolution, have {bits} bits and would be int4, which XLA convolves on TPUs at most: '
      "search with --config.quant.input_choices='(8,)'"
    )
  return found


def of_images(low: float, high: float) -> Range:
  """The range of integers from 0 to 255, moved and scaled, whose 0 is one of their values."""
  return Range(qtype='int8', method=_between(low, high))


def levels(layer: str, kernel: Kernel) -> tuple[np.ndarray, np.ndarray, int]:
  """The levels of a kernel as int8, their scale, and the bits that the levels take.

  A scale is `()` or `[..., C_out]`, float32, and of groups in the shape of the levels; where there are 0 bits it is 1.
  A kernel whose zero lies between two of its codes has odd levels, at half the scale and one more bit.

  Raises:
    ValueError: one sentence: the levels take more than 8 bits.
  """
  found = of_kernel(kernel)
  bits = int(np.max(kernel.bits, initial=0))
  if bits > MOST_BITS:
    raise ValueError(f'the kernel of {layer} has {bits} bits, and Qwix takes up to 8: {SEARCH}')
  largest = max(int(found.integers.max(initial=0)), -int(found.integers.min(initial=0)) - 1)
  width = max(bits, largest.bit_length() + 1, 2)
  if width > MOST_BITS:
    raise ValueError(
      f'the kernel of {layer} has its zero between two levels of {bits} bits, and Qwix has it at one: {LSQ} and '
      'kernel_levels=twos_complement, or modified'
    )
  scale = np.asarray(found.scale, np.float64)
  return found.integers.astype(np.int8), np.where(scale > 0, scale, 1.0).astype(np.float32), width


def _around_zero(bits: int, scale: float) -> Range:
  """A type without a zero point at a scale."""
  bound = np.float32(2 ** (bits - 1) - 0.5)
  limit = np.float32(scale * bound)
  for near in (limit, np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(0))):
    if near / bound == np.float32(scale):  # as Qwix divides
      limit = near
      break
  return Range(qtype=f'int{bits}', method=f'fixed,{-float(limit)!r},{float(limit)!r}')


def _between(low: float, high: float) -> str:
  """The method of a type with a zero point."""
  return f'fixed,{float(np.float32(low))!r},{float(np.float32(high))!r}'
