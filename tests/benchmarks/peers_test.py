"""The table of other libraries, without any of them."""

import sys
import types

import numpy as np
import pytest

from benchmarks.accuracy import peers as accuracy
from benchmarks.speed import peers, peers_measure


def row(cpu, **facts):
  return {'cpu': cpu, 'wall': [2 * c for c in cpu], **facts}


ROWS = {
  'float': row([1.0, 2.0, 4.0], temp_bytes=100, process_bytes=50),
  'search': row([2.0, 3.0, 10.0], temp_bytes=150, process_bytes=60),
}


def cells(text):
  return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]


def test_a_ratio_is_taken_within_a_round():
  found = peers_measure.ratios(ROWS)
  assert found['search']['cpu'] == found['search']['wall'] == (2.0, 1.5, 2.5)
  assert found['float']['cpu'] == (1.0, 1.0, 1.0)
  assert found['search']['temp_bytes'] == 1.5
  assert found['search']['process_bytes'] == 1.2
  assert 'step_bytes' not in found['search']
  assert peers_measure.ratios(ROWS, row([0.5, 1.0, 1.5]))['search']['of_base'] == 3.0


def test_a_step_that_fails_says_why_and_leaves_the_others_alone():
  rows = {**ROWS, 'other': {'failed': 'ValueError: a | b'}}
  found = cells(peers.table({'fracbits': {'rows': rows, 'labels': {m: m for m in rows}}}).replace('\\|', '/'))
  assert found[2][:2] == ['float, float', '1.00']
  assert found[3] == ['search', '2.00', '1.50 to 2.50', '2.00', '', '1.50', '1.20', '1.50']
  assert found[4][:2] == ['other', 'not run: ValueError: a / b']


def test_without_a_float_step_there_are_no_ratios():
  rows = {'float': {'failed': 'no'}, 'search': ROWS['search']}
  found = cells(peers.table({'qwix': {'rows': rows, 'labels': {m: m for m in rows}}}))
  assert found[3] == ['search', *[''] * 7]


@pytest.mark.parametrize(('name', 'package'), [('qwix', 'qwix'), ('brevitas', 'brevitas'), ('hgq', 'hgq')])
def test_a_peer_that_is_missing_becomes_a_row_that_says_so(monkeypatch, name, package):
  for module in [m for m in sys.modules if m.split('.')[0] == package or m.endswith(f'peer_{name}')]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.setattr(peers_measure, 'peer', missing(package))
  found = peers.measure(name, 2, 1, 0.01)
  assert found == {'failed': f'{package} is not installed'}
  assert cells(peers.table({name: found}))[2][:2] == [peers.PEERS[name], f'not run: {package} is not installed']


def missing(package):
  def peer(_):
    raise ModuleNotFoundError(f'No module named {package!r}', name=package)

  return peer


def test_steps_take_turns_and_a_broken_one_is_left_out(monkeypatch):
  order = []

  class Module:
    METHODS = {'float': 'a', 'broken': 'b', 'quantized': 'c'}  # noqa: RUF012

    @staticmethod
    def versions():
      return {'a': '1'}

    @staticmethod
    def make(method, batch):
      if method == 'broken':
        raise RuntimeError('first line\nsecond line')
      run = lambda steps: order.append(method) or sum(range(10_000 * batch * steps)) * 0.0
      return peers_measure.Step(run=run, facts={'temp_bytes': 8})

  monkeypatch.setattr(peers_measure, 'peer', lambda name: Module)
  monkeypatch.setattr(peers, 'forked', peers_measure.memory)  # a process that runs JAX should not be forked
  found = peers.measure('qwix', 2, rounds=2, seconds=0.001)
  assert found['versions'] == {'a': '1'}
  assert list(found['rows']) == ['float', 'broken', 'quantized']
  assert found['rows']['broken'] == {'failed': 'RuntimeError: first line'}
  assert all(len(found['rows'][method]['cpu']) == 2 for method in ('float', 'quantized'))
  assert found['rows']['quantized']['temp_bytes'] == 8
  assert found['rows']['quantized']['process_bytes'] > 0
  assert order[-6:-2] == ['float', 'quantized', 'quantized', 'float']
  text = peers.report({'command': 'c', 'device': 'd', 'date': 'e', 'rounds': 2, 'batch': 2}, {'qwix': found})
  assert 'not run: RuntimeError: first line' in text


def test_the_price_of_a_bit_is_nothing_then_rises_a_hundredfold_then_stays():
  phase = accuracy.PHASE
  assert accuracy.price(1e-6, phase - 0.1) == 0
  prices = [accuracy.price(1e-6, epoch) for epoch in (phase, 1.5 * phase, 2 * phase, 3 * phase)]
  np.testing.assert_allclose(prices, [1e-8, 1e-7, 1e-6, 1e-6], rtol=1e-5)


def test_a_sign_counts_where_there_is_something_to_sign():
  magnitude = np.array([0.0, 1.0, 3.0])
  quantizer = types.SimpleNamespace(bits_=lambda shape: magnitude, fbits_=lambda shape: magnitude + 1)
  assert accuracy.bits(quantizer, (3,)).tolist() == [0, 2, 4]


def test_accuracy_has_a_row_for_each_strength_and_says_what_did_not_run():
  ran = [{'accuracy': 0.9, 'bytes': 1000, 'bitops': 2e6}, {'accuracy': 0.92, 'bytes': 3000, 'bitops': 4e6}]
  found = cells(accuracy.table({'a': ran, 'b': [{'failed': 'hgq is not installed'}]}))
  assert found[2] == ['a', '91.00 ± 1.41', '90.00, 92.00', '2.00', '3.00']
  assert found[3] == ['b', 'not run: hgq is not installed', '', '', '']
