"""The integers that quantized values stand for.

A value lies on the grid scale (code - zero), with codes 0, 1, ..., 2^bits - 1. Where zero is half an integer, 2 code -
2 zero is an integer as well, an odd one, on a grid of half the scale.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax import layers, quantize
from fracbits_jax.layers import QuantConfig, operands
from fracbits_jax.quantize import groups

_TINY = 1e-12


def spacing(scheme: str, bits: np.ndarray, alpha: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Scale and zero of a grid with two sides, of a kernel or of signed inputs.

  Args:
    scheme: `original`, `modified`, `lsq` or `balanced`.
    bits: integers, any shape.
    alpha: what the quantizer's range [-1, 1] is scaled by; with the last two its range, which may be one for each
      channel or each weight.

  Returns:
    Two float64 arrays, the scale in the shape that `bits` and `alpha` have together, the zero in that of `bits`; both
    are 0 for 0 bits.
  """
  levels, alpha = 2.0**bits, np.asarray(alpha, np.float64)
  if scheme == 'lsq':
    scale, zero = np.where(bits > 1, 2 * alpha / levels, alpha), np.where(bits > 1, levels / 2, 0.5)
  elif scheme == 'balanced':
    scale, zero = 2 * alpha / levels, (levels - 1) / 2
  else:
    largest = np.maximum(levels - (scheme == 'original'), 1)
    scale, zero = 2 * alpha / largest, largest / 2
  return np.where(bits > 0, scale, 0.0), np.where(bits > 0, zero, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Where the quantized inputs of a layer lie.

  Attributes:
    bits: bit-width, an integer; 0 leaves the one value 0.
    alpha: the clip.
    signed: whether the range has two sides.
    scheme: `lsq` or another, as of the layer.
    moved: how many steps the codes lie higher than two's complement, by the offset of a range.
  """

  bits: int
  alpha: float
  signed: bool
  scheme: str
  moved: int = 0

  @property
  def scale(self) -> float:
    """Distance between neighbours."""
    if self.signed:
      return float(spacing(self._two_sided, np.asarray(self.bits), self.alpha)[0])
    return self.alpha / (2**self.bits - 1) if self.bits else 0.0

  @property
  def step(self) -> float:
    """What inputs are divided by: the scale, but for a clip below 1e-12, which the quantizers take as 1e-12."""
    return self.scale * max(self.alpha, _TINY) / self.alpha if self.alpha else 0.0

  @property
  def zero(self) -> float:
    """The code of the value 0, an integer or half an integer."""
    return float(spacing(self._two_sided, np.asarray(self.bits), self.alpha)[1]) - self.moved if self.signed else 0.0

  @property
  def _two_sided(self) -> str:
    return 'lsq' if self.scheme == 'lsq' else 'original'  # inputs know no `modified`

  def quantize(self, x: jax.Array) -> jax.Array:
    """The values on the grid, as the network computes them in training and evaluation."""
    quant = QuantConfig(scheme=self.scheme, signed_input=self.signed)
    alpha = jnp.float32(self.alpha)
    if self.moved:
      alpha = jnp.stack([alpha, alpha * (self.moved / 2 ** (self.bits - 1))])
    return layers.quantize_input(quant, x, jnp.float32(self.bits), alpha, learned=False)

  def codes(self, values: jax.Array) -> jax.Array:
    """The codes of values on the grid, int32."""
    return jnp.round(values / jnp.float32(self.scale or 1.0) + jnp.float32(self.zero)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
  """A quantized kernel.

  Attributes:
    codes: integers from 0 to 2^bits - 1, `[..., C_out]`, int32; 0 where there are 0 bits.
    bits: bit-widths, `()` or `[C_out]`, int32.
    scheme: `original`, `modified`, `lsq` or `balanced`.
    alpha: the range with the last two, one float or a float32 array `[C_out]` with one for each channel, `[G, C_out]`
      with one for each group; SAT's factor or 1 otherwise.
    group_size: of the groups that have ranges of their own, see `quantize.groups`; `None` for none.
    range_bits: 16 where the ranges of groups are float16 numbers.
    exact: the values as the network computes them, `[..., C_out]`, float32, where they are known.
  """

  codes: np.ndarray
  bits: np.ndarray
  scheme: str
  alpha: Any
  exact: np.ndarray | None = None
  group_size: int | None = None
  range_bits: int = 32

  @property
  def ranges(self) -> Any:
    """`alpha`, or with groups the range of each weight."""
    return self.alpha if self.group_size is None else groups.spread(self.alpha, self.codes.shape, self.group_size)

  @property
  def scale(self) -> np.ndarray:
    """Distance between neighbours, `()`, `[C_out]` or with groups of each weight, float64; 0 where there are 0 bits."""
    return spacing(self.scheme, self.bits, self.ranges)[0]

  @property
  def zero(self) -> np.ndarray:
    """The code of the value 0, in the shape of `bits`, float64."""
    return spacing(self.scheme, self.bits, self.alpha)[1]

  @functools.cached_property
  def value(self) -> np.ndarray:
    """The values `[..., C_out]`, float32: `exact` if they are known, else within a rounding of them."""
    if self.exact is not None:
      return self.exact
    codes, bits, alpha = (np.asarray(x, np.float32) for x in (self.codes, self.bits, self.ranges))
    levels = np.exp2(bits)
    if self.scheme == 'lsq':
      half = levels / 2
      level = np.where(bits > 1, (codes - half) / half, codes - np.float32(0.5))
      return np.where(bits > 0, alpha * level, 0).astype(np.float32)
    if self.scheme == 'balanced':
      half = levels / 2
      return np.where(bits > 0, alpha * ((codes - half + np.float32(0.5)) / half), 0).astype(np.float32)
    largest = np.maximum(levels - (self.scheme == 'original'), 1)
    return np.where(bits > 0, (2 * (codes / largest) - 1) * alpha, 0).astype(np.float32)


def input_grid(quant: QuantConfig, bits: int, alpha: Any) -> Grid:
  """The grid of a layer's inputs, from their clip or from a range and its middle."""
  alpha, *offset = np.asarray(alpha, np.float32).reshape(-1)
  moved, half = 0, 2.0 ** (bits - 1)
  if offset and bits > 1:  # as the network rounds it, in float32
    moved = int(
      np.clip(np.round(offset[0] / np.maximum(abs(alpha), np.float32(_TINY)) * np.float32(half)), 1 - half, half)
    )
  return Grid(bits=bits, alpha=float(abs(alpha)), signed=quant.signed_input, scheme=quant.scheme, moved=moved)


def kernel_codes(quant: QuantConfig, kernel: Any, bits: Any, alpha: Any = None) -> Kernel:
  """The codes of a float kernel `[..., C_out]`.

  Args:
    quant: how its layer is quantized.
    kernel: the kernel.
    bits: integers, `()` or `[C_out]`.
    alpha: its range with `lsq`, `()`, `[C_out]` or, in groups, `[G, C_out]`.
  """
  bits = np.asarray(bits).astype(np.int32)
  kernel, plain = jnp.asarray(kernel), dataclasses.replace(quant, sat=False)
  value = _quantized(plain, kernel, bits, alpha)
  exact = value if quant == plain else _quantized(quant, kernel, bits, alpha)
  if quant.scheme == 'lsq':
    alpha = np.abs(np.asarray(operands.stored_ranges(quant, jnp.asarray(alpha, jnp.float32))))
    ranges = alpha if quant.group_size is None else groups.spread(alpha, kernel.shape, quant.group_size)
    alpha = alpha if alpha.ndim else float(alpha)
  else:
    alpha, ranges = float(quantize.rescale_factor(value)) if quant.sat else 1.0, 1.0
  scale, zero = spacing(quant.kernel_scheme, bits, ranges)
  found = np.round(np.asarray(value, np.float64) / np.where(scale > 0, scale, 1) + zero)
  codes = np.where(bits > 0, found, 0).astype(np.int32)
  how = dict(codes=codes, bits=bits, scheme=quant.kernel_scheme, alpha=alpha, exact=np.asarray(exact, np.float32))
  if quant.group_size is None:
    return Kernel(**how)
  return Kernel(**how, group_size=quant.group_size, range_bits=quant.range_bits)


@functools.partial(jax.jit, static_argnums=0)
def _quantized(quant: QuantConfig, kernel: jax.Array, bits: jax.Array, alpha: jax.Array | None) -> jax.Array:
  """A kernel on its grid, as the network computes it."""
  return layers.quantize_kernel(quant, kernel, bits, alpha, learned=False)
