"""Layers with fractional bit-widths, and networks as they are with such layers in the place of their own.

Public: `QuantConfig`, how a layer is quantized; `QuantConv`, `QuantDense`, linen layers; `quantize_model` and
`from_float`, for linen and NNX networks that others wrote; `calibrate`, where ranges start; `wrap` and `nnx_adapter`.
"""

from fracbits_jax.layers.linen import (
  OUTPUTS,
  GatedBatchNorm,
  QuantConv,
  QuantDense,
  Quantized,
  gate,
  quantized_class,
  watch_layers,
)
from fracbits_jax.layers.networks import quantize_model
from fracbits_jax.layers.operands import apply_quantizer, quantize_input, quantize_kernel, replace_quantizers
from fracbits_jax.layers.quant_config import FLOAT_BITS, GRANULARITIES, SCHEMES, QuantConfig
from fracbits_jax.layers.wrap import from_float

__all__ = [
  'FLOAT_BITS', 'GRANULARITIES', 'OUTPUTS', 'SCHEMES', 'GatedBatchNorm', 'QuantConfig', 'QuantConv', 'QuantDense',
  'Quantized', 'apply_quantizer', 'from_float', 'gate', 'quantize_input', 'quantize_kernel', 'quantize_model',
  'quantized_class', 'replace_quantizers', 'watch_layers',
]  # fmt: skip
