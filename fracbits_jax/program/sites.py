"""The places of a program where something multiplies with a weight, or a row of one is looked up."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from fracbits_jax.program.stored import Stored, Value

# More kernels than these along a batch axis of one product are not layers but the channels of one, and so are those
# along several such axes, as in a convolution with a kernel for each place.
_MOST_STACKED = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """A product with a weight, a look-up in one, or a product of two activations.

  Attributes:
    path: where in the program: the positions of the equations from the outer to the inner one.
    kind: `dense`, `pointwise`, `depthwise`, `standard`, `embedding` or `product`.
    weight: which operand is the weight, or the second activation.
    input: which operand is the input; `None` for a look-up.
    stored: what the weight is computed from; of a product nothing.
    shape: of the weight, without what loops have taken.
    stacked: its axes along which different kernels lie, as in the experts of a mixture.
    input_stacked: the axes of the input that go with them.
    channels: its axes that are output channels.
    macs: multiply-accumulates of one pass of one kernel.
    times: how often one kernel is used in a run of the program, or `None` where that is not known before it runs.
    signed: whether inputs can be negative.
    weight_signed: of a product of two activations: whether the second one can be.
    batched: whether the inputs depend on what the network is called with.
    branches: the conditionals around it, by path, with the branch that it is in.
    scans: the paths of the loops around it whose number of passes is known.
    scope: the names of the modules that it runs in, as JAX keeps them.
  """

  path: tuple[int, ...]
  kind: str
  weight: int
  input: int | None
  stored: Stored
  shape: tuple[int, ...]
  stacked: tuple[int, ...] = ()
  input_stacked: tuple[int, ...] = ()
  channels: tuple[int, ...] = ()
  macs: int = 0
  times: int | None = 1
  signed: bool = True
  weight_signed: bool = True
  batched: bool = True
  branches: tuple[tuple[tuple[int, ...], int], ...] = ()
  scans: tuple[tuple[int, ...], ...] = ()
  scope: str = ''

  @property
  def stack(self) -> tuple[int, ...]:
    """How many kernels there are, by loop and then by stacked axis."""
    return (*(loop.length for loop in self.stored.loops), *(self.shape[axis] for axis in self.stacked))

  @property
  def kernel_shape(self) -> tuple[int, ...]:
    """The shape of one kernel."""
    return tuple(size for axis, size in enumerate(self.shape) if axis not in self.stacked)

  @property
  def kernel_channels(self) -> tuple[int, ...]:
    """The axes of one kernel that are output channels."""
    kept = [axis for axis in range(len(self.shape)) if axis not in self.stacked]
    return tuple(kept.index(axis) for axis in self.channels)


def of_dot(equation: Any, weight: int, stacks: bool = True) -> dict[str, Any] | None:
  """What a `dot_general` says of the site that it is; `None` where one operand only scales the other one's entries."""
  (contracted, batch), other = equation.params['dimension_numbers'], 1 - weight
  shape = equation.invars[weight].aval.shape
  if not contracted[weight] and len(equation.invars[other].aval.shape) == len(batch[other]):
    return None
  free = [axis for axis in range(len(shape)) if axis not in (*contracted[weight], *batch[weight])]
  if not free and not contracted[weight]:
    return None
  macs = math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted[weight])
  stacked, input_stacked = tuple(batch[weight]), tuple(batch[other])
  sizes = math.prod(shape[axis] for axis in stacked)
  if not stacks or not free or len(stacked) != 1 or sizes > _MOST_STACKED:  # what is free of contraction is a channel
    return dict(kind='dense', shape=shape, channels=(*stacked, *free), macs=macs)
  return dict(
    kind='dense',
    shape=shape,
    stacked=stacked,
    input_stacked=input_stacked,
    channels=tuple(free),
    macs=macs // sizes if sizes else 0,
  )


def of_ragged_dot(equation: Any) -> dict[str, Any]:
  """The same for a `ragged_dot_general`: each group of rows has its own matrix, and all of them are one layer."""
  (contracted, _), shape = (
    equation.params['ragged_dot_dimension_numbers'].dot_dimension_numbers,
    equation.invars[1].aval.shape,
  )
  macs = math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted[1])
  return dict(kind='dense', shape=shape, channels=(len(shape) - 1,), macs=macs)


def of_convolution(equation: Any) -> dict[str, Any]:
  """The same for a `conv_general_dilated`, whose second operand is the kernel."""
  params, (x, kernel) = equation.params, (var.aval for var in equation.invars)
  numbers = params['dimension_numbers']
  output, inputs, *window = numbers.rhs_spec
  channels, groups = kernel.shape[output], params['feature_group_count']
  depthwise = groups > 1 and kernel.shape[inputs] == 1
  kind = 'depthwise' if depthwise else 'pointwise' if math.prod(kernel.shape[a] for a in window) == 1 else 'standard'
  if any(d != 1 for d in params['lhs_dilation']):  # transposed: each input takes every weight of its channel once
    uses = math.prod(x.shape) // max(x.shape[numbers.lhs_spec[1]], 1)
  else:  # each output does
    uses = math.prod(equation.outvars[0].aval.shape) // max(channels, 1)
  return dict(kind=kind, shape=kernel.shape, channels=(output,), macs=uses * kernel.size)


def of_gather(equation: Any) -> dict[str, Any]:
  """The same for a `gather` from a table of rows; an axis that is taken whole has no rows, though it has an index."""
  shape, numbers = equation.invars[0].aval.shape, equation.params['dimension_numbers']
  sizes, indexed = equation.params['slice_sizes'], sorted(numbers.start_index_map)
  rows = [axis for axis in indexed if sizes[axis] != shape[axis]] or indexed[:1]
  rows = sorted({*rows, *getattr(numbers, 'operand_batching_dims', ())})
  return dict(kind='embedding', shape=shape, channels=tuple(rows))


def of_dynamic_slice(equation: Any) -> dict[str, Any]:
  """The same for a `dynamic_slice`, whose place depends on the inputs."""
  shape, sizes = equation.invars[0].aval.shape, equation.params['slice_sizes']
  rows = tuple(axis for axis, size in enumerate(sizes) if size != shape[axis])
  return dict(kind='embedding', shape=shape, channels=rows or (0,))


def macs_of(found: Sequence[Site], depth: int = 0) -> int:
  """Multiply-accumulates of one kernel at several sites in one run; of a conditional, those of its dearest branch."""
  here = [site.macs * (1 if site.times is None else site.times) for site in found if len(site.branches) == depth]
  inside: dict[tuple[int, ...], dict[int, list[Site]]] = {}
  for site in found:
    if len(site.branches) > depth:
      at, branch = site.branches[depth]
      inside.setdefault(at, {}).setdefault(branch, []).append(site)
  dearest = [max(macs_of(branch, depth + 1) for branch in branches.values()) for branches in inside.values()]
  return sum(here) + sum(dearest)


def found_at(equation: Any, operands: Sequence[Value]) -> dict[str, Any] | None:
  """The fields of the site that an equation is, by what is known of its operands; `None` where it is none."""
  op = equation.primitive.name
  if op == 'dot_general':
    return _product(equation, operands)
  known = [value.stored for value in operands]
  if op == 'conv_general_dilated' and (known[1] is None or known[1].params):
    found = of_convolution(equation)
    return {**found, 'kind': 'product' if known[1] is None else found['kind'], 'weight': 1, 'input': 0}
  if op == 'ragged_dot_general' and known[1] is not None and known[1].params:
    return {**of_ragged_dot(equation), 'weight': 1, 'input': 0}
  if op in ('gather', 'dynamic_slice') and known[0] is not None and known[0].params:
    at_known_place = op == 'dynamic_slice' and all(one is not None for one in known[1:])
    if len(equation.invars[0].aval.shape) > 1 and not at_known_place:
      found = of_gather(equation) if op == 'gather' else of_dynamic_slice(equation)
      return {**found, 'weight': 0, 'input': None}
  return None


def _product(equation: Any, operands: Sequence[Value]) -> dict[str, Any] | None:
  batch = equation.params['dimension_numbers'][1]
  left, right = (_weight_in(value.stored, batch[i]) for i, value in enumerate(operands))
  weights = [i for i, one in enumerate((left, right)) if one is not None and one.params]
  if len(weights) == 2 and left is not None and right is not None:
    # The input is what was computed, not what is a parameter as it is.
    weights = [0 if left.layout is not None and right.layout is None else 1]
  if weights:
    found = of_dot(equation, weights[0])
    return found and {**found, 'weight': weights[0], 'input': 1 - weights[0]}
  if left is None and right is None:
    found = of_dot(equation, 1, stacks=False)
    return found and {**found, 'kind': 'product', 'weight': 1, 'input': 0}
  return None


def _weight_in(one: Stored | None, batch: Sequence[int]) -> Stored | None:
  """What is stored as a weight; learned queries that a batched product takes to its keys are activations."""
  return None if one is not None and batch and (one.products or one.repeated) else one
