"""Which weight of a network gets which configuration: rules by name, and what the first and the last one have."""

import dataclasses
import itertools
import re
from collections.abc import Sequence

from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.program.plan import Weight

EDGE_BITS = 8
# The other schemes map every kernel to [-1, 1], which only a batch norm behind the layer puts right.
DEFAULT = QuantConfig(scheme='lsq')
Rules = Sequence[tuple[str, QuantConfig | None]]


def choose_configs(
  weights: Sequence[Weight], rules: Rules, default: QuantConfig | None, edge_bits: int | None
) -> dict[str, QuantConfig | None]:
  """The configuration of each weight, by its name; `None` for one that stays float.

  A product of two activations is quantized where a rule's pattern says `product`, and by no other rule.

  Args:
    weights: in the order in which they are used.
    rules, default, edge_bits: as for `networks.quantize_model`.

  Raises:
    ValueError: no weight, a rule that matches none, or rules that part the layers of a stack.
  """
  if all(weight.is_product for weight in weights):
    raise ValueError(
      'the network has no layer that can be quantized: it multiplies its inputs with no parameter, and looks none up'
    )
  names = [name for weight in weights for name in weight.names()]
  for pattern, _ in rules:
    if not any(_matches(pattern, weight, name) for weight in weights for name in weight.names()):
      raise ValueError(f'the rule {pattern!r} matches no layer: give a pattern for one of {", ".join(names)}')
  alone = [weight for weight in weights if not weight.is_product]
  first, last = alone[0], max(alone, key=lambda weight: weight.places[-1])  # a tied head is the last as well
  configs: dict[str, QuantConfig | None] = {}
  for weight in weights:
    found = {name: _first(rules, weight, name, None if weight.is_product else default) for name in weight.names()}
    for one, other in itertools.pairwise(found):
      if found[one] != found[other]:
        raise ValueError(
          f'{one} and {other} are layers of one stack, and the rules tell them apart: write a rule that matches both'
        )
    quant = next(iter(found.values()), None)
    is_edge = weight in (first, last) and not weight.stack
    configs[weight.name] = quant and _adapted(quant, weight, edge_bits if is_edge else None, is_first=weight is first)
  return configs


def left_by_rule(weights: Sequence[Weight], rules: Rules) -> frozenset[str]:
  """The names of the weights that a rule leaves float."""
  nothing = QuantConfig()
  return frozenset(weight.name for weight in weights if _first(rules, weight, weight.names()[0], nothing) is None)


def _matches(pattern: str, weight: Weight, name: str) -> bool:
  if weight.is_product and 'product' not in pattern:
    return False
  return any(re.fullmatch(pattern, one) for one in (name, weight.name))


def _first(rules: Rules, weight: Weight, name: str, default: QuantConfig | None) -> QuantConfig | None:
  return next((quant for pattern, quant in rules if _matches(pattern, weight, name)), default)


def _adapted(quant: QuantConfig, weight: Weight, edge_bits: int | None, is_first: bool) -> QuantConfig:
  """A configuration as it is for this weight."""
  if quant.quantize_residuals:
    raise ValueError(
      f'{weight.name}: quantize_residuals=True is for the networks of models.create, which say where their residual '
      'sums are: leave it False, or put a layers.QuantIdentity into the network'
    )
  if not weight.has_input:
    quant = dataclasses.replace(quant, weight_only=True, input_bits=None, input_choices=None)
  elif not quant.weight_only:
    quant = dataclasses.replace(quant, signed_input=quant.signed_input or weight.signed)
  if weight.is_product:
    quant = dataclasses.replace(
      quant, granularity='layer', kernel_ranges='layer', group_size=None, input_offset=False, sat=False
    )
  if edge_bits is not None and quant.kernel_bits is None:
    quant = dataclasses.replace(quant, kernel_bits=edge_bits)
  if edge_bits is not None and is_first and quant.learns_input:
    quant = dataclasses.replace(quant, input_bits=edge_bits)
  return quant
