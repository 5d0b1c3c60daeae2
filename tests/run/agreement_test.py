import json
import random

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits
from fracbits_jax.run import agreement
from fracbits_jax.train import hosts


def sentence_of(monkeypatch, fields):
  """What hosts with these fields say, from each host's view; `None` where they agree."""
  told = []
  monkeypatch.setattr(hosts, 'several', lambda: True)
  monkeypatch.setattr(hosts, 'gather_bytes', lambda value: [json.dumps(f, sort_keys=True).encode() for f in fields])
  for mine in fields:
    digest = lambda f: np.frombuffer(
      agreement.hashlib.sha256(json.dumps(f, sort_keys=True).encode()).digest(), np.uint8
    )
    monkeypatch.setattr(hosts, 'gather', lambda value, digest=digest: np.stack([digest(f) for f in fields]))
    try:
      agreement.check(mine)
      told.append(None)
    except ValueError as error:
      told.append(str(error))
  assert len(set(told)) == 1
  return told[0]


def changed(name, value):
  config = digits.get_config()
  config.update_from_flattened_dict({name: value})
  return agreement.settings(config)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('search.learning_rate', 0.123),
    ('seed', 7),
    ('pretrain.epochs', 3.0),
    ('phases', ('search',)),
    ('quant.choices', (2, 4)),
    ('checkpoint_steps', 9),
    ('budget.also.size', 0.5),
    ('model.name', 'resnet8'),
  ],
)
def test_another_value_of_any_field_is_named_with_both_values(name, value, monkeypatch):
  usual = agreement.settings(digits.get_config())
  text = sentence_of(monkeypatch, [usual, usual, changed(name, value)])
  assert f'{name} is {usual[name]} on hosts 0, 1 and {changed(name, value)[name]} on host 2' in text
  assert '\n' not in text


def test_what_a_host_may_have_of_its_own_is_no_difference(monkeypatch):
  usual = agreement.settings(digits.get_config())
  assert sentence_of(monkeypatch, [usual, changed('data.data_dir', '/mine'), changed('data.workers', 4)]) is None


def test_another_version_or_another_source_file_is_named(monkeypatch):
  usual = agreement.settings(digits.get_config())
  for name in ('the version of jax', 'the version of flax', 'the version of optax', 'the digest of its source files'):
    assert f'{name} is ' in sentence_of(monkeypatch, [usual, {**usual, name: '0.0.0'}])


def test_many_differences_are_still_a_sentence():
  rng = random.Random(0)
  fields = [{f'field{i}': str(rng.random()) * 50 for i in range(200)} for _ in range(64)]
  text = agreement.sentence(fields)
  assert 'and 195 more' in text
  assert len(text) < 30_000


def test_a_field_that_only_some_have_is_a_difference():
  assert 'a is 1 on host 0 and missing on host 1' in agreement.sentence([{'a': '1'}, {}])
  assert agreement.settings(ConfigDict({'a': None})).items() >= {'a': 'None'}.items()
