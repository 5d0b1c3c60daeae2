"""From a configuration to checked objects: whatever is wrong with it is said here, before anything runs."""

import copy
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from fracbits_jax import cost, data, discretize, lookup, models, optim, policy, step, weights
from fracbits_jax.files import check_name
from fracbits_jax.layers import QuantConfig

PHASES = ('pretrain', 'search', 'finetune')
_DTYPES = {'float32': None, 'bfloat16': jnp.bfloat16}
# (field, least, largest); fields that are None follow something else.
_RANGES = (
  ('seed', 0, 2**31 - 1),
  ('model.width', 0.01, 16),
  ('data.image_size', 8, 4096),
  ('data.batch_size', 1, math.inf),
  ('data.accumulate', 1, math.inf),
  ('data.workers', 0, math.inf),
  ('quant.calibration_batches', 0, math.inf),
  ('budget.kappa', 0, math.inf),
  ('budget.gain', 0, math.inf),
  ('budget.damping', 0, math.inf),
  ('optimizer.momentum', 0, 1),
  ('optimizer.weight_decay', 0, math.inf),
  ('optimizer.bits_rate', 0, math.inf),
  ('distill.weight', 0, 1),
  ('distill.temperature', 0.01, math.inf),
  ('checkpoint_seconds', 0, math.inf),
  ('checkpoint_steps', 1, math.inf),
  ('report_steps', 1, math.inf),
  ('eval_epochs', 0, math.inf),
)
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
  """

  config: ConfigDict
  dataset: data.Dataset
  float_model: nn.Module
  quant_model: nn.Module
  layers: tuple[cost.Layer, ...]
  budget: cost.Budget
  init_bits: float
  policy: policy.Policy | None
  initial: weights.Weights | None


def prepare(config: ConfigDict, workdir: str | os.PathLike | None = None) -> Experiment:
  """Checks a configuration and opens what it names.

  Args:
    config: see `configs/base.py`.
    workdir: the run's folder; weights that it keeps go before `init_from`.

  Raises:
    ValueError: one sentence on the first thing that is wrong.
  """
  _check_phases(config)
  _check_numbers(config)
  if config.data.data_dir is not None and config.data.dataset != data.FOLDER:
    check_name(config.data.data_dir, 'choose another data.data_dir')
  data.check_name(config.data.dataset, config.data.data_dir)
  source = weights.find(config.init_from, workdir) if config.init_from is not None else None
  config = _with_demands(config, source)
  quant = quant_config(config)
  create = network(config)
  create(None)  # a wrong model is an error before the data are opened
  dataset = data.load(config.data.dataset, data_dir=config.data.data_dir, image_size=config.data.image_size)
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
  layers = cost.trace(create(quant), (1, *dataset.image_shape))
  budget = _budget(config.budget, layers)
  init_bits = config.quant.init_bits
  if init_bits is None:
    # The paper's start for a search; a policy that is not searched is the uniform one.
    init_bits = round(cost.equivalent_bits(budget, layers), 6) + (0.5 if 'search' in config.phases else 0)
  quant = dataclasses.replace(quant, init_bits=float(init_bits))
  given = policy.load(config.policy, layers) if config.policy else None
  if given is not None:
    check_policy(given, budget, layers, name=repr(config.policy), remedy='raise the budget or give another policy')
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


def _check_numbers(config: ConfigDict) -> None:
  if config.model.dtype not in _DTYPES:
    raise ValueError(f'model.dtype={config.model.dtype!r} is unknown: give one of {", ".join(_DTYPES)}')
  if config.optimizer.name not in optim.OPTIMIZERS:
    known = ', '.join(optim.OPTIMIZERS)
    raise ValueError(f'optimizer.name={config.optimizer.name!r} is unknown: give one of {known}')
  if config.budget.discretization not in discretize.METHODS:
    known = ', '.join(discretize.METHODS)
    raise ValueError(f'budget.discretization={config.budget.discretization!r} is unknown: give one of {known}')
  for name, least, most in _RANGES:
    _check_range(name, _at(config, name), least, most)
  devices, accumulate, batch_size = jax.device_count(), config.data.accumulate, config.data.batch_size
  if batch_size % (devices * accumulate):
    parts = f'the {devices} devices' if accumulate == 1 else f'{devices} devices x data.accumulate={accumulate}'
    raise ValueError(
      f'data.batch_size={batch_size} does not divide over {parts}: give a multiple of {devices * accumulate}'
    )
  for phase in config.phases:
    for name in ('epochs', 'learning_rate', 'warmup_epochs', 'reestimate_batches'):
      _check_range(f'{phase}.{name}', config[phase][name], 0, math.inf)
    cosine = tuple(config[phase].cosine)
    if len(cosine) != 2 or not 0 <= cosine[0] <= cosine[1] <= 1:
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


def _at(config: ConfigDict, name: str) -> Any:
  return functools.reduce(lambda node, key: node[key], name.split('.'), config)


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
  if value is not None and not (least <= value <= most and math.isfinite(value)):
    limit = f'at least {least}' if most == math.inf else f'from {least} to {most}'
    raise ValueError(f'{name}={value} is out of range: give a number {"of " if most == math.inf else ""}{limit}')


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
