"""From a configuration to checked objects: whatever is wrong with it is said before anything runs."""

import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import cost, models, policy, tasks
from fracbits_jax.cost import lookup
from fracbits_jax.data import sets
from fracbits_jax.data.dataset import ARRAYS, FOLDER, TEXT, Dataset
from fracbits_jax.data.encoded import Reading
from fracbits_jax.layers import QuantConfig
from fracbits_jax.run import checks, settings, weights
from fracbits_jax.system.files import check_name
from fracbits_jax.train import step

_SMALL_IMAGE = 64  # up to this size the stem keeps the resolution, unless the configuration says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What a run works with.

  Attributes:
    config: the configuration, with what follows `init_from` filled in.
    task: what the network is trained for.
    dataset: the opened data set.
    float_model: the float network, for `pretrain`.
    quant_model: the quantized network, for `search` and `finetune`.
    layers: its layer table.
    budget: the budget in absolute terms.
    init_bits: where the bits start.
    policy: a given policy to finetune, or `None` where it is searched.
    initial: the weights that the first phase starts from, or `None` for random ones.
    notes: what is allowed and seldom meant, a sentence each.
  """

  config: ConfigDict
  task: tasks.Task
  dataset: Dataset
  float_model: nn.Module
  quant_model: nn.Module
  layers: cost.LayerTable
  budget: cost.Budget
  init_bits: float
  policy: policy.Policy | None
  initial: weights.Weights | None
  notes: tuple[str, ...] = ()

  @property
  def inputs(self) -> jax.ShapeDtypeStruct:
    """What the network is called with, for one example."""
    return _inputs(self.task, self.dataset)


def _inputs(task: tasks.Task, dataset: Dataset) -> jax.ShapeDtypeStruct:
  """What a network for a task on a data set is called with, for one example."""
  if dataset.tokens is not None:
    return jax.eval_shape(task.inputs, {'tokens': jax.ShapeDtypeStruct((1, dataset.context + 1), jnp.int32)})
  return jax.eval_shape(task.inputs, {'image': jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)})


def _policy_file(given: str, workdir: str | os.PathLike | None) -> str | pathlib.Path:
  """The file of a given policy; where that is gone, the one that the run's folder keeps."""
  kept = None if workdir is None else pathlib.Path(workdir) / 'policy.json'
  return kept if kept is not None and kept.exists() and not pathlib.Path(given).exists() else given


def prepare(config: ConfigDict, workdir: str | os.PathLike | None = None) -> Experiment:
  """Checks a configuration and opens what it names.

  Args:
    config: see `configs/base.py`.
    workdir: the run's folder; weights that it keeps go before `init_from`, and its policy takes the place of one that
      is gone.

  Raises:
    ValueError: one sentence on the first thing that is wrong.
  """
  settings.check(config)
  checks.check_phases(config)
  checks.check_values(config)
  if config.data.data_dir is not None and config.data.dataset not in (FOLDER, ARRAYS, TEXT):
    check_name(config.data.data_dir, 'choose another data.data_dir')
  sets.check_name(config.data.dataset, config.data.data_dir)
  reading = Reading(
    exif_orientation=config.data.exif_orientation, background=config.data.background and tuple(config.data.background)
  )
  source = weights.find(config.init_from, workdir) if config.init_from is not None else None
  config = _with_demands(config, source)
  quant = quant_config(config)
  create = network(config)
  task = tasks.of(create(None).task)  # a wrong model is an error before the data are opened
  dataset = sets.load(
    config.data.dataset,
    data_dir=config.data.data_dir,
    image_size=config.data.image_size,
    random_crops=config.data.random_crops,
    reading=reading,
    tokens=config.data.tokens,
    context=config.data.context,
    noise=config.data.noise,
  )
  task = task.of_tokens(dataset.tokens)
  inputs = _inputs(task, dataset)
  checks.check_batch(config, dataset)
  outputs = task.width(dataset.image_shape, dataset.num_classes, dataset.target_shape)
  create = functools.partial(create, num_classes=outputs, image_size=dataset.image_size)
  float_model, initial = create(None), None
  checks.check_targets(config, task, float_model, inputs, outputs)
  if source is not None:
    initial = weights.load(source, config.model.name, float_model, inputs)
  checks.check_teacher(config, initial, task)
  checks.check_frozen(config, initial)
  checks.check_length(config, settings.phase_steps(config, len(dataset.train)), initial)
  layers = cost.trace(create(quant), inputs)
  checks.check_ranges(config, initial, layers)
  budget = _budget(config.budget, layers)
  init_bits = config.quant.init_bits
  checks.check_start(init_bits, quant)
  if init_bits is None:
    # The paper's start for a search; a policy that is not searched is the uniform one.
    init_bits = round(cost.equivalent_bits(budget, layers), 6) + (0.5 if 'search' in config.phases else 0)
  given = policy.load(_policy_file(config.policy, workdir), layers) if config.policy else None
  if given is not None:
    checks.check_policy(
      given, budget, layers, name=repr(config.policy), remedy='raise the budget or give another policy'
    )
  elif 'search' not in config.phases and 'finetune' in config.phases:
    checks.check_uniform(config, quant)
  quant = dataclasses.replace(quant, init_bits=float(init_bits))
  return Experiment(
    config=config,
    task=task,
    dataset=dataset,
    float_model=float_model,
    quant_model=create(quant),
    layers=layers,
    budget=budget,
    init_bits=float(init_bits),
    policy=given,
    initial=initial,
    notes=checks.notes(config, float_model, dataset, initial, task, layers),
  )


def _with_demands(config: ConfigDict, source: weights.Source | None) -> ConfigDict:
  """The configuration with the fields of the model that are `None` as the weights demand them."""
  if source is None:
    return config
  config = copy.deepcopy(config)
  for name, value in weights.demands(source, config.model.name).items():
    if config.model[name] is None:
      config.model[name] = value
  return config


def quant_config(config: ConfigDict) -> QuantConfig:
  """How the configured network is quantized; raises `ValueError` for settings that are not possible."""
  q = config.quant
  if 0 in q.choices and q.granularity != 'kernel':
    raise ValueError(
      f'quant.choices={tuple(q.choices)} allows 0 bits, a pruned channel: set quant.granularity=kernel, or take 0 out'
    )
  if 0 in (q.input_choices or ()):
    raise ValueError(f'quant.input_choices={tuple(q.input_choices)} allows inputs of 0 bits: give bit-widths from 1 on')
  return QuantConfig(
    granularity=q.granularity,
    choices=tuple(q.choices),
    input_choices=None if q.input_choices is None else tuple(q.input_choices),
    weight_only=q.weight_only,
    quantize_residuals=q.quantize_residuals,
    scheme=q.scheme,
    kernel_ranges=q.kernel_ranges,
    kernel_levels=q.kernel_levels,
    group_size=q.group_size,
    range_bits=q.range_bits,
    input_offset=q.input_offset,
    stochastic=q.stochastic,
    mixture=q.mixture,
    sat=q.sat,
    alpha_init=q.alpha_init,
    calibration=q.calibration,
  )


def network(config: ConfigDict) -> Callable[..., nn.Module]:
  """The configured network as a function of its quantization (`None` for float), its outputs and its image size."""

  def create(quant: QuantConfig | None, num_classes: int = 10, image_size: int = 224) -> nn.Module:
    model, small = config.model, config.model.small_images
    return models.create(
      model.name,
      num_classes=num_classes,
      quant=quant,
      width=model.width,
      small_images=image_size <= _SMALL_IMAGE if small is None else small,
      axis_name=step.AXIS,
      image_mean=tuple(model.image_mean or ()),
      dtype=checks.DTYPES[model.dtype],
      **({'relu6': True} if model.relu6 else {}),  # only MobileNetV2 has it
      **{name: value for name, value in model.decoder.items() if value is not None},  # only decoders have them
    )

  return create


def _budget(config: Any, layers: tuple[cost.Layer, ...]) -> cost.Budget:
  """The configured budget; an absolute target goes before equivalent bits, so that one override suffices."""
  if config.table is None and (config.metric == 'lookup' or config.also.lookup is not None):
    raise ValueError(
      f'a lookup budget needs budget.table: give one of {", ".join(lookup.names())}, or the path of a CSV file'
    )
  if config.table is not None and config.metric != 'lookup' and config.also.lookup is None:
    raise ValueError(
      f'budget.table={config.table!r} is used by no budget: give budget.metric=lookup or budget.also.lookup as well'
    )
  if config.also.get(config.metric) is not None:
    raise ValueError(
      f'budget.also.{config.metric}={config.also[config.metric]:g} stands beside budget.metric={config.metric}: leave '
      f'it out by --config.budget.also.{config.metric}=None, and give what may be spent as budget.target'
    )
  table = None if config.table is None else lookup.load(config.table)
  of = lambda metric: table if metric == 'lookup' else None
  also = [
    cost.Budget(metric=metric, target=target, table=of(metric))
    for metric, target in config.also.items()
    if target is not None
  ]
  return cost.budget(config.metric, layers, **_amount(config), table=of(config.metric), also=also)


def _amount(config: Any) -> dict[str, float]:
  """What may be spent, in the one of three ways in which it is given."""
  if config.bits_per_weight is not None and config.target is not None:
    raise ValueError(
      f'budget.bits_per_weight={config.bits_per_weight:g} and budget.target={config.target:g} are both given: leave '
      'one of them at None'
    )
  if config.bits_per_weight is not None:
    if config.metric != 'size':
      raise ValueError(
        f'budget.bits_per_weight={config.bits_per_weight:g} is about the size of the weights, and budget.metric='
        f'{config.metric} is not: set budget.metric=size, or give budget.target'
      )
    return dict(bits_per_weight=config.bits_per_weight)
  return dict(equivalent_bits=config.equivalent_bits) if config.target is None else dict(target=config.target)
