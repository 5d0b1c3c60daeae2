"""What a phase begins with: its variables, its optimizer, its step."""

import contextlib
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import cost, tasks
from fracbits_jax.data.batches import train_batches
from fracbits_jax.data.dataset import Dataset
from fracbits_jax.layers import calibrate, wrap
from fracbits_jax.policy import Policy
from fracbits_jax.run.evaluation import Evaluator
from fracbits_jax.run.experiment import Experiment
from fracbits_jax.run.settings import PHASES
from fracbits_jax.train import optim, penalty, placement, preemption, reestimate, step
from fracbits_jax.train.distill import Distillation
from fracbits_jax.train.hardening import Hardening
from fracbits_jax.train.step import TrainState

Variables = dict[str, Any]

_OWN_AXES = {'layer': 0, 'channel': 1, 'group': 2}  # of the ranges of a kernel, by what has one


def model(experiment: Experiment, phase: str) -> nn.Module:
  """The network of a phase: float for `pretrain`, quantized otherwise, with integers for bits in `finetune`."""
  if phase == 'pretrain':
    return experiment.float_model
  if phase == 'search':
    return experiment.quant_model
  return wrap.with_fixed_bits(experiment.quant_model)


def shapes(experiment: Experiment, phase: str) -> Variables:
  """Shapes and dtypes of the variables of a phase's network; `bits` is there, if empty."""
  inputs = experiment.inputs
  return {'bits': {}, 'batch_stats': {}, **jax.eval_shape(model(experiment, phase).init, jax.random.key(0), inputs)}


def float_variables(experiment: Experiment) -> Variables:
  """Given or initial variables of the float network; a quantized one without a `pretrain` starts from them as well."""
  if experiment.initial is not None:
    return {'bits': {}, **experiment.initial.variables}
  inputs = jnp.zeros(experiment.inputs.shape, experiment.inputs.dtype)
  init = jax.jit(experiment.float_model.init)
  return {'bits': {}, 'batch_stats': {}, **init(jax.random.key(experiment.config.seed), inputs)}


def initial_bits(experiment: Experiment) -> Any:
  """The collection `bits` at the configured start, clipped to what is allowed."""
  start = lambda layer, which, shape, choices: np.clip(experiment.init_bits, choices[0], choices[-1])
  return as_float32(cost.fill_bits(experiment.layers, start))


def bits_of(experiment: Experiment, policy: Policy) -> Any:
  """The collection `bits` of a policy; layers within a scan, which it names one by one, lie in one array."""
  given = policy.bits()
  return as_float32(
    cost.fill_bits(experiment.layers, lambda layer, which, shape, choices: cost.bits_of(given, layer, which))
  )


def quantized_variables(
  experiment: Experiment, variables: Variables, bits: Any, *, calibrated: bool = False
) -> Variables:
  """The quantized network with a float network's weights and statistics, given bits, and given or calibrated clips.

  Where `calibrated`, those that `init_from` gives are left aside: they are of other bits.
  """
  config = experiment.config
  flat = traverse_util.flatten_dict(variables['params'], sep='/')
  names = traverse_util.flatten_dict(shapes(experiment, 'search')['params'], sep='/')
  clips = [name for name in names if name not in flat]  # they are all that is new
  initial = None if 'pretrain' in config.phases or calibrated else experiment.initial
  given = {} if initial is None else initial.clips
  quant_configs = calibrate.quant_configs(experiment.quant_model, experiment.inputs)
  has_offset = {f'{name}/alpha' for name, quant in quant_configs.items() if quant.has_offset}
  start = lambda name: given.get(name, config.quant.alpha_init)
  for name in clips:
    layer, _, which = name.rpartition('/')
    own = _OWN_AXES[quant_configs[layer].range_kind] if which == 'kernel_alpha' else int(name in has_offset)
    flat[name] = _as_range(start(name), names[name].shape, own=own, has_offset=name in has_offset)
  params = traverse_util.unflatten_dict(flat, sep='/')
  if not given.keys() >= set(clips):
    params = calibrate.kernel_ranges(params, bits, quant_configs, _output_axes(experiment, params))
  if config.quant.calibration_batches and not given.keys() >= set(clips):
    samples = _samples(experiment, experiment.float_model, variables)
    params = calibrate.clips(params, bits, samples, quant_configs)
  return {'params': params, 'bits': bits, 'batch_stats': variables['batch_stats']}


def _samples(experiment: Experiment, network: nn.Module, variables: Variables) -> dict[str, np.ndarray]:
  """Inputs of each layer of a network on the batches that calibrate, with batch norm as the phases have it."""
  config = experiment.config
  reader = train_batches(
    experiment.dataset, batch_size=config.data.batch_size, seed=config.seed, wait=preemption.waiting
  )
  with contextlib.closing(reader) as batches:
    inputs = [(experiment.task.inputs(next(batches)),) for _ in range(config.quant.calibration_batches)]
  how: dict[str, Any] = {} if config.model.frozen_norm else dict(train=True, mutable=['batch_stats'])
  return calibrate.sample_inputs(network.clone(axis_name=None), variables, inputs, **how)


def at_integer_bits(experiment: Experiment, variables: Variables, bits: Any) -> Variables:
  """A searched network's variables with the integer `bits` that discretization gave, and clips and ranges to suit them.

  What training made of each clip and range is kept: it changes by the ratio of those that quantize the network's own
  activations and kernels best at the integer and at the searched bits.
  """
  if not (experiment.config.quant.recalibrate and experiment.config.quant.calibration_batches):
    return {**variables, 'bits': bits}
  samples = _samples(experiment, experiment.quant_model, variables)
  configs = calibrate.quant_configs(experiment.quant_model, experiment.inputs)
  axes = _output_axes(experiment, variables['params'])
  params = calibrate.at_other_bits(variables['params'], variables['bits'], bits, samples, configs, axes)
  return {**variables, 'params': params, 'bits': bits}


def _output_axes(experiment: Experiment, params: Any) -> dict[str, tuple[int, ...]]:
  """The axes of kernels that are output channels, which matter where each of them has a range."""
  if experiment.config.quant.kernel_ranges != 'channel' and experiment.config.quant.group_size is None:
    return {}
  return calibrate.output_axes(experiment.quant_model, experiment.inputs, params)


def _as_range(given: Any, shape: tuple[int, ...], *, own: int, has_offset: bool = False) -> jax.Array:
  """A range in the shape that a network has for it.

  Args:
    given: a number, or an array with fewer axes: that of a kernel is one for each channel, that of channels one for
      each group, and that of a layer in a stack one for all that the layer has.
    shape: the axes of a stack, and behind them those of the ranges of one layer.
    own: how many these are.
    has_offset: whether they are a range and its middle, which is 0 where none is given.
  """
  given, stack = jnp.asarray(given, jnp.float32), len(shape) - own
  if has_offset and given.ndim in (0, stack):
    given = jnp.stack([given, jnp.zeros_like(given)], axis=-1)
  if given.ndim >= stack:
    given = given.reshape(*given.shape[:stack], *[1] * (len(shape) - given.ndim), *given.shape[stack:])
  return jnp.broadcast_to(given, shape)


def schedule(experiment: Experiment, phase: str, *, steps: int, steps_per_epoch: int) -> optax.Schedule:
  """The configured learning rate of a phase by step."""
  settings = experiment.config[phase]
  return optim.cosine_part(
    settings.learning_rate,
    steps,
    warmup_steps=round(settings.warmup_epochs * steps_per_epoch),
    part=tuple(settings.cosine),
  )


def optimizer(experiment: Experiment, phase: str, rate: optax.Schedule) -> optax.GradientTransformation:
  """The configured optimizer of a phase at the learning rate `rate`; only a search changes the bits."""
  common = experiment.config.optimizer
  weights_rate = experiment.config[phase].weights_rate
  searches, scale, rates = phase == 'search', None, None
  if searches and common.bits_balance:
    scale = optim.bits_scale(experiment.budget, experiment.layers, initial_bits(experiment), common.bits_balance)
  if searches and common.channel_bits_rate != 1:
    rates = optim.channel_rates(experiment.layers, initial_bits(experiment), common.channel_bits_rate)
  found = optim.optimizer(
    common.name,
    rate,
    momentum=common.momentum,
    weight_decay=common.weight_decay,
    mask=optim.decay_mask(shapes(experiment, phase)['params'], experiment.layers),
    bits_rate=common.bits_rate if searches else None,
    clip_norm=common.clip_norm,
    bits_name=common.bits_name,
    bits_clip=common.bits_clip,
    bits_scale=scale,
    bits_rates=rates,
  )
  return optim.with_weights_rate(found, weights_rate, experiment.layers)


def state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  learned = {'params': variables['params'], 'bits': variables['bits']}
  return TrainState(
    step=jnp.int32(0),
    **learned,
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(learned),
    multiplier=jnp.float32(0),
  )


def train_step(
  experiment: Experiment,
  phase: str,
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  teacher: Variables | None = None,
  steps: int = 0,
) -> Any:
  """The step of a phase of so many `steps`, mapped over the local devices; it takes over the buffers of the state.

  With the variables of a `teacher`, of the float network, the phase is distilled from it.
  """
  settings: dict[str, Any] = {'remat': experiment.config.model.remat, 'accumulate': experiment.config.data.accumulate}
  settings['task'] = experiment.task
  settings['frozen_norm'] = keeps_norm(experiment, phase)
  if phase == 'search':
    settings['penalty'] = budget_penalty(experiment, rate)
    settings['bits_range'] = as_float32(cost.bits_range(experiment.layers))
    if experiment.config.optimizer.hardening:
      start = steps - round(experiment.config.optimizer.hardening * steps)
      settings['hardening'] = Hardening(layers=experiment.layers, start=start, steps=steps)
    if experiment.config.quant.stochastic:
      settings['draw_seed'] = experiment.config.seed
  if phase == 'finetune' and experiment.config.optimizer.dampening:
    largest = experiment.config.optimizer.dampening
    settings['dampening'] = lambda step: largest / 2 * (1 - jnp.cos(jnp.pi * jnp.minimum(step / max(steps, 1), 1)))
  if teacher is not None:
    how = experiment.config.distill
    settings['distillation'] = Distillation(
      teacher=experiment.float_model, weight=how.weight, temperature=how.temperature, task=experiment.task
    )
  one_device = step.make_train_step(model(experiment, phase), optimizer, **settings)
  mapped = step.over_devices(one_device, donate_state=True)
  if teacher is None:
    return mapped
  held = placement.replicate({name: teacher[name] for name in ('params', 'batch_stats')})
  return lambda state, batch: mapped(state, batch, held)


def keeps_norm(experiment: Experiment, phase: str) -> bool:
  """Whether batch norm keeps the float network's statistics in a phase."""
  return experiment.config.model.frozen_norm and phase != 'pretrain'


def with_statistics(experiment: Experiment, phase: str, state: TrainState, kept: Variables | None = None) -> TrainState:
  """A replicated state with the batch norm statistics of `reestimate_batches` training batches together.

  Where batch norm keeps those of the float network, whose variables are `kept`, they are moved instead, as
  `reestimate.corrected` says.

  The batches are the first of the phase's own order, wherever the training is, so that a run which was interrupted ends
  with the same statistics.
  """
  config = experiment.config
  reader = train_batches(
    experiment.dataset,
    batch_size=config.data.batch_size,
    seed=config.seed + PHASES.index(phase),
    workers=config.data.workers,
    shard=placement.host_shard(),
    wait=preemption.waiting,
  )

  def statistics(model: nn.Module, variables: Variables, batches: list[Any]) -> Any:
    one_device = reestimate.make_statistics_step(model, config.data.accumulate, experiment.task)
    return reestimate.statistics(step.over_devices(one_device), variables, map(placement.to_devices, batches))

  with contextlib.closing(reader) as batches:
    some = list(itertools.islice(batches, config[phase].reestimate_batches))
  found = statistics(model(experiment, phase), state.variables, some)
  if kept is not None:
    trained = placement.replicate({name: kept[name] for name in ('params', 'batch_stats')})
    before = statistics(experiment.float_model, trained, some)
    found = reestimate.corrected(trained['batch_stats'], before, found)
  return dataclasses.replace(state, batch_stats=found)


def budget_penalty(experiment: Experiment, rate: optax.Schedule) -> penalty.Penalty:
  """The configured cost term of a search at the learning rate `rate` of the weights."""
  config, bits_rate = experiment.config.budget, experiment.config.optimizer.bits_rate
  common: dict[str, Any] = dict(budget=experiment.budget, layers=experiment.layers)
  if not config.controlled:
    # The paper's strength is 1 per GBitOP or MB; costs by a table have units of any size, and there are many kB.
    by_target = experiment.budget.metric in ('bitops', 'size') and not experiment.budget.also
    usual = experiment.budget.target if by_target else 1.0
    return penalty.Penalty(**common, kappa=usual if config.kappa is None else config.kappa)
  controller = penalty.Controller(gain=config.gain, damping=config.damping, rate=lambda step: bits_rate * rate(step))
  return penalty.Penalty(**common, controller=controller)


@functools.cache
def evaluator(
  model: nn.Module, dataset: Dataset, batch_size: int, workers: int = 0, task: tasks.Task = tasks.CLASSIFICATION
) -> Evaluator:
  """The evaluator of a network; phases that share the network share its compiled step."""
  return Evaluator(model, dataset, batch_size, workers, task)


def as_float32(tree: Any) -> Any:
  """A tree of arrays in float32, the precision of bits inside a network."""
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
