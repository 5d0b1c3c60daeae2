"""The fields of a configuration: the type and the range of each, checked before anything is opened.

`configs/base.py` gives the fields their defaults and says what each means.
"""

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

PHASES = ('pretrain', 'search', 'finetune')

_KINDS = {'integer': 'an integer', 'number': 'a number', 'flag': 'True or False', 'text': 'text', 'list': 'a list'}
_MOST_EPOCHS = 1e6
_COUNTLESS = 2**53  # so many of anything are too many elsewhere
_NEVER = 1e9  # of seconds or epochs between two things that are not to happen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """What a field may hold.

  Attributes:
    kind: `integer`, `number`, `flag`, `text` or `list`.
    least: the least number.
    most: the largest number.
    above: the least number itself is left out.
    below: the largest number itself is left out.
    optional: it may be `None` as well, which stands for something else.
  """

  kind: str
  least: float = 0
  most: float = 0
  above: bool = False
  below: bool = False
  optional: bool = False

  def problem(self, value: Any) -> str | None:
    """What is wrong with a value and what is allowed, as the end of a sentence; `None` for one that may stay."""
    if value is None and self.optional:
      return None
    if not _is(self.kind, value):
      return self.refusal()
    if value == '':
      return f'is empty: give text{" or None" if self.optional else ""}'
    if self.kind not in ('integer', 'number'):
      return None
    over = self.least < value if self.above else self.least <= value
    under = value < self.most if self.below else value <= self.most
    return None if over and under else f'is out of range: give a number {self._limits()}'

  def refusal(self) -> str:
    """What is said of a value of another kind, as the end of a sentence."""
    return f'is not {_KINDS[self.kind]}: give {_KINDS[self.kind]}{" or None" if self.optional else ""}'

  def _limits(self) -> str:
    least, most = (f'{limit:.10g}' for limit in (self.least, self.most))
    if self.most == _COUNTLESS:
      return f'of at least {least}'
    if self.above:
      return f'above {least} and up to {most}'
    return f'from {least} to {most}{", itself left out" if self.below else ""}'


def _is(kind: str, value: Any) -> bool:
  if kind in ('integer', 'number'):
    number = numbers.Integral if kind == 'integer' else numbers.Real
    return isinstance(value, number) and not isinstance(value, bool)
  kinds: dict[str, Any] = {'flag': bool, 'text': str, 'list': tuple | list | range}
  return isinstance(value, kinds[kind])


def is_number(value: Any) -> bool:
  """Whether a value is a number, and no truth value."""
  return _is('number', value)


def _kind(kind: str) -> Callable[..., Field]:
  return lambda least=0, most=0, **how: Field(kind=kind, least=least, most=most, **how)


_integer, _number, _flag, _text, _list = map(_kind, _KINDS)

_METRICS = ('bitops', 'size', 'lookup', 'memory')
_PHASE = {
  'epochs': _number(0, _MOST_EPOCHS),
  'learning_rate': _number(0, 1e30),
  'warmup_epochs': _number(0, _MOST_EPOCHS),
  'cosine': _list(),
  'weights_rate': _number(0, 1e6),
  'reestimate_batches': _integer(0, 1_000_000),
}

_DECODER = {
  'dim': _integer(8, 16384, optional=True),
  'depth': _integer(1, 256, optional=True),
  'head_dim': _integer(2, 1024, optional=True),
  'kv_heads': _integer(1, 1024, optional=True),
  'mlp': _text(optional=True),
  'norm': _text(optional=True),
  'positions': _text(optional=True),
  'tied': _flag(optional=True),
  'scan': _flag(optional=True),
}

FIELDS: Mapping[str, Field] = {
  'seed': _integer(0, 2**31 - 1),
  'phases': _list(),
  'policy': _text(optional=True),
  'init_from': _text(optional=True),
  'model.name': _text(),
  'model.width': _number(0.01, 16),
  'model.dtype': _text(),
  'model.remat': _flag(),
  'model.frozen_norm': _flag(),
  'model.small_images': _flag(optional=True),
  'model.image_mean': _list(optional=True),
  'model.relu6': _flag(optional=True),
  **{f'model.decoder.{name}': field for name, field in _DECODER.items()},
  'data.dataset': _text(),
  'data.data_dir': _text(optional=True),
  'data.image_size': _integer(8, 4096, optional=True),
  'data.random_crops': _flag(optional=True),
  'data.exif_orientation': _flag(),
  'data.noise': _number(0, 10),
  'data.tokens': _text(),
  'data.context': _integer(1, 2**20),
  'data.background': _list(optional=True),
  'data.batch_size': _integer(1, _COUNTLESS),
  'data.accumulate': _integer(1, _COUNTLESS),
  'data.workers': _integer(0, 256),
  'quant.granularity': _text(),
  'quant.choices': _list(),
  'quant.input_choices': _list(optional=True),
  'quant.init_bits': _number(0, 16, optional=True),
  'quant.weight_only': _flag(),
  'quant.quantize_residuals': _flag(),
  'quant.scheme': _text(),
  'quant.kernel_ranges': _text(),
  'quant.kernel_levels': _text(),
  'quant.group_size': _integer(1, 2**31 - 1, optional=True),
  'quant.range_bits': _integer(16, 32),
  'quant.input_offset': _flag(),
  'quant.stochastic': _flag(),
  'quant.mixture': _text(),
  'quant.sat': _flag(),
  'quant.alpha_init': _number(1e-6, 1e6),
  'quant.calibration_batches': _integer(0, 1000),
  'quant.calibration': _text(),
  'quant.recalibrate': _flag(),
  'budget.metric': _text(),
  'budget.table': _text(optional=True),
  'budget.equivalent_bits': _number(0, 32),
  'budget.target': _number(0, 1e30, above=True, optional=True),
  'budget.bits_per_weight': _number(0, 64, above=True, optional=True),
  **{f'budget.also.{metric}': _number(0, 1e30, above=True, optional=True) for metric in _METRICS},
  'budget.kappa': _number(0, 1e30, optional=True),
  'budget.controlled': _flag(),
  'budget.gain': _number(0, 1e6),
  'budget.damping': _number(0, 1e6),
  'budget.discretization': _text(),
  'optimizer.name': _text(),
  'optimizer.momentum': _number(0, 1, below=True),
  'optimizer.weight_decay': _number(0, 1e6),
  'optimizer.clip_norm': _number(0, 1e6, above=True, optional=True),
  'optimizer.bits_name': _text(),
  'optimizer.bits_clip': _number(0, 1e6, above=True, optional=True),
  'optimizer.bits_rate': _number(0, 1e6),
  'optimizer.channel_bits_rate': _number(0, 1e6),
  'optimizer.bits_balance': _number(0, 1),
  'optimizer.hardening': _number(0, 1),
  'optimizer.dampening': _number(0, 1e6),
  'distill.weight': _number(0, 1),
  'distill.temperature': _number(0.01, 1e6),
  'distill.phases': _list(),
  'checkpoint_seconds': _number(0, _NEVER),
  'checkpoint_steps': _integer(1, 2**31 - 1, optional=True),
  'report_steps': _integer(1, 2**31 - 1),
  'eval_epochs': _number(0, _NEVER, above=True),
  **{f'{phase}.{name}': field for phase in PHASES for name, field in _PHASE.items()},
}


# What fields that are younger than a run's folder stand for in its configuration.
_YOUNGER: Mapping[str, Any] = {
  'data.random_crops': None,
  'data.noise': 0.0,
  'data.tokens': 'characters',
  'data.context': 128,
  'model.decoder': dict.fromkeys(_DECODER),
  'quant.quantize_residuals': False,
  'quant.kernel_ranges': 'layer',
  'quant.kernel_levels': 'twos_complement',
  'quant.group_size': None,
  'quant.range_bits': 16,
  'quant.recalibrate': False,
  'quant.mixture': 'values',
  'quant.input_offset': False,
  'budget.also.memory': None,
  'budget.bits_per_weight': None,
  'optimizer.bits_name': 'sgd',
  'optimizer.bits_clip': None,
  'optimizer.clip_norm': None,
  'optimizer.channel_bits_rate': 1.0,
  'optimizer.bits_balance': 0.0,
  'optimizer.hardening': 0.0,
  'optimizer.dampening': 0.0,
  'model.frozen_norm': False,
  **{f'{phase}.weights_rate': 1.0 for phase in PHASES},
}


def phase_steps(config: Any, images: int) -> dict[str, int]:
  """By phase, how many steps its epochs are for so many training images."""
  return {phase: round(config[phase].epochs * (images // config.data.batch_size)) for phase in config.phases}


def missing(config: Mapping[str, Any]) -> list[str]:
  """The fields that a configuration lacks; those of phases that do not run may be left out."""
  phases: Any = config.get('phases')
  idle = {phase for phase in PHASES if _is('list', phases) and phase not in phases}
  return [name for name in FIELDS if name.split('.')[0] not in idle and _at(config, name) is _NOTHING]


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
  """The configuration that an earlier version left in a run's folder, with the fields that there are since then."""
  filled = copy.deepcopy(dict(config))
  for name, value in _YOUNGER.items():
    *path, last = name.split('.')
    node: Any = filled
    for key in path:
      node = node.get(key) if isinstance(node, dict) else None
    if isinstance(node, dict):
      node.setdefault(last, copy.deepcopy(value))
  return filled


_NOTHING = object()


def _at(config: Mapping[str, Any], name: str) -> Any:
  node: Any = config
  for key in name.split('.'):
    if not hasattr(node, 'keys') or key not in node:
      return _NOTHING
    node = node[key]
  return node


def check(config: Mapping[str, Any]) -> None:
  """Raises `ValueError` with one sentence on the first field that is missing, of another type or out of its range."""
  lacking = missing(config)
  if lacking:
    raise ValueError(
      f'the config has no field {lacking[0]}: start from base.get_config() of configs/base.py, which has all of them'
    )
  for name, field in FIELDS.items():
    value = _at(config, name)
    problem = None if value is _NOTHING else field.problem(value)
    if problem:
      raise ValueError(f'{name}={_shown(value)} {problem}')


def _shown(value: Any) -> str:
  try:
    text = ' '.join(repr(value).split())
  except ValueError:  # an integer of more digits than Python writes
    return 'a number of thousands of digits'
  return text if len(text) <= 80 else f'{text[:80]}...'
