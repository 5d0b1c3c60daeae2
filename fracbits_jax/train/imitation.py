"""Steps that bring a quantized network nearer to the outputs of a float one, compiled once for all budgets and bits."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import cost, tasks
from fracbits_jax.cost import Budget, LayerTable
from fracbits_jax.program.trace import leaves_by_path
from fracbits_jax.train import optim
from fracbits_jax.train.penalty import Controller, Penalty

Flat = dict[str, jax.Array]  # variables by path, such as `params/stem/kernel` and `bits/head/input`

_SMALLEST = 1e-2  # what is next to zero is taken for so large, to move at all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
  """How fast Adam moves what moves; a kind that is `None` stays.

  Attributes:
    bits: in bits.
    ranges: in parts of a range.
    weights: in parts of the root mean square of a kernel or of another parameter.
  """

  bits: float | None = None
  ranges: float | None = None
  weights: float | None = None


class Imitation:
  """So many steps, a batch each, towards the outputs of the float network; rates fall along a cosine.

  Args:
    outputs: `outputs(variables, arguments)` of the quantized network, `[N, ...]` in float32.
    batches: what the network is called with, a tuple of arguments each.
    taught: the float network's outputs for each batch.
    task: what they are for, and what their distance is.
    table: the layer table.
    steps: how many.
    rates: what moves, and how fast.
    gain: of the penalty's `Controller`.
    damping: of the penalty's `Controller`.
    seed: of the order of the batches.
  """

  def __init__(
    self,
    outputs: Callable[[Any, tuple[Any, ...]], jax.Array],
    batches: Sequence[tuple[Any, ...]],
    taught: Sequence[jax.Array],
    *,
    task: tasks.Task,
    table: LayerTable,
    steps: int,
    rates: Rates,
    gain: float,
    damping: float,
    seed: int,
  ):
    self._batches, self._taught, self._table, self._steps, self._seed = batches, taught, table, steps, seed
    self._rates, self._schedule = rates, optim.cosine_part(1.0, steps)
    bits_rate = lambda step: (rates.bits or 0.0) * self._schedule(step)
    self._controller = Controller(gain=gain, damping=damping, rate=bits_rate)
    self._updates: dict[tuple, Callable] = {}

    def distance(structure: Any, moving: Flat, rest: Flat, arguments: tuple, taught: jax.Array) -> jax.Array:
      return task.distance(outputs(_joined(structure, {**rest, **moving}), arguments), taught, 1.0)

    self._gradient = jax.jit(jax.grad(distance, argnums=1), static_argnums=0)

  def __call__(self, variables: Any, budget: Budget | None = None) -> Any:
    """The variables after the steps.

    Args:
      variables: of the quantized network.
      budget: what they are to cost; bits that move need one.
    """
    variables = nn.meta.unbox(variables)
    flat = leaves_by_path(variables)
    structure = jax.tree.structure(variables), tuple(flat)
    rates = self._rates_of(flat)
    learned, rest = ({n: x for n, x in flat.items() if (n in rates) == moves} for moves in (True, False))
    learned, rest = jax.tree.map(jnp.asarray, (learned, rest))
    update = self._update(budget)
    targets = [jnp.float32(held.target) for held in budget.all] if budget is not None else []
    state, multiplier = optax.scale_by_adam().init(learned), jnp.float32(0)
    rng = np.random.default_rng(self._seed)
    order: list[int] = []
    for step in range(self._steps):
      order = order or list(rng.permutation(len(self._batches)))
      i = order.pop()
      gradients = self._gradient(structure, learned, rest, self._batches[i], self._taught[i])
      learned, state, multiplier = update(learned, gradients, state, multiplier, step, rates, targets)
    return _joined(structure, {**rest, **learned})

  def _rates_of(self, flat: Flat) -> Flat:
    """The rate of each variable that moves, by its kind and in its own unit."""
    own, found = self._rates, {}
    params = {name.removeprefix('params/') for name in flat if name.startswith('params/')}
    ranges = {f'params/{name}' for name in cost.range_names(self._table, params)}
    for name, value in flat.items():
      if name.startswith('bits/') and own.bits is not None:
        found[name] = jnp.float32(own.bits)
      elif name in ranges and own.ranges is not None:
        found[name] = own.ranges * jnp.abs(value)
      elif name.startswith('params/') and name not in ranges and own.weights is not None and _is_real(value):
        size = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(value, jnp.float32))))
        found[name] = own.weights * jnp.maximum(size, _SMALLEST)
    return found

  def _update(self, budget: Budget | None) -> Callable:
    """The compiled update under budgets of these metrics, whose targets are arguments."""
    kind = () if budget is None else tuple((held.metric, id(held.table)) for held in budget.all)
    if kind not in self._updates:
      penalty = None
      if budget is not None:
        penalty = Penalty(budget=budget, layers=tuple(self._table), controller=self._controller)
      self._updates[kind] = jax.jit(functools.partial(self._updated, penalty))
    return self._updates[kind]

  def _updated(
    self,
    penalty: Penalty | None,
    learned: Flat,
    gradients: Flat,
    state: Any,
    multiplier: jax.Array,
    step: jax.Array,
    rates: Flat,
    targets: Sequence[jax.Array],
  ) -> tuple[Flat, Any, jax.Array]:
    """What moves, the optimizer's state and the penalty's multiplier after a step."""
    bits = {name: value for name, value in learned.items() if name.startswith('bits/')}
    if penalty is not None:
      term = lambda bits: penalty(_nested(bits), multiplier, targets)
      towards, ratio = jax.grad(term, has_aux=True)(bits)
      gradients = {**gradients, **{name: gradients[name] + towards[name] for name in bits}}
      multiplier = penalty.update(multiplier, ratio, step)
    updates, state = optax.scale_by_adam().update(gradients, state)
    moves = jax.tree.map(lambda update, rate: -self._schedule(step) * (update * rate), updates, rates)
    learned = optax.apply_updates(learned, moves)
    projected = optim.project_bits(_nested(learned), cost.bits_range(self._table)) if bits else {}
    return {**learned, **leaves_by_path({'bits': projected})}, state, multiplier


def _is_real(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _nested(flat: Flat) -> dict[str, Any]:
  """The collection `bits` of variables by path."""
  bits = {name.removeprefix('bits/'): value for name, value in flat.items() if name.startswith('bits/')}
  return traverse_util.unflatten_dict(bits, sep='/')


def _joined(structure: tuple[Any, tuple[str, ...]], flat: Flat) -> Any:
  """Variables of their structure and by path as a tree."""
  tree, names = structure
  return jax.tree.unflatten(tree, [flat[name] for name in names])
