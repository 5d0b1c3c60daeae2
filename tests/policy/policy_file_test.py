import dataclasses
import json
import re

import numpy as np
import pytest
from policy_tables import TABLE, network

from fracbits_jax import cost, policy
from fracbits_jax.cost import Layer, lookup


def made() -> policy.Policy:
  budget = cost.budget('bitops', TABLE, equivalent_bits=3)
  return policy.discretize(cost.uniform_bits(TABLE, 3.4), TABLE, budget)


def test_a_policy_survives_its_file(tmp_path):
  path = tmp_path / 'policy.json'
  first = made()
  first.save(path)
  assert policy.load(path, TABLE) == first
  assert list(tmp_path.iterdir()) == [path]
  document = json.loads(path.read_text())
  rows = {row['name']: row for row in document['layers']}
  assert list(rows) == [layer.name for layer in TABLE]
  assert len(rows['block/a']['kernel']) == 3
  assert rows['stem']['kernel'] == rows['stem']['input'] == 8
  np.testing.assert_allclose(sum(row['cost_share'] for row in rows.values()), 1, atol=1e-4)
  assert document['cost'] <= document['target']


def test_every_mismatch_with_a_network_is_named(tmp_path):
  path = tmp_path / 'policy.json'
  made().save(path)
  other = (
    Layer(name='stem', macs=1001, weights=100, channels=4, kernel_bits=8, input_bits=8),
    Layer(name='block/a', macs=3000, weights=300, channels=4, per_channel=True),
    Layer(name='block/b', macs=9000, weights=900, channels=5, choices=(1, 16), input_choices=(2, 4, 8)),
    Layer(name='tail', macs=500, weights=500, channels=5),
  )
  with pytest.raises(ValueError, match='for another network') as caught:
    policy.load(path, other)
  message = str(caught.value)
  for part in ('policy.json', 'stem has 1000 macs', 'block/a has kernel bits of shape', 'outside the allowed',
               'head is not in the network', 'tail is not in the policy'):  # fmt: skip
    assert part in message
  assert '\n' not in message


@pytest.mark.parametrize(
  'break_it',
  [
    lambda text: text[: len(text) // 2],
    lambda text: '',
    lambda text: '[]',
    lambda text: '[' * 100_000,
    lambda text: text.replace('fracbits_policy', 'other'),
    lambda text: text.replace('"version": 1', '"version": 99'),
    lambda text: text.replace('"input": 8', '"input": "8"'),
    lambda text: text.replace('"input": 8', '"input": -8'),
    lambda text: text.replace('"input": 8', '"input": true'),
    lambda text: text.replace('"macs"', '"max"'),
    lambda text: text.replace('"learned": []', '"learned": ["bias"]'),
    lambda text: text.replace('"layers"', '"rows"'),
    lambda text: text.replace('"metric": "bitops"', '"metric": null'),
    lambda text: text.replace('"metric": "bitops"', '"metric": "flops"'),
    lambda text: text.replace('"name": "head"', '"name": "stem"'),
    lambda text: re.sub(r'"target": [^,]*', '"target": 1' + 400 * '0', text),
    lambda text: re.sub(r'"target": [^,]*', '"target": 1' + 5000 * '0', text),
    lambda text: re.sub(r'"cost": [^,]*', '"cost": NaN', text),
    lambda text: re.sub(r'"size_mb": [^,]*', '"size_mb": -1', text),
    lambda text: text.replace('"version": 1', '"version": true'),
    lambda text: text.replace('"version": 1', f'"version": "{"x" * 10**5}"'),
    lambda text: text.replace('"metric": "bitops"', f'"metric": "{"x" * 10**5}"'),
    lambda text: text.replace('GBitOPs', '<b>'),
    lambda text: text.replace('"also": []', '"also": 1'),
    lambda text: text.replace('"also": []', '"also": {}'),
    lambda text: text.replace('"also": []', '"also": [[]]'),
    lambda text: text.replace('"macs": 500', '"macs": -500'),
    lambda text: text.replace('"macs": 500', '"macs": ' + 950 * '[' + 950 * ']'),
    lambda text: text.replace('"weights": 500', '"weights": "' + 2000 * 'x' + '"'),
    lambda text: re.sub(r'"cost_share": [^,]*', '"cost_share": 1.5', text),
    lambda text: text.replace('"learned": ["input"]', '"learned": ["input", "input"]'),
    lambda text: text.replace('"learned": ["input"]', '"learned": [["input"]]'),
    lambda text: re.sub(r'"kernel": \[.*?\]', '"kernel": []', text),
    lambda text: re.sub(r'"layers": .*', '"layers": []}', text, flags=re.S),
    lambda text: text.replace('"name": "head"', '"name": "he\\nad"'),
    lambda text: text.replace('"name": "head"', '"name": "he\\u001b[2Jad"'),
    lambda text: text.replace('"name": "head"', '"name": "\\ud800"'),
    lambda text: text.replace('"name": "head"', f'"name": "{"x" * 10**5}"'),
    lambda text: text.replace('"name": "head"', '"name": "block/b/kernel/c"'),
    lambda text: text.replace('"macs": 500', '"macs": 500, "macs": 500'),
    lambda text: text.replace('"kernel": 8', f'"kernel": [8{", 8" * 99}]'),
    lambda text: text + ' ' * 4 * 10**6,
    lambda text: text + '\0',
  ],
)
def test_broken_files_are_refused_in_one_sentence(break_it, tmp_path):
  path = tmp_path / 'policy.json'
  made().save(path)
  broken = break_it(path.read_text())
  assert broken != path.read_text()
  path.write_text(broken)
  with pytest.raises(ValueError, match=r'policy file .*policy\.json') as caught:
    policy.load(path, TABLE)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < len(str(path)) + 300


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
  made().save(tmp_path / 'policy.json')
  (tmp_path / 'marked.json').write_text('\ufeff' + (tmp_path / 'policy.json').read_text(), encoding='utf-8')
  assert policy.load(tmp_path / 'marked.json', TABLE) == made()


def test_more_mismatches_than_fit_a_line_are_counted():
  others = tuple(Layer(name=f'other/{i:03}', macs=1, weights=1, channels=1) for i in range(500))
  with pytest.raises(ValueError, match=r'block/a is not in the network; .* and 4[0-9]{2} more$') as caught:
    made().check(others)
  assert len(str(caught.value)) < 1000


def test_thousands_of_layers_are_read_at_once(tmp_path):
  """20,000 layers and one of them again: a comparison of each with each would take minutes."""
  row = json.dumps({'name': '#', 'kernel': 8, 'input': 8, 'macs': 1, 'weights': 1, 'cost_share': 0, 'learned': []})
  rows = ',\n'.join(row.replace('#', str(i)) for i in (*range(20_000), 7))
  made().save(tmp_path / 'policy.json')
  text = re.sub(r'"layers": .*', f'"layers": [{rows}]}}', (tmp_path / 'policy.json').read_text(), flags=re.S)
  (tmp_path / 'policy.json').write_text(text)
  with pytest.raises(ValueError, match='layer 7 occurs 2 times'):
    policy.load(tmp_path / 'policy.json')


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match='cannot be read: No such file'):
    policy.load(tmp_path / 'none.json')


def test_a_policy_under_several_budgets_survives_its_file(tmp_path):
  layers = network(choices=range(2, 9), width=0.5)
  limit = cost.budget(
    'lookup', layers, equivalent_bits=4, table=lookup.load('bit_serial'), also=[cost.Budget(metric='size', target=2.0)]
  )
  found = policy.discretize(cost.uniform_bits(layers, 4.5), layers, limit)
  found.save(tmp_path / 'policy.json')
  assert policy.load(tmp_path / 'policy.json', layers) == found


def test_a_policy_of_examples_that_share_a_layer_is_read_again(tmp_path):
  """Multiply-accumulates for one of three examples are no integer."""
  shared = (dataclasses.replace(TABLE[0], macs=256 / 3), *TABLE[1:])
  found = policy.discretize(cost.uniform_bits(shared, 3.4), shared, cost.budget('bitops', shared, equivalent_bits=3))
  found.save(tmp_path / 'policy.json')
  assert policy.load(tmp_path / 'policy.json', shared) == found
