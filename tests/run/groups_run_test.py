"""A run whose weights have ranges by group, under a budget of bits per weight."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny

from fracbits_jax import cost, policy
from fracbits_jax.export import packed
from fracbits_jax.export.source import source_of_run
from fracbits_jax.report import summary
from fracbits_jax.run import checks, experiment, runner

CHANGES = {
  'phases': ('search', 'finetune'),
  'search.epochs': 1.0,
  'finetune.epochs': 1.0,
  'quant.scheme': 'lsq',
  'quant.group_size': 16,
  'budget.metric': 'size',
  'budget.bits_per_weight': 5.0,
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run') / 'run'
  config = tiny(**CHANGES)
  return config, folder, runner.run(config, folder, report=summary)


def test_a_run_holds_its_bits_per_weight_and_says_them(finished):
  config, folder, result = finished
  table = experiment.prepare(config).layers
  bits = policy.load(folder / 'policy.json', table).bits()
  assert result['bits_per_weight'] == cost.bits_per_weight(bits, table) <= 5 * (1 + 1e-9)
  assert result['cost'] == result['size_mb'] == cost.model_size(bits, table)
  assert result['reference']['float']['bits_per_weight'] == 32
  assert result['reference']['uniform_8']['bits_per_weight'] > 9
  assert 'bits per weight)' in summary.summary(folder, result)
  page = (folder / 'report.html').read_text()
  assert 'bits per weight' in page
  assert 'ranges of groups at 16' in page


def test_the_packed_file_of_a_run_has_the_weights_of_its_network(finished, tmp_path):
  _, folder, _ = finished
  source = source_of_run(folder)
  packed.write(source, tmp_path / 'net.fracbits')
  found = packed.read(tmp_path / 'net.fracbits')
  of = lambda graph: {n.params['layer']: n.params['kernel'] for n in graph.nodes if n.op == 'kernel'}
  ours, theirs = of(found.graph), of(source.graph)
  for name, kernel in theirs.items():
    assert kernel.group_size == 16
    np.testing.assert_array_equal(ours[name].value, kernel.exact)


def test_ranges_of_other_groups_are_refused(finished):
  config, folder, _ = finished
  with config.unlocked():
    config = config.copy_and_resolve_references()
    config.phases, config.init_from = ('finetune',), str(folder)
  given = experiment.prepare(config).initial
  table = experiment.prepare(config).layers
  checks.check_ranges(config, given, table)
  for layers in (
    [dataclasses.replace(l, group_size=8) for l in table],
    [dataclasses.replace(l, group_size=None) for l in table],
  ):
    with pytest.raises(ValueError, match=r'has ranges of other groups than quant.group_size=16 gives'):
      checks.check_ranges(config, given, layers)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'budget.target': 0.1},
      'budget.bits_per_weight=5 and budget.target=0.1 are both given: leave one of them at None',
    ),
    (
      {'budget.metric': 'bitops'},
      'budget.bits_per_weight=5 is about the size of the weights, and budget.metric=bitops',
    ),
    ({'budget.bits_per_weight': 2.0}, r'bits_per_weight=2.0 cannot be met by any allowed assignment of bits: give at'),
    ({'quant.group_size': 0}, 'quant.group_size=0 is out of range'),
    ({'quant.range_bits': 17}, 'range_bits=17 is unknown'),
    ({'quant.scheme': 'original'}, "group_size=16 is for learned ranges, and scheme='original' has none"),
  ],
)
def test_what_cannot_be_is_said_before_anything_runs(changes, said):
  with pytest.raises(ValueError, match=said):
    experiment.prepare(tiny(**{**CHANGES, **changes}))
