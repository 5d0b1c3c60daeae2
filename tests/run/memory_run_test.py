"""A run under budgets of flash and RAM, and the C code of its network."""

import re

import pytest
from tiny import tiny

from fracbits_jax import cost, policy
from fracbits_jax.export import c_format
from fracbits_jax.export.source import source_of_run
from fracbits_jax.report import summary
from fracbits_jax.run import experiment, progress, runner

CHANGES = {
  'phases': ('search', 'finetune'),
  'search.epochs': 2.0,
  'finetune.epochs': 1.0,
  'quant.scheme': 'lsq',
  'quant.quantize_residuals': True,
  'quant.init_bits': 4.0,
  'budget.metric': 'size',
  'budget.equivalent_bits': 4.0,
  'budget.also.memory': 0.45,
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = tiny(**CHANGES)
  return config, folder / 'run', runner.run(config, folder / 'run', report=summary)


def test_both_budgets_hold_and_are_used(finished):
  config, folder, result = finished
  size, memory = result['budgets']
  assert (size['metric'], size['unit'], memory['metric'], memory['unit']) == ('size', 'MB', 'memory', 'kB of RAM')
  assert max(spent['cost'] / spent['target'] for spent in (size, memory)) <= 1
  assert size['cost'] > 0.99 * size['target']
  assert memory['cost'] > 0.8 * memory['target']
  assert result['memory_kb'] == memory['cost'] < result['reference']['uniform_8']['memory_kb']
  table = experiment.prepare(config).layers
  found = policy.load(folder / 'policy.json', table)
  assert cost.peak_memory(found.bits(), table) == memory['cost']
  assert [dict(spent) for spent in found.also] == [memory]


def test_the_search_lowers_what_is_stored_where_most_is(finished):
  _, folder, _ = finished
  rows = [row for row in progress.read_rows(folder) if row['phase'] == 'search']
  spent = [row['budgets'][1]['cost'] for row in rows]
  assert spent[-1] < spent[0]


def test_the_report_and_the_summary_tell_the_memory(finished):
  _, folder, result = finished
  assert 'kB of RAM' in (folder / 'report.html').read_text()
  assert f'{result["memory_kb"]:.5g} kB of RAM' in summary.summary(folder, result)


def test_the_c_code_of_the_run_declares_the_reported_memory(finished, tmp_path):
  _, folder, result = finished
  c_format.write(source_of_run(folder), tmp_path / 'c')
  declared = re.search(r'_ARENA_BYTES (\d+)u', (tmp_path / 'c' / 'run.h').read_text())[1]
  assert int(declared) / 1e3 == result['memory_kb']
