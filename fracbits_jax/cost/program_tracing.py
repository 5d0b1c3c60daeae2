"""The layer table of a network that `quantize_model` made, and what of it is quantized."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from fracbits_jax.cost.layer_table import Layer, bit_fields, per_example
from fracbits_jax.program.network import Network
from fracbits_jax.program.plan import Weight
from fracbits_jax.program.sites import Site, macs_of
from fracbits_jax.program.trace import Program

_BIASES = ('bias', 'b')


def rows(network: Network, program: Program, examples: int) -> tuple[Layer, ...]:
  """The layer table of a network, in the order in which its weights are used.

  Args:
    network: the network.
    program: of the call that is counted.
    examples: how many examples that call has.
  """
  used: dict[str, list[Site]] = {}
  for site in program.sites.values():
    used.setdefault(network.name_of(program, site), []).append(site)
  taken = {path for weight in network.weights.values() for path in weight.params}  # no bias, or one that is counted
  found: list[Layer] = []
  for name, sites in used.items():
    weight, quant = network.weights[name], network.configs.get(name)
    row = Layer(
      name=name,
      macs=_macs(sites, examples),
      weights=weight.size,
      channels=weight.count,
      kind=weight.kind,
      biases=_biases(network.shapes, weight, taken),
      stack=weight.stack,
      path=name,
      **bit_fields(None if quant is not None and weight.is_product and quant.weight_only else quant),
    )
    found += [dataclasses.replace(row, name=weight.at(index), index=index) for index in weight.indices()]
  return tuple(found)


def _macs(sites: Sequence[Site], examples: int) -> int | float:
  """Multiply-accumulates of one kernel for one example; what does not depend on the inputs is computed once."""
  used = [site for site in sites if site.kind != 'embedding']
  batched = macs_of([site for site in used if site.batched])
  return per_example(batched, examples) + macs_of([site for site in used if not site.batched])


def _biases(shapes: Mapping[str, tuple[int, ...]], weight: Weight, taken: set[str]) -> int:
  """Entries of the biases beside a weight, each of which is counted once."""
  modules = dict.fromkeys(path.rpartition('/')[0] for path in weight.params)
  found = [f'{module}/{name}'.strip('/') for module in modules for name in _BIASES]
  found = [bias for bias in found if bias in shapes and bias not in taken]
  taken.update(found)
  return sum(math.prod(shapes[bias]) for bias in found) // max(math.prod(weight.stack), 1)
