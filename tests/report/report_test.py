"""Reports of runs that nobody has trained: what they say, and how a real browser shows them."""

import json
import os
import pathlib
import re

import browser
import numpy as np
import pytest
from left_over import leave, table

from configs import base
from fracbits_jax import cost
from fracbits_jax.commands import report as report_command
from fracbits_jax.commands import train
from fracbits_jax.report import course_plots, plots, summary, verdict
from fracbits_jax.run import outcome

ALWAYS = {'accuracy_over_time'}
SEARCHED = {'bits_over_time', 'cost_over_time', *ALWAYS}
FINAL = {'bits_by_layer', 'cost_by_layer', *SEARCHED}
# What a run is like, and the plots of its page.
KINDS = {
  'layers': (dict(), FINAL),
  'kernels': (dict(kernel=True, also=0.01), {'kernel_histograms', *FINAL}),
  'weights': (dict(weights=True, metric='size'), FINAL),
  'given': (dict(phases=('finetune',)), FINAL - {'bits_over_time'}),
  'searched': (dict(phases=('search',)), SEARCHED),
  'float': (dict(phases=('pretrain',)), ALWAYS),
}
# What is wrong with a page, as a list of sentences.
LOOK = """(() => {
  const wrong = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) wrong.push('the page scrolls sideways');
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width && !e.closest('.scroll *') && (box.right > width + 1 || box.left < -1))
      wrong.push(`${e.tagName} reaches out of the window: ${e.textContent.slice(0, 40)}`);
  }
  const linear = v => v > 0.04 ? ((v + 0.055) / 1.055) ** 2.4 : v / 12.92;
  const light = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map(v => linear(v / 255));
    return 0.05 + 0.2126 * r + 0.7152 * g + 0.0722 * b;  // as WCAG compares it
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  for (const figure of document.querySelectorAll('figure')) {
    const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 50);
    if (shown.length != 1) wrong.push(`${figure.id} shows ${shown.length} plots`);
    if (!figure.querySelector('[role=img]')?.ariaLabel) wrong.push(`${figure.id} has no label`);
    for (const svg of shown) {
      const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
      if (!svg.querySelector('text')) wrong.push(`${figure.id} has no text`);
      for (const text of svg.querySelectorAll('text')) {
        const box = text.getBoundingClientRect(), style = getComputedStyle(text), ink = light(style.fill);
        const complain = sentence => wrong.push(`${figure.id}: ${text.textContent} ${sentence}`);
        if (parseFloat(style.fontSize) * scale < 9) complain('is too small');
        const inside = ['left', 'top'].every(s => box[s] > frame[s] - 1);
        if (!inside || ['right', 'bottom'].some(s => box[s] > frame[s] + 1)) complain('is cut');
        if (Math.max(ink, paper) / Math.min(ink, paper) < 4.5) complain('is too pale');
      }
    }
  }
  return wrong;
})()"""


@pytest.fixture(scope='module')
def shown():
  """A browser."""
  if browser.find() is None:
    pytest.skip('no Chromium is installed, and only a browser can tell how a page looks')
  with browser.started() as started:
    yield started


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
  """The path of a kind's page, written once."""
  folder, made = tmp_path_factory.mktemp('reports'), {}

  def page(kind):
    if kind not in made:
      leave(folder / kind, **KINDS[kind][0])
      assert report_command.main([str(folder / kind)]) == 0
      made[kind] = folder / kind / 'report.html'
    return made[kind]

  return page


def wrong(shown, path, **view):
  """What is wrong with a page, its console and what it asks the network for included."""
  shown.open(path, **view)
  found = shown.run(LOOK) + shown.complaints
  return found + [f'asks for {url}' for url in shown.requests if url != path.resolve().as_uri()]


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1440])
@pytest.mark.parametrize('kind', KINDS)
def test_a_browser_shows_every_plot_and_has_nothing_to_complain_about(shown, pages, kind, width, dark):
  assert wrong(shown, pages(kind), width=width, dark=dark) == []
  assert set(shown.run('[...document.querySelectorAll("figure")].map(f => f.id)')) == KINDS[kind][1]
  background = shown.run('getComputedStyle(document.body).backgroundColor')
  assert (background == 'rgb(255, 255, 255)') == (not dark)


@pytest.mark.parametrize(
  ('old', 'new', 'complaint'),
  [
    ('</main>', '<div style="width: 2000px">wide</div></main>', 'scrolls sideways'),
    ('</main>', '<script>throw 1</script></main>', 'Content Security Policy'),
    ('</main>', '<img src="https://example.com/x.png"></main>', 'example.com'),
    ('</style>', '#bits_by_layer svg { display: none }</style>', 'bits_by_layer shows 0 plots'),
    ('</style>', 'svg text { font-size: 5px !important }</style>', 'too small'),
    ('</style>', 'svg text { font-size: 60px !important }</style>', 'is cut'),
    ('</style>', 'svg text { fill: #ddd !important }</style>', 'too pale'),
  ],
)
def test_the_look_at_a_page_finds_what_is_broken(shown, pages, tmp_path, old, new, complaint):
  text = pages('layers').read_text()
  (tmp_path / 'broken.html').write_text(text.replace(old, new, 1))
  assert any(complaint in sentence for sentence in wrong(shown, tmp_path / 'broken.html', width=390))


def test_every_plot_is_kept_as_png_and_svg(pages):
  for kind, (_, plots_of) in KINDS.items():
    folder = pages(kind).parent / 'plots'
    assert {path.name for path in folder.iterdir()} == {f'{n}.{e}' for n in plots_of for e in ('png', 'svg')}
    assert all('font-family' not in path.read_text() for path in folder.glob('*.svg'))  # needs no font


def test_the_page_loads_nothing_and_says_how_to_repeat_the_run(pages):
  text = pages('kernels').read_text()
  assert re.findall(r'(?:src|href)="(?!#|data:,")', text) == []
  for part in ('python main.py --config.seed=0', 'jax 1.2.3', '1 \u00d7 cpu', 'channels pruned'):
    assert part in text


def test_the_program_in_the_page_runs_word_for_word_with_the_run_s_settings(pages, monkeypatch):
  page, ran = pages('layers'), []
  (program,) = re.findall(r'<pre>(import json.*?)</pre>', page.read_text(), re.S)
  monkeypatch.setattr(train, 'run', lambda config, folder: ran.append((config, folder)))
  exec(program.replace('&#x27;', "'"), {})
  ((config, folder),) = ran
  assert folder == f'{page.parent}-again'
  assert config.to_dict().keys() == base.get_config().to_dict().keys()
  assert (config.seed, config.data.dataset) == (0, 'digits')


def test_the_costs_for_comparison_are_those_counted_by_hand():
  layers = table()
  macs, weights = sum(l.macs for l in layers), sum(l.weights for l in layers)
  found = outcome.reference_costs(cost.budget('bitops', layers, equivalent_bits=3), layers)
  np.testing.assert_allclose(found['float']['bitops_g'], macs * 32 * 32 / 1e9)
  np.testing.assert_allclose(found['float']['size_mb'], (weights * 4 + 10 * 4) / 1e6)
  np.testing.assert_allclose(found['uniform_8']['bitops_g'], macs * 64 / 1e9)
  np.testing.assert_allclose(found['uniform_8']['size_mb'], (weights + 40) / 1e6)
  assert found['uniform']['bits'] == 3
  inner = sum(l.macs for l in layers[1:-1])
  np.testing.assert_allclose(found['uniform']['bitops_g'], (5000 * 64 + inner * 9 + 2560 * 24) / 1e9)


def made_up(**changes):
  references = {
    'float': {'bits': 32, 'bitops_g': 8.0, 'size_mb': 4.0},
    'uniform_8': {'bits': 8, 'bitops_g': 0.5, 'size_mb': 1.0},
    'uniform': {'bits': 3.0, 'bitops_g': 0.08, 'size_mb': 0.4},
  }
  budget = {'metric': 'bitops', 'unit': 'GBitOPs', 'target': 0.08, 'cost': 0.0799}
  accuracies = {'test_accuracy': 0.95, 'float_accuracy': 0.9625, 'searched_accuracy': 0.94}
  costs = {'bitops_g': 0.08, 'size_mb': 0.5, 'budgets': [budget]}
  return {'phase': 'finetune', **accuracies, **costs, 'reference': references, **changes}


def test_the_verdict_says_what_was_reached_and_what_was_saved():
  assert verdict.sentence(made_up(), pruned_channels=7) == (
    '95.00% of the test images are classified correctly, 1.25 points below the float network, for 0.07990 GBitOPs, '
    'within what 3 bits everywhere would cost, with 7 channels pruned: 100\u00d7 fewer BitOPs and 8.00\u00d7 fewer '
    'bytes of weights than in float, 6.25\u00d7 and 2.00\u00d7 fewer than with 8 bits everywhere.'
  )


@pytest.mark.parametrize(
  ('changes', 'part'),
  [
    ({'float_accuracy': None}, 'correctly for 0.07990 GBitOPs'),
    ({'float_accuracy': 0.95}, 'as many as by the float network'),
    ({'float_accuracy': 0.9}, '5.00 points above the float network'),
    ({'phase': 'search'}, 'fractional bit-widths'),
    ({'phase': 'pretrain', 'budgets': None}, 'at 32 bits it takes 8.000 GBitOPs and 4.000 MB'),
  ],
)
def test_the_verdict_claims_no_more_than_the_run_knows(changes, part):
  result = made_up(**changes)
  text = verdict.sentence(result)
  assert part in text
  assert ('8 bits everywhere' in text) == (result['phase'] == 'finetune')
  assert all(len(row) == 4 for row in verdict.comparison(result))
  assert [row[1] for row in verdict.comparison(made_up())][1:3] == ['~not measured'] * 2


def test_the_verdict_follows_the_figures_whatever_the_costs_are():
  rng, seen = np.random.default_rng(0), set()
  for _ in range(300):
    targets, factors = rng.uniform(0.05, 5, 2), rng.choice([0.9, 1.0, 1.00001, 1.0593, 6.2, np.nan], 2)
    budgets = [
      {'metric': metric, 'unit': unit, 'target': target, 'cost': target * factor}
      for metric, unit, target, factor in zip(('bitops', 'size'), ('GBitOPs', 'MB'), targets, factors, strict=True)
    ][: rng.integers(1, 3)]
    uniform = {'bits': 3.0, 'bitops_g': targets[0] * rng.choice([0.5, 1.0]), 'size_mb': targets[1]}
    result = made_up(phase=str(rng.choice(['search', 'finetune'])), budgets=budgets)
    result['reference'] = {**result['reference'], 'uniform': uniform}
    met = all(b['cost'] <= b['target'] for b in budgets)
    as_cheap = met and all(b['cost'] <= uniform[n] for b, n in zip(budgets, ('bitops_g', 'size_mb'), strict=False))
    text = verdict.sentence(result)
    assert ('over the budget' in text) == (not met)
    assert ('within what 3 bits everywhere would cost' in text) == as_cheap
    assert ('within the budget' in text) == (met and not as_cheap)
    tiles = [word for name, _, word in verdict.tiles(result) if name.startswith('Cost')]
    assert [word.startswith('over the budget') for word in tiles] == [not b['cost'] <= b['target'] for b in budgets]
    seen.add((met, as_cheap))
  assert len(seen) == 3


def test_a_run_over_its_budget_is_told_on_its_page_in_the_terminal_and_beside_others(tmp_path):
  for name in ('held', 'over'):
    result = leave(tmp_path / name)
    if name == 'over':
      for spent in (result, *result['budgets']):
        spent['cost'] = 1.0593 * spent['target']
      (tmp_path / name / 'result.json').write_text(json.dumps(result))
    assert ('over the budget by 5.93%' in summary.summary(tmp_path / name, result)) == (name == 'over')
    page = run_page_text(tmp_path / name)
    assert ('by 5.93%' in page) == (name == 'over')
    assert ('everywhere would cost' in page) == (name == 'held')
  assert report_command.main([str(tmp_path / 'held'), str(tmp_path / 'over'), f'--out={tmp_path / "both"}']) == 0
  assert 'Over a budget of its own: over.' in (tmp_path / 'both' / 'compare.html').read_text()


def run_page_text(folder):
  assert report_command.main([str(folder)]) == 0
  return (folder / 'report.html').read_text()


def test_a_folder_whose_name_is_not_text_has_a_report(tmp_path):
  folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b'/n\xff'))
  leave(folder, phases=('pretrain',))
  assert '<h1>n\ufffd</h1>' in run_page_text(folder)


def test_a_figure_in_a_page_keeps_its_words_and_takes_the_page_s_colours():
  with plots.style():
    figure, axis = plots.new_figure(2)
    axis.plot([0, 1], [0.00123, 0.00456], color=plots.KERNEL, label='0.00345 & more')
    axis.legend()
  svg = plots.inline(figure, 'name')
  assert '0.00345 &amp; more' in svg
  assert 'var(--kernel)' in svg
  assert '#' not in re.sub(r'(href="|url\()#name-', '', svg)  # no colour and no name is left as it was
  assert set(re.findall(r'#([\w-]+)', svg)) == set(re.findall(r' id="([^"]+)"', svg))


def test_colours_in_the_light_differ_for_they_are_found_by_their_value():
  assert len({light for light, _ in plots.PALETTE.values()}) == len(plots.PALETTE)


def test_a_report_can_go_elsewhere(tmp_path, capsys):
  leave(tmp_path / 'run', phases=('pretrain',))
  assert report_command.main([str(tmp_path / 'run'), f'--out={tmp_path / "there"}']) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / 'there' / 'report.html')
  assert not (tmp_path / 'run' / 'report.html').exists()


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({}, 'holds no finished run'),
    ({'config.json': '{}', 'result.json': '{'}, 'is damaged'),
    ({'config.json': '{}', 'result.json': '[]'}, 'another version'),
    ({'config.json': '{}', 'result.json': '{"phase": "search"}'}, 'another version'),
  ],
)
def test_a_folder_without_a_finished_run_is_one_sentence(tmp_path, capsys, files, message):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  assert report_command.main([str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert message in error


def test_a_cost_that_stays_at_its_target_is_drawn_as_such():
  spent = {'cost': 0.3 - 1e-9, 'target': 0.3, 'unit': 'GBitOPs'}
  rows = [{'phase': 'finetune', 'epoch': float(i), 'budgets': [spent]} for i in (1, 2)]
  (axis,) = course_plots.cost_over_time(rows).axes
  low, high = axis.get_ylim()
  assert low <= 0.98 < 1.02 <= high


@pytest.mark.parametrize(('first', 'scale'), [(0.3, 'log'), (0.02, 'linear')])
def test_an_error_that_falls_far_is_drawn_on_a_logarithmic_axis(first, scale):
  rows = [{'phase': 'pretrain', 'epoch': float(i), 'step': i, 'mse': mse} for i, mse in enumerate((first, 0.01), 1)]
  result = {'task': 'regression', 'phase': 'pretrain', 'float_mse': 0.01, 'test_mse': None, 'searched_mse': None}
  (axis,) = course_plots.metric_over_time(rows, result).axes
  assert axis.get_yscale() == scale
