"""Mixed precision of a trained network from a few hundred inputs without labels.

    budget = cost.budget('bitops', cost.trace(net, batches[0]), equivalent_bits=4)
    policy, quantized = post_training.search(net, variables, batches, budget)

Everything follows from the outputs of the float network, the task's distance from which takes the place of a loss. The
search starts where an integer program puts the bits for `Sensitivity.error_scores`, and learns bits and ranges from
there, under a controlled penalty; the weights stay. Of both policies the one that is nearer to the float network is it.

At the integer bits of a policy, found this way or any other, ranges are calibrated anew, batch norm's statistics are
moved as quantization moves them (`reestimate.corrected`), and a few steps tune ranges and, nearly frozen, the weights,
whose rounding they decide. Batch norm keeps its statistics in all of this: so few inputs have other ones.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import cost, policy, program, tasks
from fracbits_jax.cost import Budget
from fracbits_jax.layers import calibrate, wrap
from fracbits_jax.policy import assignment
from fracbits_jax.policy.sensitivity import Sensitivity
from fracbits_jax.train import optim, reestimate
from fracbits_jax.train.penalty import Controller, Penalty

Flat = dict[str, Any]  # variables by path, such as `params/stem/kernel` and `bits/head/input`

_SMALLEST = 1e-2  # what is next to zero is taken for so large, to move at all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How long things take, and how fast they move; rates fall along a cosine.

  Attributes:
    search_steps: of the bits and the ranges, a batch each; 0 leaves the bits where the integer program put them.
    tune_steps: of ranges and weights at integer bits; 0 leaves them as calibrated.
    bits_rate: of Adam, in bits.
    ranges_rate: of Adam, in parts of a range.
    weights_rate: of Adam, in parts of the root mean square of a kernel or of another parameter.
    gain: of the penalty's `Controller`.
    damping: of the penalty's `Controller`.
    draws: of `error_scores`, for each batch.
    calibration: inputs of which the ranges are calibrated, at least those of a batch.
    seed: of the order of the batches, and of the draws.
  """

  search_steps: int = 100
  tune_steps: int = 200
  bits_rate: float = 0.03
  ranges_rate: float = 3e-3
  weights_rate: float = 1e-3
  gain: float = 4.0
  damping: float = 40.0
  draws: int = 2
  calibration: int = 128
  seed: int = 0


def search(net: Any, variables: Any, batches: Sequence[Any], budget: Budget, **how: Any) -> tuple[policy.Policy, Any]:
  """The policy of a network under a budget, and the variables of `wrap.with_fixed_bits(net)` at its bits.

  Args:
    net, variables, batches: as for `PostTraining`, which also serves several budgets, and policies found otherwise.
    budget: what the network may cost.
    **how: further arguments of `PostTraining`.
  """
  made = PostTraining(net, variables, batches, **how)
  found = made.search(budget)
  return found, made.variables_at(found)


class PostTraining:
  """A float network and inputs for it, from which policies and quantized networks are made.

  Args:
    net: the quantized network: one with a field `quant`, or of `quantize_model`.
    variables: of the float network.
    batches: what it is called with, such as images `[N, H, W, C]`; equal shapes are compiled once.
    task: what the network is for; its labels are not needed.
    settings: of both steps.
    **kwargs: for the call.

  Attributes:
    table: the layer table.
  """

  def __init__(
    self,
    net: Any,
    variables: Any,
    batches: Sequence[jax.Array],
    *,
    task: tasks.Task = tasks.CLASSIFICATION,
    settings: Settings = Settings(),
    **kwargs: Any,
  ):
    if not batches:
      raise ValueError('there are no batches to learn from: give at least one, of a few hundred inputs in all')
    self._net, self._float, self._task, self._settings, self._kwargs = net, variables, task, settings, kwargs
    self._batches = [task.inputs(task.of_inputs(batch)) for batch in batches]
    self._fixed, plain = wrap.with_fixed_bits(net), wrap.without_quantization(net)
    self.table = cost.trace(net, self._batches[0][:1], **kwargs)
    outputs = jax.jit(lambda variables, x: self._outputs(plain, variables, x))
    self._taught = [outputs(variables, x) for x in self._batches]
    count = -(-settings.calibration // len(self._batches[0]))
    self._inputs = self._batches[:count]  # of which ranges are calibrated
    if isinstance(net, nn.Module):
      self._configs = calibrate.quant_configs(net, self._batches[0][:1], **kwargs)
      each = any(quant.kernel_ranges == 'channel' for quant in self._configs.values())
      given = variables['params']
      self._axes = calibrate.output_axes(net, self._batches[0][:1], given, **kwargs) if each else {}
      self._samples = calibrate.sample_inputs(plain, variables, [(x,) for x in self._inputs], **kwargs)
    # Of a network whose call says in another way how batch norm is used, the statistics stay as they are.
    has_norms = isinstance(net, nn.Module) and bool(variables.get('batch_stats'))
    make = lambda model: jax.jit(reestimate.make_statistics_step(model, task=task))
    self._statistics_step = make(self._fixed) if has_norms else None
    self._before = self._statistics(make(plain), variables) if has_norms else None
    self._outputs_at = jax.jit(lambda variables, x: self._outputs(self._fixed, variables, x))
    self._gradients = {model: self._gradient(model) for model in (net, self._fixed)}
    self._scores: assignment.Scores | None = None

  def search(self, budget: Budget) -> policy.Policy:
    """The policy under a budget whose network is nearest to the float one, before any tuning."""
    start = self.first_policy(budget)
    if not self._settings.search_steps:
      return start
    learned = self._learned_policy(budget, start)
    if learned == start:
      return start
    return min(start, learned, key=lambda each: self.distance(self.variables_at(each, tuned=False)))

  def first_policy(self, budget: Budget) -> policy.Policy:
    """Where the search starts: the integer program's policy for `error_scores`, or uniform bits without such scores."""
    if isinstance(self._net, nn.Module):
      return assignment.solve(self.scores(), self.table, budget)
    bits = cost.equivalent_bits(budget, self.table)
    uniform = cost.fill_bits(self.table, lambda layer, which, shape, choices: np.clip(bits, choices[0], choices[-1]))
    return policy.discretize(uniform, self.table, budget)

  def scores(self) -> assignment.Scores:
    """What each bit-width of each kernel and each input costs, of `error_scores`; the same for all budgets."""
    if self._scores is None:
      batches = [self._task.of_inputs(x) for x in self._batches]
      found = Sensitivity(self._net, self._float, self._batches[0][:1], batches, self._task)
      self._scores = found.error_scores(self._settings.draws, self._settings.seed)
    return self._scores

  def variables_at(self, found: policy.Policy, *, tuned: bool = True) -> dict[str, Any]:
    """The variables of the network with the bits of a policy, for `wrap.with_fixed_bits`.

    Args:
      found: the policy, however it was found.
      tuned: whether ranges and weights are tuned as well.
    """
    variables = self._corrected(self._calibrated(jax.tree.map(np.float32, found.bits())))
    if not (tuned and self._settings.tune_steps):
      return variables
    flat = _flat(variables)
    moving = {name for name in flat if name.startswith('params/')}
    # Statistics that were moved once more would take back what the weights have learned under these.
    return _nested(self._learn(self._fixed, flat, moving, self._settings.tune_steps))

  def distance(self, variables: Any) -> float:
    """How far a network with integer bits is from the float one, a mean over the batches."""
    pairs = zip(self._batches, self._taught, strict=True)
    return float(np.mean([self._task.distance(self._outputs_at(variables, x), t, 1.0) for x, t in pairs]))

  def _learned_policy(self, budget: Budget, start: policy.Policy) -> policy.Policy:
    flat = _flat(self._corrected(self._calibrated(jax.tree.map(np.float32, start.bits()))))
    moving = {name for name in flat if name.startswith('bits/') or name.endswith('alpha')}
    flat = self._learn(self._net, flat, moving, self._settings.search_steps, budget)
    return policy.discretize(_nested(flat)['bits'], self.table, budget)

  def _outputs(self, model: Any, variables: Any, x: jax.Array) -> jax.Array:
    found: Any = model.apply(variables, x, **self._kwargs)
    return found.astype(jnp.float32)

  def _calibrated(self, bits: Any) -> dict[str, Any]:
    """The float network's variables with the ranges that are best at these bits, where that can be asked for."""
    if not isinstance(self._net, nn.Module):
      inputs = jnp.concatenate(self._inputs)
      return {**program.from_float(self._net, self._float, inputs, **self._kwargs), 'bits': bits}
    init = lambda x: self._net.init(jax.random.key(0), x, **self._kwargs)
    needed, given = _flat(jax.eval_shape(init, self._inputs[0])['params']), _flat(self._float['params'])
    params = _nested({name: given.get(name, np.ones(shape.shape, np.float32)) for name, shape in needed.items()})
    params = calibrate.kernel_ranges(params, bits, self._configs, self._axes)
    params = calibrate.clips(params, bits, self._samples, self._configs)
    return {**self._float, 'params': params, 'bits': bits}

  def _statistics(self, step: Callable, variables: Any) -> Any:
    return reestimate.statistics(step, variables, [self._task.of_inputs(x) for x in self._batches])

  def _corrected(self, variables: dict[str, Any]) -> dict[str, Any]:
    if self._statistics_step is None:
      return variables
    after = self._statistics(self._statistics_step, variables)
    return {**variables, 'batch_stats': reestimate.corrected(self._float['batch_stats'], self._before, after)}

  def _gradient(self, model: Any) -> Callable:
    def distance(moving: Flat, rest: Flat, x: jax.Array, taught: jax.Array) -> jax.Array:
      return self._task.distance(self._outputs(model, _nested({**rest, **moving}), x), taught, 1.0)

    return jax.jit(jax.grad(distance))

  def _learn(self, model: Any, flat: Flat, moving: set[str], steps: int, budget: Budget | None = None) -> Flat:
    """Variables after so many steps towards the float network's outputs, and under a budget if there is one."""
    settings = self._settings
    learned, rest = ({n: x for n, x in flat.items() if (n in moving) == moves} for moves in (True, False))
    rates = {name: self._rate(name, value) for name, value in learned.items()}
    schedule = optim.cosine_part(1.0, steps)
    optimizer = optax.chain(
      optax.scale_by_adam(),
      optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates)),
      optax.scale_by_schedule(lambda step: -schedule(step)),
    )
    lowest, largest = (_flat({'bits': tree}) for tree in cost.bits_range(self.table))
    penalty = None
    if budget is not None:
      rate = lambda step: settings.bits_rate * schedule(step)
      controller = Controller(gain=settings.gain, damping=settings.damping, rate=rate)
      penalty = Penalty(budget=budget, layers=tuple(self.table), controller=controller)

    @jax.jit
    def update(learned, gradients, state, multiplier, step):
      if penalty is not None:
        bits = {name: value for name, value in learned.items() if name.startswith('bits/')}
        term = lambda bits: penalty(_nested(bits)['bits'], multiplier)
        towards, ratio = jax.grad(term, has_aux=True)(bits)
        gradients = {**gradients, **{name: gradients[name] + towards[name] for name in bits}}
        multiplier = penalty.update(multiplier, ratio, step)
      updates, state = optimizer.update(gradients, state)
      learned = optax.apply_updates(learned, updates)
      if penalty is not None:
        learned |= {name: jnp.clip(learned[name], lowest[name], largest[name]) for name in bits}
      return learned, state, multiplier

    learned, rest = jax.tree.map(jnp.asarray, (learned, rest))
    state, multiplier = optimizer.init(learned), jnp.float32(0)
    rng = np.random.default_rng(settings.seed)
    order: list[int] = []
    for step in range(steps):
      order = order or list(rng.permutation(len(self._batches)))
      i = order.pop()
      gradients = self._gradients[model](learned, rest, self._batches[i], self._taught[i])
      learned, state, multiplier = update(learned, gradients, state, multiplier, step)
    return {**rest, **learned}

  def _rate(self, name: str, value: Any) -> jax.Array:
    """The rate of a variable by its kind, in its own unit."""
    if name.startswith('bits/'):
      return jnp.float32(self._settings.bits_rate)
    if name.endswith('alpha'):
      return self._settings.ranges_rate * jnp.abs(value)
    size = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(value, jnp.float32))))
    return self._settings.weights_rate * jnp.maximum(size, _SMALLEST)


def _flat(variables: Any) -> Flat:
  return traverse_util.flatten_dict(variables, sep='/')


def _nested(flat: Flat) -> dict[str, Any]:
  return traverse_util.unflatten_dict(flat, sep='/')
