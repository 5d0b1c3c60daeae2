"""Comparisons of runs that nobody has trained."""

import html
import re
import runpy
import shlex
import sys

import browser
import numpy as np
import pytest
from left_over import leave
from report_test import shown, wrong  # noqa: F401

from fracbits_jax import tasks
from fracbits_jax.commands import report as report_command
from fracbits_jax.report import compare_plot, groups


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Three seeds of one network, one seed of two others, one without a float network."""
  folder = tmp_path_factory.mktemp('compared')
  for seed, accuracy in enumerate((0.95, 0.97, 0.96)):
    leave(folder / f'learned-{seed}', seed=seed, accuracy=accuracy, policy=None, init_from=f'runs/float-{seed}')
  leave(folder / 'faster', accuracy=0.94, optimizer__bits_rate=50.0)
  leave(folder / 'pruned', accuracy=0.9, kernel=True)
  leave(folder / 'given', accuracy=0.955, phases=('finetune',))
  return folder


@pytest.fixture(scope='module')
def page(runs, tmp_path_factory):
  out = tmp_path_factory.mktemp('out')
  assert report_command.main([*map(str, sorted(runs.iterdir())), f'--out={out}']) == 0
  return out / 'compare.html'


def test_the_page_says_with_which_command_it_is_made_again(page, runs, monkeypatch):
  (said,) = re.findall(r'python -m fracbits_jax\S* [^<]*', html.unescape(page.read_text()))
  called = []
  monkeypatch.setattr(report_command, 'main', lambda argv, program: called.append((program, argv)))
  monkeypatch.setattr(sys, 'argv', shlex.split(said)[2:])
  with pytest.raises(SystemExit):
    runpy.run_module(sys.argv[0], run_name='__main__')
  assert called[0][0] == 'python -m fracbits_jax.report'
  assert set(map(str, runs.iterdir())) <= set(sys.argv[1:])


@pytest.mark.parametrize(
  ('costs', 'accuracies', 'front'),
  [
    ((1, 2, 3), (0.7, 0.8, 0.9), [0, 1, 2]),
    ((3, 2, 1), (0.9, 0.8, 0.7), [2, 1, 0]),
    ((1, 2, 3), (0.9, 0.8, 0.95), [0, 2]),
    ((1, 1, 2), (0.7, 0.8, 0.8), [1]),  # as cheap and less accurate, as accurate and more expensive
    ((1, 1), (0.8, 0.8), [0, 1]),  # neither beats the other
    ((5,), (0.1,), [0]),
  ],
)
def test_the_pareto_front_is_what_nothing_beats(costs, accuracies, front):
  assert groups.pareto(costs, accuracies) == front


def test_runs_that_differ_in_the_seed_alone_are_one_network(runs):
  found = {g.name: g for g in groups.group(groups.read(sorted(runs.iterdir())))}
  assert set(found) == {'learned', 'faster', 'pruned', 'given'}
  learned = found['learned']
  assert [run.seed for run in learned.runs] == [0, 1, 2]
  assert learned.mean('test_accuracy') == pytest.approx(0.96)
  assert learned.deviation('test_accuracy') == pytest.approx(0.01)  # of a sample: 0.0001 * 2 / (3 - 1)
  assert found['faster'].deviation('test_accuracy') is None
  assert np.isnan(found['given'].mean('float_accuracy'))
  assert found['faster'].differs['optimizer.bits_rate'] == '50'
  assert 'seed' not in found['faster'].differs


def test_where_less_is_better_the_front_and_the_words_say_so(tmp_path):
  for name, accuracy, how in (('better', 0.985, {}), ('worse', 0.98, dict(optimizer__bits_rate=50.0))):
    leave(tmp_path / name, accuracy=accuracy, task=tasks.REGRESSION, **how)  # of the same cost
  assert report_command.main([str(tmp_path / 'better'), str(tmp_path / 'worse'), f'--out={tmp_path / "out"}']) == 0
  text = (tmp_path / 'out' / 'compare.html').read_text()
  for part in ('better has the lowest MSE: 0.01500 at', 'test MSE</th>', 'nothing as cheap has a lower MSE'):
    assert part in text
  assert 'worse is the cheapest' not in text
  assert (tmp_path / 'out' / 'mse_over_cost.svg').exists()
  found = groups.group(groups.read([tmp_path / 'worse', tmp_path / 'better']))
  assert [g.name for g in found] == ['better', 'worse']


def test_a_seed_that_comes_again_adds_no_chance(tmp_path):
  for name in ('a', 'b'):
    leave(tmp_path / name, phases=('finetune',))
  leave(tmp_path / 'c', phases=('finetune',), seed=1, data__workers=3)
  found = groups.group(groups.read(sorted(tmp_path.iterdir())))
  assert sorted(len(g.runs) for g in found) == [1, 2]


def test_names_are_as_long_as_it_takes(tmp_path):
  for name in ('one/digits', 'two/digits', 'seed1', 'seed12'):
    leave(tmp_path / name, phases=('finetune',))
  read = lambda *names: [run.name for run in groups.read([tmp_path / name for name in names])]
  assert read('one/digits', 'seed1') == ['digits', 'seed1']
  assert read('one/digits', 'two/digits') == ['one/digits', 'two/digits']
  of = lambda *names: [g.name for g in groups.group(groups.read([tmp_path / name for name in names]))]
  leave(tmp_path / 'seed13', phases=('finetune',), seed=3)
  assert of('seed12', 'seed13') == ['seed']


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1440])
def test_a_browser_shows_the_comparison_and_has_nothing_to_complain_about(shown, page, width, dark):  # noqa: F811
  assert wrong(shown, page, width=width, dark=dark) == []
  assert shown.run('document.querySelectorAll("figure").length') == 1


def test_the_comparison_has_every_network_its_mean_and_its_spread(page):
  text = page.read_text()
  for part in ('4 networks, 6 runs', '96.00 \u00b1 1.00', '95.50', 'optimizer.bits_rate'):
    assert part in text
  assert {path.name for path in page.parent.iterdir()} == {
    'compare.html', 'accuracy_over_cost.png', 'accuracy_over_cost.svg',
  }  # fmt: skip


def test_points_of_one_cost_are_drawn_apart_and_others_where_they_are():
  costs = np.array([1.0, 5.0, 5.0, 5.0, 9.0])
  drawn = compare_plot._side_by_side(costs, 0.02)
  np.testing.assert_allclose(drawn, [1, 4.84, 5, 5.16, 9])
  assert (np.diff(compare_plot._side_by_side(np.full(100, 2.0), 0.1)) > 0).all()


@pytest.mark.parametrize(
  ('others', 'message'),
  [
    ({'metric': 'size'}, 'have different metrics: a bitops in GBitOPs, b size in MB'),
    ({'phases': ('search',)}, 'ended with search, so its cost is not final'),
    ({'data__dataset': 'cifar10'}, 'have different data: a digits, b cifar10'),
    ({'data__noise': 0.3}, 'have different data: a digits, b digits with noise of 0.3'),
    (None, 'holds no finished run'),
  ],
)
def test_runs_that_cannot_be_compared_are_one_sentence(tmp_path, capsys, others, message):
  leave(tmp_path / 'a')
  if others is not None:
    leave(tmp_path / 'b', **others)
  assert report_command.main([str(tmp_path / 'a'), str(tmp_path / 'b'), f'--out={tmp_path / "out"}']) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert message in error
  assert not (tmp_path / 'out').exists()


def test_a_run_that_is_given_twice_is_one_sentence(tmp_path, capsys):
  leave(tmp_path / 'a')
  assert report_command.main([str(tmp_path / 'a'), f'{tmp_path}/./a']) == 2
  assert 'is given 2 times' in capsys.readouterr().err


def test_a_search_for_chromium_that_finds_none_says_so(monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert browser.find() is None


@pytest.mark.parametrize(('seeds', 'said'), [((0, 0), '<p>None.</p>'), ((0, 1), '<p>None but the seed.</p>')])
def test_runs_of_the_same_settings_differ_in_nothing_or_in_the_seed(tmp_path, seeds, said):
  for name, seed in zip('ab', seeds, strict=True):
    leave(tmp_path / name, seed=seed)
  assert report_command.main([str(tmp_path / 'a'), str(tmp_path / 'b'), f'--out={tmp_path / "out"}']) == 0
  assert said in (tmp_path / 'out' / 'compare.html').read_text()
