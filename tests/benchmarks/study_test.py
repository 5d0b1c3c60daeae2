"""The study's grid, its results file and its report, without training anything."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.accuracy import study, study_methods, study_plots, study_report, study_times
from benchmarks.accuracy.study_methods import CORE_BUDGETS, METHODS, SETTINGS, Cell
from configs import glyphs, glyphs_uniform
from fracbits_jax.run import experiment


def row(cell, accuracy, **changes):
  """A line of the results as a cell leaves it."""
  return {
    **{name: getattr(cell, name) for name in ('method', 'network', 'dataset', 'budget', 'granularity', 'seed')},
    'digest': study_methods.digest(cell),
    'width': 0.25,
    'float_accuracy': 0.9 + 0.01 * cell.seed,
    'test_accuracy': accuracy,
    'cost': 0.995 + 0.001 * cell.seed,
    'target': 1.0,
    'bitops_g': {'bitops2': 0.02, 'bitops3': 0.04}.get(cell.budget, 0.1),
    'policy_seconds': 0.0,
    'search_seconds': 10.0,
    'finetune_seconds': 20.0,
    'peak_memory_mb': 500.0,
    'policy': {'stem': [8, 8], 'block1_depthwise': [[2, 3], 4], 'classifier': [8, 3]},
    **changes,
  }


@pytest.fixture
def rows():
  cells = study_methods.grid('digits', methods=['uniform_lsq', 'ours', 'ours_without_lsq'], seeds=(0, 1))
  level = {'uniform_lsq': 0.6, 'ours': 0.8, 'ours_without_lsq': 0.7}
  return [row(cell, level[cell.method] + 0.02 * cell.seed) for cell in cells]


def test_the_core_grid_has_every_method_budget_and_seed_on_two_networks():
  cells = list(study_methods.grid('glyphs'))
  methods = [name for name, method in METHODS.items() if not method.full]
  whole = [name for name in methods if not METHODS[name].part]
  parts = [cell for cell in cells if METHODS[cell.method].part]
  assert len(cells) == len(set(cells)) == len(whole) * len(CORE_BUDGETS) * 2 * 3 + (len(methods) - len(whole)) * 3
  assert {(cell.network, cell.budget) for cell in parts} == {SETTINGS['glyphs'].ablation}
  assert {cell.granularity for cell in cells} == {'layer'}
  full = list(study_methods.grid('glyphs', full=True))
  assert set(cells) < set(full)
  assert {cell.network for cell in full} == set(SETTINGS['glyphs'].networks)
  chosen = list(study_methods.grid('glyphs', methods=['ours'], networks=['resnet20'], budgets=['size2'], seeds=[4]))
  assert chosen == [Cell(dataset='glyphs', method='ours', network='resnet20', budget='size2', seed=4)]


def test_a_cell_is_named_as_it_is_parsed():
  for cell in study_methods.grid('digits', full=True, seeds=(7,)):
    assert study_methods.parse(cell.name, 'digits') == cell


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('ours,mobilenet_v1', 'is no cell: give METHOD,NETWORK,BUDGET,SEED'),
    ('mine,mobilenet_v1,bitops2,0', "method 'mine' is unknown: choose one of uniform_pact"),
    ('ours,resnet18,bitops2,0', "network 'resnet18' is unknown: choose one of mobilenet_v1"),
    ('ours,mobilenet_v1,bitops9,0', "budget 'bitops9' is unknown"),
    ('ours,mobilenet_v1,bitops2,-1', "seed '-1' is no seed"),
    ('ours,mobilenet_v1,bitops2,0,channel', "granularity 'channel' is unknown: choose one of layer, kernel"),
  ],
)
def test_what_is_no_cell_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    study_methods.parse(text, 'digits')


@pytest.mark.parametrize('dataset', SETTINGS)
def test_every_method_trains_its_quantized_network_for_as_many_epochs(dataset):
  setting = SETTINGS[dataset]
  for cell in study_methods.grid(dataset, full=True, budgets=['bitops3'], seeds=[0]):
    config = study_methods.config_of(cell)
    total = sum(config[phase].epochs for phase in config.phases)
    assert total == setting.search_epochs + setting.finetune_epochs, cell


def test_each_part_of_ours_is_changed_by_one_ablation():
  of = lambda method: study_methods.config_of(
    Cell(dataset='digits', method=method, network='mobilenet_v1', budget='bitops2', seed=0)
  )
  flat = lambda config: {k: str(v) for k, v in _flat(config.to_dict())}
  ours, paper = flat(of('ours')), flat(of('paper'))
  differ = lambda method: {name for name, value in flat(of(method)).items() if ours[name] != value}
  assert differ('ours_without_calibration') == {'quant.calibration_batches'}
  assert differ('ours_without_controller') == {'budget.controlled', 'budget.damping', 'budget.gain'}
  assert differ('ours_without_gentle') == {'budget.damping', 'budget.gain'}
  assert differ('ours_elements') == {'quant.mixture'}
  assert differ('ours_without_short_search') == {'search.epochs', 'finetune.epochs'}
  assert differ('ours_hardened') == {'optimizer.hardening'}
  assert differ('ours_recalibrated') == {'quant.recalibrate'}
  assert differ('ours_channel_ranges') == {'quant.kernel_ranges'}
  assert differ('ours_dampened') == {'optimizer.dampening'}
  assert differ('ours_adam') == {'optimizer.bits_name', 'optimizer.bits_rate', 'budget.gain'}
  assert differ('ours_without_exact') == {'budget.discretization'}
  assert differ('ours_without_lsq') == {'quant.scheme', 'quant.sat', 'quant.kernel_levels'}
  assert differ('ours_without_balanced') == {'quant.kernel_levels'}
  assert differ('ours_without_distillation') == {'distill.weight', 'distill.temperature', 'distill.phases'}
  assert differ('ours_without_reestimation') == {'finetune.reestimate_batches'}
  assert differ('ours_without_search') == {
    'phases', 'finetune.epochs', 'budget.damping', 'budget.gain'
  }  # fmt: skip
  assert paper['budget.discretization'] == 'offset'
  assert ours['finetune.reestimate_batches'] == str(SETTINGS['digits'].reestimate_batches)


@pytest.mark.parametrize('budget', ['bitops2', 'bitops3'])
@pytest.mark.parametrize(
  ('recipe', 'method'), [(glyphs, 'ours'), (glyphs_uniform, 'ours_without_search')], ids=['glyphs', 'glyphs_uniform']
)
def test_the_recipes_of_glyphs_are_cells_of_the_study(recipe, method, budget):
  cell = Cell(dataset='glyphs', method=method, network='mobilenet_v1', budget=budget, seed=0)
  ours = recipe.get_config(budget[-1])
  studied = study_methods.config_of(cell)
  assert ours.phases == ('pretrain', *studied.phases)
  studied.phases, studied.budget.kappa = ours.phases, ours.budget.kappa  # which a controlled penalty does not read
  if 'search' not in ours.phases:
    studied.search = ours.search  # which is not run
  assert ours.to_dict() == studied.to_dict()


def _flat(config, prefix=''):
  for name, value in config.items():
    yield from _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else [(prefix + name, value)]


def test_every_configuration_of_the_study_on_digits_prepares(tmp_path):
  for cell in study_methods.grid('digits', networks=['resnet20'], methods=['paper', 'ours', 'uniform_pact'], seeds=[0]):
    config = study_methods.config_of(cell)
    config.data.data_dir, config.distill.weight = str(tmp_path), 0.0  # there is no float network here
    prepared = experiment.prepare(config)
    assert prepared.budget.target > 0


def test_a_cell_is_done_once_its_line_is_there_and_again_when_its_configuration_changes(tmp_path, monkeypatch):
  path, cells = tmp_path / 'results' / 'r.jsonl', list(study_methods.grid('digits', methods=['ours', 'paper']))
  assert study.left_to_do(cells, study.read_results(path)) == cells
  study.append(path, row(cells[0], 0.5))
  study.append(path, row(cells[1], 0.6))
  study.append(path, row(cells[0], 0.7))
  assert [r['test_accuracy'] for r in study.read_results(path)] == [0.7, 0.6]
  assert len(path.read_text().splitlines()) == 3
  assert study.left_to_do(cells, study.read_results(path)) == cells[2:]
  longer = {'digits': dataclasses.replace(SETTINGS['digits'], finetune_epochs=11)}
  monkeypatch.setattr(study_methods, 'SETTINGS', longer)
  assert study.left_to_do(cells, study.read_results(path)) == cells


def test_a_study_of_other_epochs_has_cells_of_its_own(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(study_methods, 'SETTINGS', dict(SETTINGS))
  monkeypatch.setattr(study_plots, 'save', lambda groups, folder: None)
  results, cell = tmp_path / 'r.jsonl', next(study_methods.grid('digits', methods=['ours'], networks=['resnet20']))
  study.append(results, row(cell, 0.625))
  command = ['study.py', '--dataset=digits', '--report', f'--results={results}', f'--out={tmp_path}', '--only', 'ours']
  monkeypatch.setattr(sys, 'argv', [*command, '--networks', 'resnet20'])
  study.main()
  assert '62.50' in capsys.readouterr().out
  monkeypatch.setattr(sys, 'argv', [*sys.argv, '--epochs=3'])
  study.main()
  assert capsys.readouterr().out == 'no cell is finished\n'
  config = study_methods.config_of(cell)
  assert (config.search.epochs, config.finetune.epochs) == (1.5, 4.5)
  assert study_methods.config_of(dataclasses.replace(cell, method='uniform_pact')).finetune.epochs == 6
  monkeypatch.setattr(sys, 'argv', ['study.py', '--epochs=0'])
  with pytest.raises(SystemExit):
    study.main()
  assert 'has to be above 0' in capsys.readouterr().err


def test_the_table_holds_means_deviations_floats_and_costs(rows):
  groups = study_report.group(rows)
  table = study_report.table(groups).splitlines()
  assert len(table) == 2 + 3 * 3 * 2
  ours = next(line for line in table if '| bitops2 | ours |' in line and 'mobilenet_v1' in line)
  deviation = 100 * np.std([0.8, 0.82], ddof=1)
  assert f'| 2 | 81.00 ± {deviation:.2f} | 90.50 ± {100 * np.std([0.9, 0.91], ddof=1):.2f} | 0.9950 to 0.9960 |' in ours
  assert '| 0, 10, 20 |  |  | 500 |  |' in ours
  overview = study_report.overview(groups).splitlines()
  assert overview[2].startswith('| float | 90.50')
  assert [line.split(' | ')[0] for line in overview[3:]] == [
    f'| {METHODS[name].label}' for name in ('uniform_lsq', 'ours')
  ]


def test_what_each_part_gives_is_told_seed_by_seed(rows):
  for line in rows:
    if (line['method'], line['seed']) == ('ours_without_lsq', 1):
      line['test_accuracy'] = 0.74  # beside 82, and 70 beside 80
  header, _, *lines = study_report.ablation(study_report.group(rows)).splitlines()
  assert header.startswith('| ours | mobilenet_v1, BitOPs of 2 bits: % | change |')
  assert len(lines) == 1
  assert lines[0].startswith('| without learned steps | 72.00 ± 2.83 | -9.00 (1.00) |')
  assert study_report.ablation(study_report.group([line for line in rows if line['method'] == 'ours'])) == ''


def test_the_report_is_written_with_its_figures(rows, tmp_path):
  kernel = row(
    Cell(dataset='digits', method='ours', network='resnet20', budget='bitops3', seed=0, granularity='kernel'), 0.5
  )
  text = study.write_report([*rows, kernel], tmp_path)
  assert (tmp_path / 'study.md').read_text() == text
  names = {path.stem for path in tmp_path.glob('*.png')}
  assert {'study_accuracy', 'study_methods', 'study_ablation', 'study_policies_resnet20_kernel_bitops3'} <= names
  assert len(names) == 3 + 7
  figure = study_plots.ablation(study_report.group(rows))
  changes = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
  np.testing.assert_allclose(sorted(set(np.round(changes, 6)))[:1], [-10.0])  # 70 and 72 beside 80 and 82
  assert study.write_report([], tmp_path) == 'no cell is finished'


def test_ours_is_compared_with_each_method_seed_by_seed_and_by_both_standard_errors():
  accuracies = {'uniform_pact': (0.5, 0.53), 'random': (0.61, 0.69), 'ours': (0.66, 0.68)}
  cells = study_methods.grid(
    'digits', methods=accuracies, networks=['resnet20'], budgets=['bitops2', 'size2'], seeds=(0, 1)
  )
  rows = [row(cell, accuracies[cell.method][cell.seed]) for cell in cells]
  lines = study_report.comparison(study_report.group(rows)).splitlines()[2:]
  clear, unclear = '+15.50 (0.50)', '+2.00 (3.00)'
  assert lines[0] == f'| uniform bits, PACT | {clear} | {clear} | +15.50 | +15.00 | 2 of 2 |'
  assert lines[1] == f'| random policy | {unclear} | {unclear} | +2.00 | -1.00 | 0 of 2 |'
  assert len(lines) == 2
  single = study_report.comparison(study_report.group([line for line in rows if line['seed'] == 0])).splitlines()
  assert single[2] == '| uniform bits, PACT | +16.00 | +16.00 | +16.00 | +16.00 |  |'


def test_a_policy_far_below_the_others_is_drawn_at_the_edge_with_its_accuracy():
  accuracies = {'uniform_pact': 0.6, 'random': 0.015, 'ours': 0.7}
  cells = study_methods.grid('digits', methods=accuracies, networks=['resnet20'], budgets=['bitops2', 'bitops3'])
  groups = study_report.group([row(cell, accuracies[cell.method]) for cell in cells])
  for figure in (study_plots.methods_side_by_side(groups), study_plots.accuracy_over_bitops(groups)):
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == ['1.5', '1.5']
  low, high = study_plots.accuracy_over_bitops(groups).axes[0].get_ylim()
  assert 50 < low < 60 < 90 < high  # the float network, at 90 and 91, is in sight


def test_times_and_memory_are_beside_those_of_uniform_bits_of_the_same_seed():
  cells = study_methods.grid('digits', methods=['uniform_pact', 'ours'], networks=['resnet20'], budgets=['bitops2'])
  rows = [
    row(cell, 0.5, finetune_seconds=20.0 + 10 * cell.seed, peak_memory_mb=600.0 if cell.method == 'ours' else 400.0)
    for cell in cells
    if (cell.method, cell.seed) != ('uniform_pact', 2)
  ]
  for line in rows:
    if line['method'] == 'ours':
      line['search_seconds'] = 25.0  # 45 beside 30, 55 beside 40, and a seed without its like
    if line['seed'] == 1:  # seed 0 has a line of before such a time was taken
      line['step_seconds'] = 12.0 if line['method'] == 'ours' else 10.0
  uniform, ours = study_report.table(study_report.group(rows)).splitlines()[2:]
  assert uniform.split(' | ')[-4:] == ['1.00', '1.00', '400', '1.00 |']
  assert ours.split(' | ')[-4:] == ['1.44', '1.20', '600', '1.50 |']  # between 1.5 and 1.375


def test_a_step_is_timed_beside_one_with_uniform_bits_of_the_same_round():
  seconds = {
    'uniform_pact': {'finetune': [1.0, 2.0, 1.0]},
    'ours': {'search': [1.5, 3.0, 1.7], 'finetune': [1.1, 2.2, 1.1]},
  }
  epochs = {'uniform_pact': {'finetune': 4.0}, 'ours': {'search': 1.0, 'finetune': 3.0}}
  uniform, ours = study_times.table(seconds, epochs).splitlines()[2:]
  assert uniform == '| uniform bits, PACT |  | 1.00 | 1.00 (1.00 to 1.00) |'
  assert ours == '| ours | 1.50 | 1.10 | 1.20 (1.20 to 1.25) |'


def test_cells_that_began_from_different_float_networks_are_named(rows):
  assert 'Not all from' not in study_report.text(rows)
  other = [
    {**line, 'float_accuracy': 0.5} if (line['network'], line['seed']) == ('resnet20', 1) else line for line in rows
  ]
  assert study_report.other_floats(other) == ''
  other[-1]['float_accuracy'] = 0.6
  assert study_report.text(other).endswith('\n\nNot all from the same float network: resnet20, seed 1.\n')


def test_commands_run_side_by_side_and_those_that_fail_are_named(tmp_path, capsys):
  command = lambda name: [sys.executable, '-c', f'import sys; print("{name}"); sys.exit({int(name == "b,1")})']
  assert study.run_all(['a,1', 'b,1', 'c,1'], command, tmp_path, shares=[[], []]) == ['b,1']
  assert (tmp_path / 'c-1.log').read_text() == 'c,1\n'
  assert 'b,1: FAILED' in capsys.readouterr().out


def test_a_job_has_one_core_or_its_share_of_them():
  assert study.shares_of([4, 5, 6], 2, one_core=True) == [[4], [5]]
  assert study.shares_of([4, 5], 3, one_core=True) == [[4], [5], [4]]
  assert study.shares_of([4, 5, 6], 2, one_core=False) == [[4, 6], [5]]
  assert study.shares_of([4], 2, one_core=False) == study.shares_of([], 2, one_core=True) == [[], []]
  assert study.shares_of([4, 5], 1, one_core=False) == [[]]  # all of them


def test_a_command_knows_its_core(tmp_path):
  command = lambda name: [sys.executable, '-c', 'import sys; print(sys.argv[1:])']
  assert study.run_all(['a'], command, tmp_path, shares=[[3]]) == []
  assert (tmp_path / 'a.log').read_text() == "['--cores=3']\n"


def test_the_report_alone_needs_no_jax(rows, tmp_path):
  path = tmp_path / 'r.jsonl'
  for line in rows:
    study.append(path, line)
  code = 'import sys; from benchmarks.accuracy import study; study.main(); assert "jax" not in sys.modules'
  done = subprocess.run(
    [sys.executable, '-c', code, '--dataset=digits', '--report', f'--results={path}', f'--out={tmp_path}'],
    capture_output=True,
    text=True,
    check=False,
    cwd=study.ROOT,
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(path.read_text().splitlines()[0])['method'] == 'uniform_lsq'
  assert '81.00 ±' in done.stdout


def test_where_the_data_lie_makes_no_cell_another_one(monkeypatch):
  cell = next(study_methods.grid('cifar10', methods=['ours']))
  before = study_methods.digest(cell)
  monkeypatch.setattr(study_methods, 'SETTINGS', dict(SETTINGS))
  study_methods.set_data_dir('cifar10', '/somewhere')
  config = study_methods.config_of(cell)
  assert (config.data.dataset, config.data.data_dir) == ('folder', '/somewhere')
  assert study_methods.digest(cell) == before
  monkeypatch.setattr(sys, 'argv', ['study.py', '--dataset=cifar10'])
  monkeypatch.setattr(study_methods, 'SETTINGS', SETTINGS)
  with pytest.raises(SystemExit, match='cifar10 is read from class folders: give --data_dir'):
    study.main()
