"""Mixed precision of a trained network from a few hundred inputs without labels.

    budget = cost.budget('bitops', cost.trace(net, batches[0]), equivalent_bits=4)
    policy, quantized = post_training.search(net, variables, batches, budget)

Everything follows from the outputs of the float network, the task's distance from which takes the place of a loss. The
bits are where an integer program puts them for `Sensitivity.error_scores`. Where there are no such scores, or where it
is asked for, bits and ranges are learned under a controlled penalty, from there or from uniform bits, and the weights
stay; of both policies the one that is nearer to the float network is it.

At the integer bits of a policy, found this way or any other, ranges are calibrated anew, batch norm's statistics are
moved as quantization moves them (`reestimate.corrected`), and a few steps tune ranges and, nearly frozen, the weights,
whose rounding they decide. Batch norm keeps its statistics in all of this: so few inputs have other ones.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import cost, policy, program, tasks
from fracbits_jax.cost import Budget
from fracbits_jax.layers import calibrate, wrap
from fracbits_jax.layers.examples import arguments_of, examples_in, is_array
from fracbits_jax.policy import assignment
from fracbits_jax.policy.sensitivity import Sensitivity
from fracbits_jax.train import reestimate
from fracbits_jax.train.imitation import Imitation, Rates

_SEARCH_STEPS = 100  # where nothing but the search says which layer needs how many bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How long things take, and how fast they move; rates fall along a cosine.

  Attributes:
    search_steps: of the bits and the ranges, a batch each; 0 leaves the bits where the integer program put them.
      `None`: 100 where there are no scores for it; where there are, steps from its policy find no nearer one.
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

  search_steps: int | None = None
  tune_steps: int = 60
  bits_rate: float = 0.03
  ranges_rate: float = 1e-3
  weights_rate: float = 1e-4
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
    net: the quantized network: one with a field `quant`, or of `quantize_model`, which is linen or a function.
    variables: of the float network.
    batches: what it is called with, such as images `[N, H, W, C]` or tokens `[N, T]`, in the dtype that it takes; a
      tuple each where it takes several arrays. Equal shapes are compiled once.
    task: what the network is for; its labels are not needed.
    settings: of both steps.
    **kwargs: for each call, such as `train=False`.

  Attributes:
    table: the layer table.
  """

  def __init__(
    self,
    net: Any,
    variables: Any,
    batches: Sequence[Any],
    *,
    task: tasks.Task = tasks.CLASSIFICATION,
    settings: Settings = Settings(),
    **kwargs: Any,
  ):
    _check(net, batches)
    self._net, self._float, self._task, self._settings, self._kwargs = net, variables, task, settings, kwargs
    self._batches = [jax.tree.map(jnp.asarray, arguments_of(batch)) for batch in batches]
    self._fixed, plain = wrap.with_fixed_bits(net), wrap.without_quantization(net)
    count = examples_in(self._batches[0])
    self._example = jax.tree.map(lambda x: x[:1] if x.shape[:1] == (count,) else x, self._batches[0])
    self.table = cost.trace(net, self._example, **kwargs)
    outputs = jax.jit(lambda variables, arguments: self._outputs(plain, variables, arguments))
    self._taught = [outputs(variables, arguments) for arguments in self._batches]
    self._inputs = self._batches[: -(-settings.calibration // count)]  # of which ranges are calibrated
    if isinstance(net, nn.Module):
      self._prepare_calibration(plain)
    make = lambda model: jax.jit(
      reestimate.make_statistics_step(model, task=task, inputs_of=lambda batch: batch['inputs'], **kwargs)
    )
    has_norms = isinstance(net, nn.Module) and bool(variables.get('batch_stats')) and _takes_train(net)
    self._statistics_step = make(self._fixed) if has_norms else None
    self._before = self._statistics(make(plain), variables) if has_norms else None
    self._outputs_at = jax.jit(lambda variables, arguments: self._outputs(self._fixed, variables, arguments))
    ranges, steps = settings.ranges_rate, settings.search_steps
    self._search_steps = steps if steps is not None else 0 if isinstance(net, nn.Module) else _SEARCH_STEPS
    self._searching = self._imitation(net, self._search_steps, Rates(bits=settings.bits_rate, ranges=ranges))
    self._tuning = self._imitation(
      self._fixed, settings.tune_steps, Rates(ranges=ranges, weights=settings.weights_rate)
    )
    self._scores: assignment.Scores | None = None

  def _prepare_calibration(self, plain: nn.Module) -> None:
    """What ranges of a network with a field `quant` are calibrated with, which is the same at all bits."""
    given = nn.meta.unbox(self._float['params'])
    self._configs = calibrate.quant_configs(self._net, self._example, **self._kwargs)
    self._axes = calibrate.output_axes(self._net, self._example, given, **self._kwargs)
    init = lambda *arguments: self._net.init(jax.random.key(0), *arguments, **self._kwargs)
    needed = nn.meta.unbox(jax.eval_shape(init, *self._example))['params']
    self._params = wrap.with_parameters(needed, given, self._configs)
    self._samples = calibrate.sample_inputs(plain, self._float, self._inputs, **self._kwargs)

  def _imitation(self, model: Any, steps: int, rates: Rates) -> Imitation:
    settings = self._settings
    return Imitation(
      lambda variables, arguments: self._outputs(model, variables, arguments),
      self._batches,
      self._taught,
      task=self._task,
      table=self.table,
      steps=steps,
      rates=rates,
      gain=settings.gain,
      damping=settings.damping,
      seed=settings.seed,
    )

  def search(self, budget: Budget) -> policy.Policy:
    """The policy under a budget whose network is nearest to the float one, before any tuning."""
    start = self.first_policy(budget)
    if not self._search_steps:
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
      batches, of_batch = [{'inputs': arguments} for arguments in self._batches], lambda batch: batch['inputs']
      net, variables = self._net, nn.meta.unbox(self._float)
      found = Sensitivity(net, variables, self._example, batches, self._task, inputs_of=of_batch, **self._kwargs)
      self._scores = found.error_scores(self._settings.draws, self._settings.seed)
    return self._scores

  def variables_at(self, found: policy.Policy, *, tuned: bool = True) -> dict[str, Any]:
    """The variables of the network with the bits of a policy, for `wrap.with_fixed_bits`.

    Args:
      found: the policy, however it was found.
      tuned: whether ranges and weights are tuned as well.
    """
    variables = self._corrected(self._calibrated(found.bits()))
    # Statistics that were moved once more would take back what the weights have learned under these.
    return self._tuning(variables) if tuned and self._settings.tune_steps else variables

  def distance(self, variables: Any) -> float:
    """How far a network with integer bits is from the float one, a mean over the batches."""
    pairs = zip(self._batches, self._taught, strict=True)
    return float(np.mean([self._task.distance(self._outputs_at(variables, x), t, 1.0) for x, t in pairs]))

  def _learned_policy(self, budget: Budget, start: policy.Policy) -> policy.Policy:
    learned = self._searching(self._corrected(self._calibrated(start.bits())), budget)
    return policy.discretize(learned['bits'], self.table, budget)

  def _outputs(self, model: Any, variables: Any, arguments: tuple[Any, ...]) -> jax.Array:
    found: Any = model.apply(variables, *arguments, **self._kwargs)
    return found.astype(jnp.float32)

  def _calibrated(self, bits: Any) -> dict[str, Any]:
    """The float network's variables with these bits and the ranges that are best at them."""
    if not isinstance(self._net, nn.Module):
      together = lambda *xs: jnp.concatenate(xs) if xs[0].ndim else xs[0]
      inputs = jax.tree.map(together, *self._inputs)
      return program.from_float(self._net, self._float, inputs, bits=bits, **self._kwargs)
    bits = jax.tree.map(np.float32, bits)
    params = calibrate.kernel_ranges(self._params, bits, self._configs, self._axes)
    params = calibrate.clips(params, bits, self._samples, self._configs)
    return {**self._float, 'params': params, 'bits': bits}

  def _statistics(self, step: Callable, variables: Any) -> Any:
    return reestimate.statistics(step, variables, [{'inputs': arguments} for arguments in self._batches])

  def _corrected(self, variables: dict[str, Any]) -> dict[str, Any]:
    if self._statistics_step is None:
      return variables
    after = self._statistics(self._statistics_step, variables)
    return {**variables, 'batch_stats': reestimate.corrected(self._float['batch_stats'], self._before, after)}


def _takes_train(net: nn.Module) -> bool:
  """Whether it says by an argument `train` how batch norm is used; otherwise the statistics stay as they are."""
  return 'train' in inspect.signature(net.__call__).parameters


def _check(net: Any, batches: Any) -> None:
  """Raises `ValueError` for what cannot be called, and for what cannot be learned from."""
  if not (hasattr(net, 'apply') and (isinstance(net, nn.Module) or hasattr(net, 'from_float'))):
    raise ValueError(
      f'{type(net).__name__} has no variables apart from itself, such as an NNX module: give a linen network with a '
      'field quant, or what quantize_model made of a linen network or a function'
    )
  if isinstance(net, nn.Module) and getattr(net, 'quant', None) is None:
    raise ValueError(
      f'{type(net).__name__} is a float network: give it with quant=QuantConfig(...), or give what quantize_model '
      'makes of it'
    )
  if is_array(batches):
    raise ValueError(f'batches are one array of shape {tuple(batches.shape)}: give a list of arrays, a batch each')
  if not batches:
    raise ValueError('there are no batches to learn from: give at least one, of a few hundred inputs in all')
