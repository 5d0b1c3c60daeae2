"""Every field of a configuration, given what nobody means."""

import copy
import functools
import math

import jax
import pytest
from ml_collections import ConfigDict
from tiny import tiny

from configs import base
from fracbits_jax import cost
from fracbits_jax.data import sets
from fracbits_jax.run import begin, checks, experiment, settings

NASTY = (
  math.nan, math.inf, -math.inf, -1, -1e-9, -0.0, 0, 1e-320, 0.5, 2.5, 20, 1e308, -1e308, 2**63, -(2**63), 10**5000,
  True, 'x', '', None, (), (1,), ('x',), {}, 1 + 1j, object(),
)  # fmt: skip


def _flat(config, prefix=''):
  for name, value in config.items():
    if hasattr(value, 'items'):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def test_every_field_of_the_recipes_has_a_type_and_a_range():
  assert sorted(settings.FIELDS) == sorted(name for name, _ in _flat(base.get_config()))
  settings.check(base.get_config())


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A configuration as plain dictionaries, where its data are, and `prepare` that opens and traces nothing twice."""
  config = tiny(**{'model.width': 0.25})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sets, 'load', functools.cache(sets.load))
    patch.setattr(cost, 'trace', functools.cache(cost.trace))
    patch.setattr(sets, 'check_name', functools.cache(sets.check_name))
    patch.setattr(jax, 'device_count', lambda: 1)
    experiment.prepare(config)
    yield config.to_dict()


def _with(config, changes):
  """A configuration of any types, as one that is read from a file."""
  config = copy.deepcopy(config)
  for name, value in changes.items():
    *groups, last = name.split('.')
    functools.reduce(lambda node, group: node[group], groups, config)[last] = value
  return ConfigDict(config)


@pytest.mark.parametrize('name', sorted(settings.FIELDS))
def test_a_nasty_value_is_refused_in_one_sentence_or_means_something(prepared, name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # what is taken for a folder is made
  accepted = []
  for value in NASTY:
    config = _with(prepared, {name: value})
    try:
      found = experiment.prepare(config)
    except ValueError as error:
      text = str(error)
      assert '\n' not in text
      assert len(text) < 900
      continue
    accepted.append(value)
    steps = settings.phase_steps(found.config, len(found.dataset.train))
    assert all(0 <= count < 2**31 for count in steps.values())
    for phase, count in steps.items():
      rate = begin.schedule(found, phase, steps=count, steps_per_epoch=9)
      assert all(math.isfinite(rate(step)) for step in (0, count // 2, count))
  numbers = [value for value in accepted if isinstance(value, int | float) and not isinstance(value, bool)]
  assert all(math.isfinite(value) for value in numbers)
  if settings.FIELDS[name].kind in ('integer', 'number'):
    assert not [value for value in accepted if isinstance(value, bool | str | tuple | dict | complex)]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'search.epochs': 1e308}, r'search.epochs=1e\+308 is out of range: give a number from 0 to 1000000'),
    ({'eval_epochs': 0.0}, 'eval_epochs=0.0 is out of range: give a number above 0'),
    ({'eval_epochs': 1e308}, 'eval_epochs=.* is out of range'),
    ({'quant.init_bits': math.inf}, 'quant.init_bits=inf is out of range'),
    ({'quant.init_bits': 9.0}, 'quant.init_bits=9 is beyond the allowed bit-widths: give a number from 2 to 8'),
    ({'quant.alpha_init': math.inf}, 'quant.alpha_init=inf is out of range'),
    ({'data.workers': 2**63}, 'data.workers=9223372036854775808 is out of range: give a number from 0 to 256'),
    ({'pretrain.epochs': 0, 'search.epochs': 0, 'finetune.epochs': 0}, 'there is nothing to train'),
    ({'quant.choices': (4,)}, 'leaves nothing to choose.* allow at least two bit-widths'),
    ({'budget.equivalent_bits': 9.0}, 'already met .* below .* the cost of 2 to 8 bits everywhere'),
    ({'budget.target': 1e-9}, 'cannot be met .* the cost of 2 to 8 bits everywhere'),
    ({'phases': ('finetune',), 'budget.equivalent_bits': 2.5}, 'equivalent_bits=2.5 is not allowed: give one of 2'),
    ({'optimizer.momentum': 1.0}, 'from 0 to 1, itself left out'),
    ({'seed': True}, 'seed=True is not an integer: give an integer'),
    ({'quant.choices': 'all'}, "quant.choices='all' is not a list"),
  ],
)  # fmt: skip
def test_nonsense_is_named_with_what_is_allowed(prepared, changes, message):
  with pytest.raises(ValueError, match=message):
    experiment.prepare(_with(prepared, changes))


@pytest.mark.parametrize(
  ('changes', 'note'),
  [
    ({}, None),
    ({'phases': ('search', 'finetune')}, 'search starts from random weights: add pretrain'),
    ({'pretrain.epochs': 0.0}, 'search starts from random weights'),
    ({'finetune.warmup_epochs': 9.0}, 'finetune.warmup_epochs=9 are more than its 2 epochs'),
    ({'finetune.epochs': 1e-6}, 'less than half a step'),
    ({'data.batch_size': 1}, 'batch norm sees one image at a time'),
    ({'data.batch_size': 4, 'data.accumulate': 4}, 'batch norm sees one image at a time'),
    ({'data.batch_size': 1, 'model.name': 'vit_mini', 'quant.sat': False}, None),
  ],
)
def test_what_is_seldom_meant_is_said(prepared, changes, note):
  notes = experiment.prepare(_with(prepared, changes)).notes
  assert len(notes) == (note is not None)
  assert note is None or note in notes[0]


def test_more_steps_than_are_counted_are_refused(prepared):
  config = _with(prepared, {'search.epochs': 1e6})
  assert settings.phase_steps(config, 10**7)['search'] > 2**31
  with pytest.raises(ValueError, match=r'search.epochs=1e\+06 are 78,125,000,000 steps: give fewer epochs'):
    checks.check_length(config, settings.phase_steps(config, 10**7), None)


def test_a_field_that_is_missing_is_named():
  config = base.get_config().to_dict()
  del config['data']['batch_size']
  assert settings.missing(config) == ['data.batch_size']
  with pytest.raises(ValueError, match=r'no field data.batch_size: start from base.get_config'):
    settings.check(config)
