"""Which layer of a network gets which configuration: rules by path, and what first and last layers have."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fracbits_jax.layers.quant_config import QuantConfig

EDGE_BITS = 8
# The other schemes map every kernel to [-1, 1], which only a batch norm behind the layer puts right.
DEFAULT = QuantConfig(scheme='lsq')
Rules = Sequence[tuple[str, QuantConfig | None]]


def choose_configs(
  signed: Mapping[str, bool],
  rules: Rules,
  default: QuantConfig | None,
  edge_bits: int | None,
  kinds: Sequence[str],
) -> dict[str, QuantConfig]:
  """The configuration of each layer that is quantized, by path.

  Args:
    signed: for each layer in the order in which they run, whether its inputs can be negative.
    rules, default, edge_bits: as for `quantize_model`.
    kinds: the classes of layers that can be quantized, for an error.

  Raises:
    ValueError: a network without layers, or a rule that matches none.
  """
  paths = list(signed)
  if not paths:
    raise ValueError(
      f'the network has no layer that can be quantized: build it from {", ".join(kinds)}, or from what extends them'
    )
  for pattern, _ in rules:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise ValueError(f'the rule {pattern!r} matches no layer: give a pattern for one of {", ".join(paths)}')
  configs = {}
  for path in paths:
    quant = next((quant for pattern, quant in rules if re.fullmatch(pattern, path)), default)
    if quant is None:
      continue
    changes: dict[str, Any] = {'signed_input': quant.signed_input or signed[path]}
    if edge_bits is not None and path in (paths[0], paths[-1]) and quant.kernel_bits is None:
      changes['kernel_bits'] = edge_bits
    if edge_bits is not None and path == paths[0] and quant.learns_input:
      changes['input_bits'] = edge_bits
    configs[path] = dataclasses.replace(quant, **changes)
  return configs
