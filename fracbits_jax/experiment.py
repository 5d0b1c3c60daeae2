"""From a configuration to checked objects: whatever is wrong with it is said here, before anything runs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from fracbits_jax import cost, data, models, policy
from fracbits_jax.layers import QuantConfig

PHASES = ('pretrain', 'search', 'finetune')
AXIS = 'batch'
_SMALL_IMAGE = 64  # up to this size the stem keeps the resolution, unless the configuration says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What a run works with.

  Attributes:
    config: the configuration, as given.
    dataset: the opened data set.
    float_model: the float network, for `pretrain`.
    quant_model: the quantized network, for `search` and `finetune`.
    layers: its layer table.
    budget: the budget in absolute terms.
    init_bits: where the bits start.
    policy: a given policy to finetune, or `None` where it is searched.
  """

  config: ConfigDict
  dataset: data.Dataset
  float_model: nn.Module
  quant_model: nn.Module
  layers: tuple[cost.Layer, ...]
  budget: cost.Budget
  init_bits: float
  policy: policy.Policy | None


def prepare(config: ConfigDict) -> Experiment:
  """Checks a configuration and opens what it names.

  Raises:
    ValueError: one sentence on the first thing that is wrong.
  """
  _check_phases(config)
  _check_numbers(config)
  data.check_name(config.data.dataset)
  quant = _quant_config(config)
  network = _network(config)
  network(None)  # a wrong model is an error before the data are opened
  dataset = data.load(config.data.dataset, data_dir=config.data.data_dir, image_size=config.data.image_size)
  if config.data.batch_size > len(dataset.train):
    raise ValueError(
      f'data.batch_size={config.data.batch_size} is more than the {len(dataset.train)} training images of '
      f'{dataset.name}: give at most that'
    )
  create = functools.partial(network, num_classes=dataset.num_classes, image_size=dataset.image_size)
  layers = cost.trace(create(quant), (1, *dataset.image_shape))
  budget = _budget(config.budget, layers)
  init_bits = config.quant.init_bits
  if init_bits is None:
    # The paper's start for a search; a policy that is not searched is the uniform one.
    init_bits = cost.equivalent_bits(budget, layers) + (0.5 if 'search' in config.phases else 0)
  quant = dataclasses.replace(quant, init_bits=float(init_bits))
  given = policy.load(config.policy, layers) if config.policy else None
  if given is not None and budget.cost(given.bits(), layers) > budget.target:
    spent = float(budget.cost(given.bits(), layers))
    raise ValueError(
      f'policy {config.policy!r} costs {spent:.6g} {budget.unit}, over the budget of {budget.target:.6g}: raise the '
      'budget or give another policy'
    )
  return Experiment(
    config=config,
    dataset=dataset,
    float_model=create(None),
    quant_model=create(quant),
    layers=layers,
    budget=budget,
    init_bits=float(init_bits),
    policy=given,
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


def _check_numbers(config: ConfigDict) -> None:
  devices, batch_size = jax.local_device_count(), config.data.batch_size
  if batch_size < 1 or batch_size % devices:
    raise ValueError(
      f'data.batch_size={batch_size} does not divide over the {devices} devices of this machine: give a multiple of '
      f'{devices}'
    )
  if config.report_steps < 1:
    raise ValueError(f'report_steps={config.report_steps} is out of range: give a number of at least 1')
  for phase in config.phases:
    settings = config[phase]
    for name, least in (('epochs', 0), ('learning_rate', 0), ('warmup_epochs', 0)):
      if not settings[name] >= least:
        raise ValueError(f'{phase}.{name}={settings[name]} is out of range: give a number of at least {least}')
    start, end = settings.cosine
    if not 0 <= start <= end <= 1:
      raise ValueError(f'{phase}.cosine={tuple(settings.cosine)} is no part of a schedule: give 0 <= start <= end <= 1')


def _quant_config(config: ConfigDict) -> QuantConfig:
  q = config.quant
  return QuantConfig(
    granularity=q.granularity,
    choices=tuple(q.choices),
    input_choices=None if q.input_choices is None else tuple(q.input_choices),
    weight_only=q.weight_only,
    scheme=q.scheme,
    sat=q.sat,
    alpha_init=q.alpha_init,
  )


def _network(config: ConfigDict) -> Callable[..., nn.Module]:
  """Builds the configured network, float or quantized."""

  def create(quant: QuantConfig | None, num_classes: int = 10, image_size: int = 224) -> nn.Module:
    small = config.model.small_images
    return models.create(
      config.model.name,
      num_classes=num_classes,
      quant=quant,
      width=config.model.width,
      small_images=image_size <= _SMALL_IMAGE if small is None else small,
      axis_name=AXIS,
    )

  return create


def _budget(config: Any, layers: tuple[cost.Layer, ...]) -> cost.Budget:
  """The configured budget; an absolute target goes before equivalent bits, so that one override suffices."""
  if config.target is not None:
    return cost.budget(config.metric, layers, target=config.target)
  return cost.budget(config.metric, layers, equivalent_bits=config.equivalent_bits)
