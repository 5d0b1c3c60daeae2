"""What a program multiplies with, counted over its jaxpr by rules of its own: nothing of `fracbits_jax` is used."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Origin:
  """From what a value is computed: from inputs or not, and from which parameters."""

  inputs: bool
  params: frozenset[str] = frozenset()

  def __or__(self, other: 'Origin') -> 'Origin':
    return Origin(self.inputs or other.inputs, self.params | other.params)


_CONSTANT = Origin(False)


@dataclasses.dataclass
class Count:
  """What was counted.

  Attributes:
    weights: parameters that a computed value is multiplied with, by their path: through an operand of a matrix product
      or a convolution that is computed from parameters alone.
    tables: parameters that are looked up in.
    merged: parameters that meet other parameters alone in a product.
    macs: multiply-accumulates of all matrix products and convolutions of which one operand depends on the inputs.
    merged_macs: of those between parameters.
    constant_macs: of those with a constant, such as the identity by which patches of an image are taken.
  """

  weights: set[str] = dataclasses.field(default_factory=set)
  tables: set[str] = dataclasses.field(default_factory=set)
  merged: set[str] = dataclasses.field(default_factory=set)
  macs: int = 0
  merged_macs: int = 0
  constant_macs: int = 0


def count(function: Callable[[Mapping[str, Any]], Any], params: Mapping[str, Any], inputs: Any) -> Count:
  """What a call multiplies with.

  Args:
    function: `function(params, inputs)`.
    params: by path.
    inputs: everything that the call depends on beside them.
  """
  closed = jax.make_jaxpr(function)(params, inputs)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  origins = [Origin(False, frozenset({path[0].key})) for path, _ in leaves]
  origins += [Origin(True) for _ in range(len(closed.jaxpr.invars) - len(origins))]
  found = Count()
  _run(closed.jaxpr, origins, 1, found)
  return found


def _run(jaxpr: Any, inputs: Sequence[Origin], times: int, found: Count) -> list[Origin]:
  known = dict.fromkeys(jaxpr.constvars, _CONSTANT) | dict(zip(jaxpr.invars, inputs, strict=True))
  of = lambda atom: _CONSTANT if isinstance(atom, core.Literal) else known[atom]
  for equation in jaxpr.eqns:
    operands = [of(atom) for atom in equation.invars]
    results = _equation(equation, operands, times, found)
    known.update(zip(equation.outvars, results, strict=True))
  return [of(atom) for atom in jaxpr.outvars]


def _equation(equation: Any, operands: list[Origin], times: int, found: Count) -> list[Origin]:
  op, params = equation.primitive.name, equation.params
  if op == 'scan':
    return _scan(params, operands, times, found)
  if op == 'while':
    n, m = params['cond_nconsts'], params['cond_nconsts'] + params['body_nconsts']
    carry = _settled(
      lambda carry, into: _run(_open(params['body_jaxpr']), [*operands[n:m], *carry], times, into), operands[m:]
    )
    _run(_open(params['body_jaxpr']), [*operands[n:m], *carry], times, found)
    return carry
  if op == 'cond':
    return _cond(params, operands, times, found)
  inner = [value for value in params.values() if hasattr(_open(value), 'eqns')]
  if inner:  # a call: of its programs, such as a custom derivative's, the first is the one that runs
    return _run(_open(inner[0]), operands[-len(_open(inner[0]).invars) :], times, found)
  macs = _macs(equation) * times
  if macs:
    if any(not one.inputs and not one.params for one in operands):
      found.constant_macs += macs
    elif any(one.inputs for one in operands):
      found.macs += macs
      for one in operands:
        if not one.inputs:
          found.weights |= one.params
    else:
      found.merged_macs += macs
      found.merged |= operands[0].params | operands[1].params
  looked_up = op == 'gather' or (op == 'dynamic_slice' and any(one.inputs for one in operands[1:]))
  if looked_up and not operands[0].inputs and len(equation.invars[0].aval.shape) > 1:
    found.tables |= operands[0].params
  whole = _CONSTANT
  for one in operands:
    whole |= one
  return [whole] * len(equation.outvars)


def _open(value: Any) -> Any:
  """A jaxpr without its constants."""
  return getattr(value, 'jaxpr', value)


def _settled(body: Callable[[list[Origin], Count], list[Origin]], carry: list[Origin]) -> list[Origin]:
  """What a loop carries is computed from, once another pass adds nothing."""
  while True:
    behind = [a | b for a, b in zip(carry, body(carry, Count()), strict=False)]
    if behind == carry:
      return carry
    carry = behind


def _scan(params: Mapping[str, Any], operands: list[Origin], times: int, found: Count) -> list[Origin]:
  n, m = params['num_consts'], params['num_consts'] + params['num_carry']
  jaxpr, length = _open(params['jaxpr']), params['length']
  run = lambda carry, into: _run(jaxpr, [*operands[:n], *carry, *operands[m:]], times * length, into)
  carry = _settled(run, operands[n:m])
  return [*carry, *run(carry, found)[m - n :]]


def _cond(params: Mapping[str, Any], operands: list[Origin], times: int, found: Count) -> list[Origin]:
  """Every branch of a conditional counts, as each is a layer of its own."""
  results = [_run(_open(jaxpr), operands[1:], times, found) for jaxpr in params['branches']]
  joined = []
  for values in zip(*results, strict=True):
    whole = operands[0]
    for value in values:
      whole |= value
    joined.append(whole)
  return joined


def _macs(equation: Any) -> int:
  """Multiply-accumulates of one equation: of a matrix product or a convolution."""
  op, params = equation.primitive.name, equation.params
  if op == 'dot_general':
    (contracted, _), batch = params['dimension_numbers']
    if not contracted and any(
      len(axes) == len(var.aval.shape) for axes, var in zip(batch, equation.invars, strict=True)
    ):
      return 0  # one operand scales the entries of the other, as `*` does
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return math.prod(out) * math.prod(left[axis] for axis in contracted)
  if op == 'ragged_dot_general':
    (contracted, _), _ = params['ragged_dot_dimension_numbers'].dot_dimension_numbers
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return math.prod(out) * math.prod(left[axis] for axis in contracted)
  if op == 'conv_general_dilated':
    numbers = params['dimension_numbers']
    inputs, kernel = (var.aval.shape for var in equation.invars)
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    if math.prod(params['lhs_dilation']) > 1:  # transposed: each input takes part once for each entry of its kernels
      per_input = math.prod(kernel) // kernel[numbers.rhs_spec[1]] // params['feature_group_count']
      return math.prod(inputs) * per_input
    return math.prod(equation.outvars[0].aval.shape) * per_output
  return 0
