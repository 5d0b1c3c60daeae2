"""The integers that quantized values stand for.

A value lies on the grid scale (code - zero), with codes 0, 1, ..., 2^bits - 1. Where zero is half an integer, 2 code -
2 zero are integers as well, all odd, on a grid of half the scale.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax import layers
from fracbits_jax.layers import QuantConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """Where the quantized inputs of a layer lie.

  Attributes:
    bits: bit-width; 0 leaves the one value `0`.
    scale: distance between neighbours, float32.
    zero: the code of the value 0, an integer or half an integer.
    scheme, alpha, signed: as they were quantized, for `quantize.activation` and `lsq.activation`.
  """

  bits: int
  scale: float
  zero: float
  scheme: str
  alpha: float
  signed: bool

  def quantize(self, x: jax.Array) -> jax.Array:
    """The values on the grid, as the network computes them in training and evaluation."""
    quant = QuantConfig(scheme=self.scheme, signed_input=self.signed)
    return layers.quantize_input(quant, x, jnp.float32(self.bits), jnp.float32(self.alpha), learned=False)

  def codes(self, values: jax.Array) -> jax.Array:
    """The codes of values on the grid, int32."""
    scale = self.scale if self.bits else 1.0
    return jnp.round(values / jnp.float32(scale) + jnp.float32(self.zero)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
  """A quantized kernel.

  Attributes:
    codes: integers from 0 to 2^bits - 1, `[..., C_out]`, int32; 0 where there are 0 bits.
    bits: bit-widths, `()` or `[C_out]`, int32.
    scale: distance between neighbours, in the shape of `bits`, float32; 0 where there are 0 bits.
    zero: the code of the value 0, an integer or half an integer, in the shape of `bits`, float32.
    value: the values as the network computes them, `[..., C_out]`, float32: scale (codes - zero) within rounding.
  """

  codes: np.ndarray
  bits: np.ndarray
  scale: np.ndarray
  zero: np.ndarray
  value: np.ndarray


def input_grid(quant: QuantConfig, bits: int, alpha: float) -> Grid:
  """The grid of a layer's inputs."""
  alpha, largest = abs(alpha), 2**bits - 1
  if quant.scheme == 'lsq' and quant.signed_input:
    scale, zero = _twos_complement(np.asarray(bits), alpha)
  elif quant.signed_input:
    scale, zero = 2 * alpha / max(largest, 1), largest / 2
  else:
    scale, zero = alpha / max(largest, 1), 0.0
  scale = float(np.float32(scale)) if bits else 0.0
  settings = {'scheme': quant.scheme, 'alpha': alpha, 'signed': quant.signed_input}
  return Grid(bits=bits, scale=scale, zero=float(zero), **settings)


def kernel_codes(quant: QuantConfig, kernel: np.ndarray, bits: np.ndarray, alpha: np.ndarray | None = None) -> Kernel:
  """The codes of a float kernel `[..., C_out]` with integer bit-widths, `()` or `[C_out]`."""
  bits = np.asarray(bits).astype(np.int32)
  quantized = lambda quant: np.asarray(layers.quantize_kernel(quant, jnp.asarray(kernel), bits, alpha, learned=False))
  value, plain = quantized(quant), quantized(dataclasses.replace(quant, sat=False))
  if quant.scheme == 'lsq':
    scale, zero = _twos_complement(bits, abs(float(alpha)))
  else:
    levels = np.where(bits > 0, 2.0**bits - (quant.scheme == 'original'), 1)
    scale, zero = 2 / levels, (2.0**bits - (quant.scheme == 'original')) / 2
  codes = np.where(bits > 0, np.round(plain.astype(np.float64) / scale + zero), 0).astype(np.int32)
  largest = np.argmax(np.abs(plain))
  factor = value.flat[largest] / plain.flat[largest] if plain.flat[largest] else 1.0  # of SAT
  scale = np.where(bits > 0, scale * factor, 0)
  settings = {'scale': scale.astype(np.float32), 'zero': np.where(bits > 0, zero, 0).astype(np.float32)}
  return Kernel(codes=codes, bits=bits, value=value.astype(np.float32), **settings)


def _twos_complement(bits: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
  """Scale and zero of the grids of `lsq`."""
  half = 2.0 ** (bits - 1)
  return np.where(bits > 1, alpha / half, alpha), np.where(bits > 1, half, 0.5)
