"""What the study compares: budgets, methods, and the configuration of each cell; `study_settings` has the data sets."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from benchmarks.accuracy.study_settings import SETTINGS, Changes
from configs import base

_DATA_DIR = 'data.data_dir'


CHOICES = tuple(range(1, 9))  # allowed bit-widths of kernels and inputs, for every method alike

_METRICS = {'bitops': {}, 'size': {'quant.weight_only': True}}
BUDGETS = {
  f'{metric}{bits}': {'budget.metric': metric, 'budget.equivalent_bits': float(bits), **changes}
  for metric, changes in _METRICS.items()
  for bits in (2, 3, 4)
}
CORE_BUDGETS = ('bitops2', 'bitops3', 'size2')

GRANULARITIES = ('layer', 'kernel')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A row of the study.

  Attributes:
    label: in tables and figures.
    how: where the bit-widths come from. `search` learns them, `supernet` learns which branch to take; `uniform`,
      `random`, `hessian` and `loss` know them before the training, which is as long.
    changes: values that differ from the common configuration, by their path.
    full: whether only the full grid has it.
    part: for `ours` with one thing changed, what that is: `without learned bits`; empty otherwise.
    searched: the share of all epochs that the search takes; `None` for that of the setting.
  """

  label: str
  how: str = 'search'
  changes: Changes = dataclasses.field(default_factory=dict)
  full: bool = False
  part: str = ''
  searched: float | None = None


# The common configuration has calibrated clips, FracBits-SAT's quantizers and the fixed penalty, and differs from the
# paper in its discretization alone.
_PAPER = {'budget.discretization': 'offset'}
_LSQ = {'quant.scheme': 'lsq', 'quant.sat': False}
# Two's complement has one level more below 0 than above it, of 4 at 2 bits.
_BALANCED = {'quant.kernel_levels': 'balanced'}
# In the search as well it costs a forward pass of each step more, and gave 68.1% instead of 70.2% (glyphs, MobileNetV1,
# BitOPs of 2 bits, seed 0, validation).
_DISTILLED = {'distill.weight': 0.5, 'distill.temperature': 2.0, 'distill.phases': ('finetune',)}
_REESTIMATED = {'finetune.reestimate_batches': None}  # the setting's number
_CONTROLLED = {'budget.controlled': True}
# The bits go down to the budget gently: with damping 40 and gain 4 layers fall to 1 bit in the first steps, and do not
# come back in so short a search.
_GENTLE = {'budget.damping': 10.0, 'budget.gain': 2.0}
_OURS = {**_LSQ, **_BALANCED, **_DISTILLED, **_REESTIMATED, **_CONTROLLED, **_GENTLE}
_SEARCHED = 0.25  # half of the setting's own: what the finetuning has more is worth more than better bits


def _ours(label: str, part: str = '', less: Changes | None = None, **how: Any) -> Method:
  """`ours`, changed: without the fields `less`, and with `more` ones."""
  more = how.pop('more', {})
  changes = {**{name: value for name, value in _OURS.items() if name not in (less or {})}, **more}
  return Method(label=label, part=part, changes=changes, **{'searched': _SEARCHED, **how})


METHODS = {
  'uniform_pact': Method(label='uniform bits, PACT', how='uniform', changes={'quant.sat': False}),
  'uniform_sat': Method(label='uniform bits, SAT', how='uniform'),
  'uniform_lsq': Method(label='uniform bits, LSQ', how='uniform', changes=_LSQ),
  'random': Method(label='random policy', how='random'),
  'hessian': Method(label='Hessian trace and integer program', how='hessian'),
  'loss': Method(label='rise of the loss and integer program', how='loss'),
  'supernet': Method(label='a branch per bit-width (EdMIPS)', how='supernet'),
  'paper': Method(label='FracBits as in the paper', changes=_PAPER),
  'paper_uncalibrated': Method(
    label='FracBits as in the paper, clips from 8', changes={**_PAPER, 'quant.calibration_batches': 0}, full=True
  ),
  'ours': _ours('ours'),
  'ours_without_search': _ours('ours with uniform bits', 'without learned bits', less=_GENTLE, how='uniform'),
  'ours_without_balanced': _ours(
    "ours with two's complement levels", 'without balanced levels of kernels', less=_BALANCED
  ),
  'ours_elements': _ours('ours, elements mixed', 'with elements mixed, not values', more={'quant.mixture': 'elements'}),
  'ours_without_short_search': _ours('ours with a longer search', 'with a search of half of the epochs', searched=None),
  'ours_without_gentle': _ours('ours with the usual damping', 'with damping 40, gain 4', less=_GENTLE),
  'ours_without_both': _ours(
    'ours with a longer search and the usual damping', 'with both of these', less=_GENTLE, searched=None
  ),
  'ours_without_calibration': _ours(
    'ours without calibration', 'without calibrated clips', more={'quant.calibration_batches': 0}
  ),
  'ours_without_controller': _ours(
    'ours with the fixed penalty', 'without controlled penalty', less={**_CONTROLLED, **_GENTLE}
  ),
  'ours_without_exact': _ours('ours with a single offset', 'without exact discretization', more=_PAPER),
  'ours_without_lsq': _ours("ours with SAT's quantizers", 'without learned steps', less={**_LSQ, **_BALANCED}),
  'ours_without_distillation': _ours('ours without distillation', 'without distillation', less=_DISTILLED),
  'ours_without_reestimation': _ours(
    'ours without re-estimation', 'without batch norm re-estimation', less=_REESTIMATED
  ),
  'ours_hardened': _ours('ours, hardened', 'with hardened bits', more={'optimizer.hardening': 0.4}),
  'ours_recalibrated': _ours('ours, recalibrated', 'with ranges for the integers', more={'quant.recalibrate': True}),
  'ours_channel_ranges': _ours(
    'ours, ranges by channel', 'with a range for each channel', more={'quant.kernel_ranges': 'channel'}
  ),
  'ours_dampened': _ours('ours, dampened', 'with dampened oscillations', more={'optimizer.dampening': 1e-5}),
  'ours_adam': _ours(
    'ours, Adam for the bits',
    'with Adam for the bits',
    more={'optimizer.bits_name': 'adam', 'optimizer.bits_rate': 0.4, 'budget.gain': 50.0},
  ),
  'ours_random': _ours('ours with a random policy', how='random', full=True),
  'ours_hessian': _ours('ours with the Hessian policy', how='hessian', full=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One network that is trained: a method at a budget, from the float network of a seed."""

  dataset: str
  method: str
  network: str
  budget: str
  seed: int
  granularity: str = 'layer'

  @property
  def name(self) -> str:
    """As `--cell` takes it."""
    parts = (self.method, self.network, self.budget, str(self.seed))
    return ','.join(parts if self.granularity == 'layer' else (*parts, self.granularity))


def parse(text: str, dataset: str) -> Cell:
  """The cell `METHOD,NETWORK,BUDGET,SEED[,GRANULARITY]`; raises `ValueError` that says what is allowed."""
  parts = text.split(',')
  if len(parts) not in (4, 5):
    raise ValueError(f'{text!r} is no cell: give METHOD,NETWORK,BUDGET,SEED and, for kernel-wise bits, ,kernel')
  method, network, budget, seed, granularity = (*parts, 'layer')[:5]
  known = {
    'method': (method, METHODS),
    'network': (network, SETTINGS[dataset].networks),
    'budget': (budget, BUDGETS),
    'granularity': (granularity, GRANULARITIES),
  }
  for kind, (given, allowed) in known.items():
    if given not in allowed:
      raise ValueError(f'{kind} {given!r} is unknown: choose one of {", ".join(allowed)}')
  if not seed.isdecimal():
    raise ValueError(f'seed {seed!r} is no seed: give an integer of at least 0')
  return Cell(dataset=dataset, method=method, network=network, budget=budget, seed=int(seed), granularity=granularity)


def grid(
  dataset: str,
  *,
  full: bool = False,
  methods: Iterable[str] | None = None,
  networks: Iterable[str] | None = None,
  budgets: Iterable[str] | None = None,
  seeds: Iterable[int] = (0, 1, 2),
) -> Iterator[Cell]:
  """The cells of the core or of the full grid, or those that are named; seed after seed, so that each is complete."""
  setting, named = SETTINGS[dataset], methods is not None
  methods = list(methods or (name for name, method in METHODS.items() if full or not method.full))
  networks = list(networks or list(setting.networks)[: None if full else setting.core])
  budgets = list(budgets or (BUDGETS if full else CORE_BUDGETS))
  granularities = GRANULARITIES if full else GRANULARITIES[:1]
  for seed, network, budget, granularity, method in itertools.product(seeds, networks, budgets, granularities, methods):
    if METHODS[method].part and not (full or named or (network, budget) == setting.ablation):
      continue
    yield Cell(dataset=dataset, method=method, network=network, budget=budget, seed=seed, granularity=granularity)


def float_config(dataset: str, network: str, seed: int) -> ConfigDict:
  """The configuration of the float network that all cells of a network and a seed start from."""
  setting, config = SETTINGS[dataset], base.get_config()
  config.seed, config.phases = seed, ('pretrain',)
  config.model.name, config.model.width = network, setting.networks[network]
  config.data.dataset = 'folder' if setting.folder else dataset
  config.data.image_size = setting.image_size
  config.data.batch_size = setting.batch_size
  config.eval_epochs = setting.eval_epochs
  epochs = setting.pretrain_epochs_of.get(network, setting.pretrain_epochs)
  config.pretrain = base.phase(epochs, setting.pretrain_rate, warmup_epochs=setting.warmup_epochs)
  config.update_from_flattened_dict(dict(setting.changes))
  return config


def config_of(cell: Cell) -> ConfigDict:
  """The configuration of a cell, without the folders that its float network and its policy come from."""
  setting, method = SETTINGS[cell.dataset], METHODS[cell.method]
  config = float_config(cell.dataset, cell.network, cell.seed)
  searches = method.how in ('search', 'supernet')
  config.phases = ('search', 'finetune') if searches else ('finetune',)
  warmup = dict(warmup_epochs=setting.warmup_epochs)
  every = setting.search_epochs + setting.finetune_epochs
  search = setting.search_epochs if method.searched is None else method.searched * every
  ends = search / every if setting.one_cosine else 0.8
  config.search = base.phase(search, setting.rate, cosine=(0.0, ends), **warmup)
  epochs = every - search if searches else every
  rest = dict(cosine=(ends, 1.0)) if searches and setting.one_cosine else warmup
  config.finetune = base.phase(epochs, setting.rate, **rest)
  config.quant.choices, config.quant.sat, config.quant.granularity = CHOICES, True, cell.granularity
  config.budget.kappa = setting.kappa
  config.optimizer.bits_rate = setting.bits_rate
  if cell.granularity == 'kernel':
    config.optimizer.channel_bits_rate = setting.channel_bits_rate
  changes = {**BUDGETS[cell.budget], **method.changes}
  if 'finetune.reestimate_batches' in changes:
    changes['finetune.reestimate_batches'] = setting.reestimate_batches
  config.update_from_flattened_dict(changes)
  return config


def set_epochs(dataset: str, epochs: float) -> None:
  """Gives a search and a finetuning so many epochs each, to be shared as methods do: cells of another study."""
  SETTINGS[dataset] = dataclasses.replace(SETTINGS[dataset], search_epochs=epochs, finetune_epochs=epochs)


def set_data_dir(dataset: str, data_dir: str) -> None:
  """Says where a data set lies, which makes no cell another one."""
  setting = SETTINGS[dataset]
  SETTINGS[dataset] = dataclasses.replace(setting, changes={**setting.changes, _DATA_DIR: data_dir})


def digest(cell: Cell) -> str:
  """Of everything that a cell's result depends on but the code: results with another one are of another study."""
  return _sha([settings_of(config_of(cell)), METHODS[cell.method].how])


def float_digest(config: ConfigDict) -> str:
  """Of the configuration of a float network, as `digest` of a cell."""
  return _sha(settings_of(config))


def settings_of(config: ConfigDict) -> dict[str, Any]:
  """What a configuration has by path where it differs from the base: a field that is added there changes no digest."""
  usual, given = (_flat(json.loads(of.to_json())) for of in (base.get_config(), config))
  return {path: value for path, value in given.items() if value != usual[path] and path != _DATA_DIR}


def _flat(tree: Any, path: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {path: tree}
  return {k: v for key, value in tree.items() for k, v in _flat(value, f'{path}.{key}' if path else key).items()}


def _sha(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
