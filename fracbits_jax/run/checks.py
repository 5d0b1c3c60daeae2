"""What is asked of a configuration as a whole: each check raises `ValueError` with one sentence on what is wrong.

The type and the range of each field alone are those of `settings`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax import cost, policy, tasks
from fracbits_jax.data.dataset import Dataset
from fracbits_jax.layers import QuantConfig
from fracbits_jax.policy import discretization
from fracbits_jax.run import settings, weights
from fracbits_jax.run.settings import PHASES
from fracbits_jax.train import optim

DTYPES = {'float32': None, 'bfloat16': jnp.bfloat16}
_MOST_STEPS = 2**31 - 1  # a step is counted in 32 bits


def check_phases(config: ConfigDict) -> None:
  """Raises `ValueError` for phases that are unknown, out of order, or search what is given."""
  phases = tuple(config.phases)
  unknown = [phase for phase in phases if phase not in PHASES]
  if unknown or not phases:
    raise ValueError(f'phases={phases} holds {unknown or "nothing"}: give some of {", ".join(PHASES)}, in this order')
  if list(phases) != sorted(set(phases), key=PHASES.index):
    raise ValueError(f'phases={phases} are out of order or repeated: give some of {", ".join(PHASES)}, in this order')
  if config.policy and 'search' in phases:
    raise ValueError(f'policy={config.policy!r} is given, so there is nothing to search: leave search out of phases')


def check_values(config: ConfigDict) -> None:
  """Raises `ValueError` for a name that is unknown, a batch that cannot be parted, and a part of no schedule."""
  if config.model.dtype not in DTYPES:
    raise ValueError(f'model.dtype={config.model.dtype!r} is unknown: give one of {", ".join(DTYPES)}')
  if config.optimizer.name not in optim.OPTIMIZERS:
    known = ', '.join(optim.OPTIMIZERS)
    raise ValueError(f'optimizer.name={config.optimizer.name!r} is unknown: give one of {known}')
  if config.optimizer.bits_name not in optim.BITS_OPTIMIZERS:
    known = ', '.join(optim.BITS_OPTIMIZERS)
    raise ValueError(f'optimizer.bits_name={config.optimizer.bits_name!r} is unknown: give one of {known}')
  if config.optimizer.bits_balance and config.optimizer.bits_name == 'adam':
    raise ValueError(
      f'optimizer.bits_balance={config.optimizer.bits_balance:g} scales the gradients of bit-widths, and '
      'optimizer.bits_name=adam takes every scale away: set optimizer.bits_name=sgd, or optimizer.bits_balance=0'
    )
  if config.optimizer.dampening and config.quant.scheme != 'lsq':
    raise ValueError(
      f'optimizer.dampening={config.optimizer.dampening:g} draws weights to the levels of learned ranges, and '
      f'quant.scheme={config.quant.scheme} has none: set quant.scheme=lsq, or optimizer.dampening=0'
    )
  if config.quant.recalibrate and not config.quant.calibration_batches:
    raise ValueError(
      'quant.recalibrate=True calibrates clips and ranges for the integer bits, and quant.calibration_batches=0 gives '
      'it no batches: give some'
    )
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


def check_batch(config: ConfigDict, dataset: Dataset) -> None:
  """Raises `ValueError` for a batch that is larger than the data set."""
  if config.data.batch_size > len(dataset.train):
    what = 'images' if dataset.tokens is None else 'windows'
    raise ValueError(
      f'data.batch_size={config.data.batch_size} is more than the {len(dataset.train)} training {what} of '
      f'{dataset.name}: give at most that'
    )


def check_targets(
  config: ConfigDict, task: tasks.Task, model: nn.Module, inputs: jax.ShapeDtypeStruct, outputs: int
) -> None:
  """Raises `ValueError` for noise that nothing takes out, or a network with another number of outputs than targets."""
  if config.data.noise and not task.meets_targets:
    raise ValueError(
      f'data.noise={config.data.noise:g} is for networks that give images back without it, and the task of '
      f'model.name={config.model.name} is {task.name}: leave it at 0, or take denoiser'
    )
  if not task.meets_targets:
    return
  found = jax.eval_shape(model.init_with_output, jax.random.key(0), inputs)[0].size
  if found != outputs:
    raise ValueError(
      f'model.name={config.model.name} has {found:,} outputs an example, and the data have {outputs:,} values that '
      'they are to meet: take autoencoder, which has as many outputs as there are values'
    )


def check_teacher(config: ConfigDict, initial: weights.Weights | None, task: tasks.Task) -> None:
  """Raises `ValueError` unless there is a float network to distil from as configured, where that is asked for."""
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
  if distils and config.distill.temperature != 1 and not task.has_temperature:
    raise ValueError(
      f'distill.temperature={config.distill.temperature:g} softens logits, and the outputs of model.name='
      f'{config.model.name} are none: its task is {task.name}; leave it at 1'
    )


def check_ranges(config: ConfigDict, initial: weights.Weights | None, layers: Sequence[cost.Layer]) -> None:
  """Raises `ValueError` for given ranges that the network has no place for: finer ones than it is to have.

  One range for what is to have several is no loss.
  """
  if initial is None or 'pretrain' in config.phases:
    return
  stacks = {path: len(layer.stack) for layer in layers for path in (layer.path, layer.input_path)}
  own = lambda name, clip: np.ndim(clip) - stacks.get(name.rpartition('/')[0], 0)  # axes behind those of a stack
  has_offset = any(own(name, clip) for name, clip in initial.clips.items() if name.endswith('/alpha'))
  if has_offset and not (config.quant.scheme == 'lsq' and config.quant.input_offset):
    raise ValueError(
      f'init_from={config.init_from} has offsets of inputs, and quant.scheme={config.quant.scheme} with '
      f'quant.input_offset={config.quant.input_offset} has none: set quant.scheme=lsq and quant.input_offset=True, or '
      'start from its float network'
    )
  if config.quant.scheme != 'lsq':
    return
  of_channels = any(own(name, clip) == 1 for name, clip in initial.clips.items() if name.endswith('/kernel_alpha'))
  if config.quant.group_size is None and config.quant.kernel_ranges == 'layer' and of_channels:
    raise ValueError(
      f'init_from={config.init_from} has a range for each output channel, and quant.kernel_ranges=layer leaves one a '
      'kernel: set quant.kernel_ranges=channel, or start from its float network'
    )
  for layer in layers:
    given = np.shape(initial.clips.get(f'{layer.path}/kernel_alpha', 1.0))[len(layer.stack) :]
    fits = layer.group_size is not None and given[:1] in ((1,), (layer.ranges // max(layer.channels, 1),))
    if len(given) == 2 and not fits:
      raise ValueError(
        f'init_from={config.init_from} has ranges of other groups than quant.group_size={config.quant.group_size} '
        f'gives {layer.name}: set the group size that it was trained with, or start from its float network'
      )


def check_frozen(config: ConfigDict, initial: weights.Weights | None) -> None:
  """Raises `ValueError` for a float network that is not there to keep, or that is kept where it is to be trained."""
  if 'pretrain' in config.phases and not config.pretrain.weights_rate:
    raise ValueError('pretrain.weights_rate=0 keeps the weights, and pretrain has nothing else to train: raise it')
  if config.model.frozen_norm and 'pretrain' not in config.phases and (initial is None or not initial.is_float):
    raise ValueError(
      'model.frozen_norm=True keeps the statistics of a float network, and there is none: add pretrain to phases, or '
      'give one by init_from'
    )


def check_length(config: ConfigDict, steps: dict[str, int], initial: weights.Weights | None) -> None:
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


def check_start(init_bits: float | None, quant: QuantConfig) -> None:
  """Raises `ValueError` for bits that are to start beyond the allowed bit-widths."""
  allowed = sorted({*quant.allowed_kernel_bits, *(quant.allowed_input_bits if quant.learns_input else ())})
  if init_bits is not None and not allowed[0] <= init_bits <= allowed[-1]:
    raise ValueError(
      f'quant.init_bits={init_bits:g} is beyond the allowed bit-widths: give a number from {allowed[0]} to '
      f'{allowed[-1]}, or None to start at the budget'
    )


def check_uniform(config: ConfigDict, quant: QuantConfig) -> None:
  """Raises `ValueError` where the bits of a run without a search are to be uniform and cannot be."""
  name = 'budget.equivalent_bits' if config.quant.init_bits is None else 'quant.init_bits'
  bits = config.budget.equivalent_bits if config.quant.init_bits is None else config.quant.init_bits
  allowed = [b for b in quant.allowed_kernel_bits if not quant.learns_input or b in quant.allowed_input_bits]
  is_absolute = config.budget.target is not None or config.budget.bits_per_weight is not None
  in_steps = config.quant.init_bits is None and is_absolute  # discretized to meet the target
  if bits not in allowed and not in_steps and 'finetune' in config.phases:
    raise ValueError(
      f'without a search every layer has the same bits, and {name}={bits:g} is not allowed: give one of '
      f'{", ".join(map(str, allowed))}, or add search to phases'
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


def notes(
  config: ConfigDict,
  float_model: nn.Module,
  dataset: Dataset,
  initial: weights.Weights | None,
  task: tasks.Task,
  layers: Sequence[cost.Layer],
) -> tuple[str, ...]:
  """What is allowed and seldom meant."""
  said, steps = [], settings.phase_steps(config, len(dataset.train))
  first = next((phase for phase, count in steps.items() if count), None)
  if initial is None and first not in ('pretrain', None):
    said.append(f'{first} starts from random weights: add pretrain to phases, or give a float network by init_from')
  for phase, count in steps.items():
    epochs, warmup = config[phase].epochs, config[phase].warmup_epochs
    if epochs and not count:
      said.append(f'{phase}.epochs={epochs:g} are less than half a step: {phase} trains nothing')
    if count and warmup > epochs:
      said.append(
        f'{phase}.warmup_epochs={warmup:g} are more than its {epochs:g} epochs: its learning rate never gets to '
        f'{config[phase].learning_rate:g}'
      )
  if (
    config.data.batch_size == config.data.accumulate and dataset.tokens is None
  ):  # one image, for as many devices there is more than one
    images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    if 'batch_stats' in jax.eval_shape(float_model.init, jax.random.key(0), images):
      said.append('batch norm sees one image at a time (data.batch_size / data.accumulate): give it more')
  if task.keeps_scale and config.quant.scheme != 'lsq' and set(config.phases) - {'pretrain'}:
    said.append(
      f'quant.scheme={config.quant.scheme} gives the last kernel a scale of its own, and the task {task.name} has to '
      'learn around it: lsq keeps that of the float network'
    )
  if 0 in config.quant.choices and not any(layer.prunes for layer in layers):
    said.append(
      f'quant.choices={tuple(config.quant.choices)} allows 0 bits, and model.name={config.model.name} has no channels '
      'that can be pruned: they have at least 1'
    )
  return tuple(said)
