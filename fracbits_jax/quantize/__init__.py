"""Quantizers whose bit-width is a real number: arrays in, arrays out.

The method is FracBits (Yang and Jin, AAAI 2021, arXiv 2007.02017). In the order of the paper: `bitwidths`, what a real
number of bits stands for; `uniform` and `fractional` on the unit interval; `kernel`, DoReFa's kernels; `activation`,
PACT's inputs; `rescale`, the factor of SAT; and `lsq`, learned step sizes.
"""

from fracbits_jax.quantize import bitwidths, lsq
from fracbits_jax.quantize.dorefa import kernel
from fracbits_jax.quantize.pact import activation
from fracbits_jax.quantize.sat import rescale, rescale_factor
from fracbits_jax.quantize.unit import SCHEMES, fractional, uniform

__all__ = [
  'SCHEMES', 'activation', 'bitwidths', 'fractional', 'kernel', 'lsq', 'rescale', 'rescale_factor', 'uniform',
]  # fmt: skip
