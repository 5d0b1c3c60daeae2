"""Layers with fractional bit-widths, in the explicit form that the networks which come along are written in.

Public: `QuantConfig`, how a layer is quantized; `QuantConv`, `QuantConvTranspose`, `QuantDense`, `QuantEmbed`,
`QuantIdentity`, linen layers; `calibrate`, where ranges start; `wrap`, a network of such layers as a float one and with
fixed bits; `stacks`, layers within a scan. Networks that others wrote are for `program`.
"""

import importlib
from typing import Any

from fracbits_jax.layers.linen import (
  OUTPUTS,
  GatedBatchNorm,
  QuantConv,
  QuantConvTranspose,
  QuantDense,
  QuantEmbed,
  QuantIdentity,
  Quantized,
  gate,
  quantized_class,
  watch_layers,
)
from fracbits_jax.layers.operands import apply_quantizer, quantize_input, quantize_kernel, replace_quantizers
from fracbits_jax.layers.quant_config import FLOAT_BITS, GRANULARITIES, SCHEMES, QuantConfig

__all__ = [
  'FLOAT_BITS', 'GRANULARITIES', 'OUTPUTS', 'SCHEMES', 'GatedBatchNorm', 'QuantConfig', 'QuantConv',
  'QuantConvTranspose', 'QuantDense', 'QuantEmbed', 'QuantIdentity', 'Quantized', 'apply_quantizer', 'gate',
  'quantize_input', 'quantize_kernel', 'quantized_class', 'replace_quantizers', 'watch_layers',
]  # fmt: skip

_OF_PROGRAM = ('from_float', 'nnx_adapter', 'quantize_model')  # for networks that others wrote; loaded when first used


def __getattr__(name: str) -> Any:
  if name not in _OF_PROGRAM:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  try:
    return importlib.import_module(f'fracbits_jax.program.{name}')
  except ModuleNotFoundError:
    return getattr(importlib.import_module('fracbits_jax.program'), name)
