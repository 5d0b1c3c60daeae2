"""How much of a network is quantized, and what is left out and why."""

import dataclasses
import math
from collections import Counter

from fracbits_jax.program.network import Network
from fracbits_jax.program.sites import Site, macs_of
from fracbits_jax.program.trace import Program

_ALWAYS_FLOAT = {
  'bias': 'biases', 'b': 'biases', 'beta': 'biases', 'scale': 'norms and scales', 'gamma': 'norms and scales',
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
  """How much of a network is quantized.

  Attributes:
    weights, quantized: how many weights there are, each layer of a stack for itself, and how many are quantized.
    macs, quantized_macs: multiply-accumulates of a call, products of two activations included.
    parameters, quantized_parameters: entries of all parameters, and of those that quantized weights are made of.
    left: parameters that are no weights, by their path, with their entries.
    by_rule: weights that a rule leaves float.
    products: products of two activations that stay float.
    notes: sentences on what could not be followed.
  """

  weights: int
  quantized: int
  macs: int | float
  quantized_macs: int | float
  parameters: int
  quantized_parameters: int
  left: dict[str, int]
  by_rule: tuple[str, ...] = ()
  products: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  def __str__(self) -> str:
    share = lambda part, whole: f'{100 * part / max(whole, 1):.3g}%'
    line = (
      f'{self.quantized} of {self.weights} weights, {share(self.quantized_macs, self.macs)} of '
      f'{_amount(self.macs)}, {share(self.quantized_parameters, self.parameters)} of parameters'
    )
    reasons = [*_kinds(self.left)]
    if self.products:
      reasons.append(f'{len(self.products)} products of activations')
    if self.by_rule:
      reasons.append(f'by rule {", ".join(self.by_rule)}')
    lines = [f'{line}; float: {", ".join(reasons)}' if reasons else line]
    return '\n'.join([*lines, *self.notes])


def _amount(macs: float) -> str:
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if macs >= size:
      return f'{macs / size:.3g} {unit}MACs'
  return f'{macs:g} MACs'


def _kinds(left: dict[str, int]) -> list[str]:
  """What the parameters are that stay float: biases and norms together, others by their path."""
  kinds: Counter[str] = Counter()
  for path in left:
    kinds[_ALWAYS_FLOAT.get(path.rpartition('/')[2], path)] += 1
  return [kind if kind in left or count == 1 else f'{count} {kind}' for kind, count in kinds.items()]


def measure(network: Network, program: Program) -> Coverage:
  """The coverage of the call that a program is."""
  quantized = {name for name, quant in network.configs.items() if quant is not None}
  names = {site.path: network.name_of(program, site) for site in program.sites.values()}
  at: dict[str, list[Site]] = {}
  for path, name in names.items():
    at.setdefault(name, []).append(program.sites[path])
  macs = {name: macs_of(sites) * math.prod(network.weights[name].stack) for name, sites in at.items()}
  weights = [weight for weight in network.weights.values() if not weight.is_product]
  products = [weight.name for weight in network.weights.values() if weight.is_product]
  sizes = {path: math.prod(shape) for path, shape in program.shapes.items()}
  used = {path for weight in weights for path in weight.params}
  of_quantized = {path for weight in weights if weight.name in quantized for path in weight.params}
  return Coverage(
    weights=sum(math.prod(weight.stack) for weight in weights),
    quantized=sum(math.prod(weight.stack) for weight in weights if weight.name in quantized),
    macs=sum(macs.values()),
    quantized_macs=sum(count for name, count in macs.items() if name in quantized),
    parameters=sum(sizes.values()),
    quantized_parameters=sum(sizes[path] for path in of_quantized),
    by_rule=tuple(weight.name for weight in weights if weight.name not in quantized),
    products=tuple(name for name in products if name not in quantized),
    left={path: size for path, size in sizes.items() if path not in used},
    notes=program.notes,
  )


def check(network: Network, program: Program) -> None:
  """Raises `ValueError` for weights that are neither quantized nor left float by a rule."""
  used = {network.name_of(program, site) for site in program.sites.values()}
  left = [
    name
    for name, weight in network.weights.items()
    if name in used and not weight.is_product and network.configs[name] is None and name not in network.left_by_rule
  ]
  if left:
    raise ValueError(
      f'{", ".join(left)} {"is" if len(left) == 1 else "are"} neither quantized nor left float by a rule: give a '
      'default to quantize_model, or rules that name them, with None for what stays float'
    )
