"""From a configuration to checked objects: whatever is wrong with it is said here, before anything runs."""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import cost, models, policy
from fracbits_jax.cost import lookup
from fracbits_jax.data import sets
from fracbits_jax.data.dataset import FOLDER, Dataset
from fracbits_jax.data.encoded import Reading
from fracbits_jax.layers import QuantConfig
from fracbits_jax.policy import discretization
from fracbits_jax.run import settings, weights
from fracbits_jax.run.settings import PHASES
from fracbits_jax.system.files import check_name
from fracbits_jax.train import optim, step

_DTYPES = {'float32': None, 'bfloat16': jnp.bfloat16}
_MOST_STEPS = 2**31 - 1  # a step is counted in 32 bits
_SMALL_IMAGE = 64  # up to this size the stem keeps the resolution, unless the configuration says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What a run works with.

  Attributes:
    config: the configuration, with what follows `init_from` filled in.
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
  dataset: Dataset
  float_model: nn.Module
  quant_model: nn.Module
  layers: tuple[cost.Layer, ...]
  budget: cost.Budget
  init_bits: float
  policy: policy.Policy | None
  initial: weights.Weights | None
  notes: tuple[str, ...] = ()


def prepare(config: ConfigDict, workdir: str | os.PathLike | None = None) -> Experiment:
  """Checks a configuration and opens what it names.

  Args:
    config: see `configs/base.py`.
    workdir: the run's folder; weights that it keeps go before `init_from`.

  Raises:
    ValueError: one sentence on the first thing that is wrong.
  """
  settings.check(config)
  _check_phases(config)
  _check_values(config)
  if config.data.data_dir is not None and config.data.dataset != FOLDER:
    check_name(config.data.data_dir, 'choose another data.data_dir')
  sets.check_name(config.data.dataset, config.data.data_dir)
  reading = Reading(
    exif_orientation=config.data.exif_orientation, background=config.data.background and tuple(config.data.background)
  )
  source = weights.find(config.init_from, workdir) if config.init_from is not None else None
  config = _with_demands(config, source)
  quant = quant_config(config)
  create = network(config)
  create(None)  # a wrong model is an error before the data are opened
  dataset = sets.load(
    config.data.dataset, data_dir=config.data.data_dir, image_size=config.data.image_size, reading=reading
  )
  if config.data.batch_size > len(dataset.train):
    raise ValueError(
      f'data.batch_size={config.data.batch_size} is more than the {len(dataset.train)} training images of '
      f'{dataset.name}: give at most that'
    )
  create = functools.partial(create, num_classes=dataset.num_classes, image_size=dataset.image_size)
  float_model, initial = create(None), None
  if source is not None:
    initial = weights.load(source, config.model.name, float_model, dataset.image_shape)
  _check_teacher(config, initial)
  _check_length(config, phase_steps(config, len(dataset.train)), initial)
  layers = cost.trace(create(quant), (1, *dataset.image_shape))
  budget = _budget(config.budget, layers)
  init_bits = config.quant.init_bits
  _check_start(init_bits, quant)
  if init_bits is None:
    # The paper's start for a search; a policy that is not searched is the uniform one.
    init_bits = round(cost.equivalent_bits(budget, layers), 6) + (0.5 if 'search' in config.phases else 0)
  given = policy.load(config.policy, layers) if config.policy else None
  if given is not None:
    check_policy(given, budget, layers, name=repr(config.policy), remedy='raise the budget or give another policy')
  elif 'search' not in config.phases and 'finetune' in config.phases:
    _check_uniform(config, quant)
  quant = dataclasses.replace(quant, init_bits=float(init_bits))
  return Experiment(
    config=config,
    dataset=dataset,
    float_model=float_model,
    quant_model=create(quant),
    layers=layers,
    budget=budget,
    init_bits=float(init_bits),
    policy=given,
    initial=initial,
    notes=_notes(config, float_model, dataset, initial),
  )


def check_policy(
  given: policy.Policy, budget: cost.Budget, layers: Sequence[cost.Layer], *, name: str, remedy: str
) -> None:
  """Raises `ValueError` if a policy, whatever it says that it costs, is over one of the budgets of a run."""
  for spent in budget.spent(given.bits(), layers):
    if not spent['cost'] <= spent['target']:
      raise ValueError(
        f'policy {name} costs {spent["cost"]:.6g} {spent["unit"]}, over the budget of {spent["target"]:.6g}: {remedy}'
      )


def _check_phases(config: ConfigDict) -> None:
  phases = tuple(config.phases)
  unknown = [phase for phase in phases if phase not in PHASES]
  if unknown or not phases:
    raise ValueError(f'phases={phases} holds {unknown or "nothing"}: give some of {", ".join(PHASES)}, in this order')
  if list(phases) != sorted(set(phases), key=PHASES.index):
    raise ValueError(f'phases={phases} are out of order or repeated: give some of {", ".join(PHASES)}, in this order')
  if config.policy and 'search' in phases:
    raise ValueError(f'policy={config.policy!r} is given, so there is nothing to search: leave search out of phases')


def _check_values(config: ConfigDict) -> None:
  if config.model.dtype not in _DTYPES:
    raise ValueError(f'model.dtype={config.model.dtype!r} is unknown: give one of {", ".join(_DTYPES)}')
  if config.optimizer.name not in optim.OPTIMIZERS:
    known = ', '.join(optim.OPTIMIZERS)
    raise ValueError(f'optimizer.name={config.optimizer.name!r} is unknown: give one of {known}')
  if config.budget.discretization not in discretization.METHODS:
    known = ', '.join(discretization.METHODS)
    raise ValueError(f'budget.discretization={config.budget.discretization!r} is unknown: give one of {known}')
  devices, accumulate, batch_size = jax.device_count(), config.data.accumulate, config.data.batch_size
  if batch_size % (devices * accumulate):
    parts = f'the {devices} devices' if accumulate == 1 else f'{devices} devices x data.accumulate={accumulate}'
    raise ValueError(
      f'data.batch_size={batch_size} does not divide over {parts}: give a multiple of {devices * accumulate}'
    )
  for phase in config.phases:
    cosine = tuple(config[phase].cosine)
    if len(cosine) != 2 or not all(map(settings.is_number, cosine)) or not 0 <= cosine[0] <= cosine[1] <= 1:
      raise ValueError(f'{phase}.cosine={cosine} is no part of a schedule: give (start, end), 0 <= start <= end <= 1')


def _check_teacher(config: ConfigDict, initial: weights.Weights | None) -> None:
  """Raises `ValueError` unless there is a float network to distil from, where the configuration asks for that."""
  phases = tuple(config.distill.phases)
  unknown = [phase for phase in phases if phase not in PHASES[1:]]
  if unknown:
    raise ValueError(f'distill.phases={phases} holds {unknown}: give some of {", ".join(PHASES[1:])}')
  distils = config.distill.weight and set(phases) & set(config.phases)
  if distils and 'pretrain' not in config.phases and (initial is None or not initial.is_float):
    raise ValueError(
      f'distill.weight={config.distill.weight} needs a float network to learn from: add pretrain to phases, or give '
      'one by init_from'
    )


def phase_steps(config: ConfigDict, images: int) -> dict[str, int]:
  """By phase, how many steps its epochs are for so many training images."""
  return {phase: round(config[phase].epochs * (images // config.data.batch_size)) for phase in config.phases}


def _check_length(config: ConfigDict, steps: dict[str, int], initial: weights.Weights | None) -> None:
  """Raises `ValueError` for phases that are too long to be counted, or that train nothing at all."""
  for phase, count in steps.items():
    if count > _MOST_STEPS:
      raise ValueError(
        f'{phase}.epochs={config[phase].epochs:g} are {count:,} steps: give fewer epochs, for at most {_MOST_STEPS:,}'
      )
  if initial is None and not any(steps.values()):
    raise ValueError(
      f'there is nothing to train and nothing was trained before: {", ".join(steps)} have no steps; give a phase some '
      'epochs, or weights by init_from'
    )


def _check_start(init_bits: float | None, quant: QuantConfig) -> None:
  allowed = sorted({*quant.allowed_kernel_bits, *(quant.allowed_input_bits if quant.learns_input else ())})
  if init_bits is not None and not allowed[0] <= init_bits <= allowed[-1]:
    raise ValueError(
      f'quant.init_bits={init_bits:g} is beyond the allowed bit-widths: give a number from {allowed[0]} to '
      f'{allowed[-1]}, or None to start at the budget'
    )


def _check_uniform(config: ConfigDict, quant: QuantConfig) -> None:
  """Raises `ValueError` where the bits of a run without a search are to be uniform and cannot be."""
  name = 'budget.equivalent_bits' if config.quant.init_bits is None else 'quant.init_bits'
  bits = config.budget.equivalent_bits if config.quant.init_bits is None else config.quant.init_bits
  allowed = [b for b in quant.allowed_kernel_bits if not quant.learns_input or b in quant.allowed_input_bits]
  in_steps = config.quant.init_bits is None and config.budget.target is not None  # discretized to meet the target
  if bits not in allowed and not in_steps and 'finetune' in config.phases:
    raise ValueError(
      f'without a search every layer has the same bits, and {name}={bits:g} is not allowed: give one of '
      f'{", ".join(map(str, allowed))}, or add search to phases'
    )


def _notes(
  config: ConfigDict, float_model: nn.Module, dataset: Dataset, initial: weights.Weights | None
) -> tuple[str, ...]:
  """What is allowed and seldom meant."""
  notes, steps = [], phase_steps(config, len(dataset.train))
  first = next((phase for phase, count in steps.items() if count), None)
  if initial is None and first not in ('pretrain', None):
    notes.append(f'{first} starts from random weights: add pretrain to phases, or give a float network by init_from')
  for phase, count in steps.items():
    epochs, warmup = config[phase].epochs, config[phase].warmup_epochs
    if epochs and not count:
      notes.append(f'{phase}.epochs={epochs:g} are less than half a step: {phase} trains nothing')
    if count and warmup > epochs:
      notes.append(
        f'{phase}.warmup_epochs={warmup:g} are more than its {epochs:g} epochs: its learning rate never gets to '
        f'{config[phase].learning_rate:g}'
      )
  if config.data.batch_size == config.data.accumulate:  # one image, for as many devices there is more than one
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    if 'batch_stats' in jax.eval_shape(float_model.init, jax.random.key(0), images):
      notes.append('batch norm sees one image at a time (data.batch_size / data.accumulate): give it more')
  return tuple(notes)


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
    scheme=q.scheme,
    stochastic=q.stochastic,
    sat=q.sat,
    alpha_init=q.alpha_init,
    calibration=q.calibration,
  )


def network(config: ConfigDict) -> Callable[..., nn.Module]:
  """The configured network as a function of its quantization (`None` for float), its classes and its image size."""

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
      dtype=_DTYPES[model.dtype],
      **({'relu6': True} if model.relu6 else {}),  # only MobileNetV2 has it
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
  table = None if config.table is None else lookup.load(config.table)
  of = lambda metric: table if metric == 'lookup' else None
  also = [
    cost.Budget(metric=metric, target=target, table=of(metric))
    for metric, target in config.also.items()
    if target is not None
  ]
  amount = dict(equivalent_bits=config.equivalent_bits) if config.target is None else dict(target=config.target)
  return cost.budget(config.metric, layers, **amount, table=of(config.metric), also=also)
