"""What is left of a run after somebody has edited its files, cut them, or never meant them for this program."""

import copy
import json
import math
import random
import re
import shutil

import left_over
import pytest
from left_over import leave, table

from fracbits_jax import policy
from fracbits_jax.commands import report as report_command
from fracbits_jax.report import course_plots, layer_plots, page, plots, summary
from fracbits_jax.run import records

NASTY = (
  None, True, 0, -1, 5, 1e308, math.nan, math.inf, 10**50, '', 'x', '$x$', '\ud800', '\x00', 'a' * 3000, [], [1], ['a'],
  {}, {'a': 1}, [[]] * 3, 1e-320,
)  # fmt: skip
KINDS = {
  'layers': {},
  'kernels': dict(kernel=True, also=0.01),
  'searched': dict(phases=('search',)),
  'float': dict(phases=('pretrain',)),
}
NAMES = (
  '$\\alpha$', '$x^', '_under', 'a\\b$c$', '<b>&amp;', '\U0001f600\U0001f680', '#2f6db3 id="x"', 'font-family: C;',
  '--> <!--',
)  # fmt: skip


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  for name, how in KINDS.items():
    leave(folder / name, **how)
  return folder


@pytest.fixture
def without_files(monkeypatch):
  """Figures are drawn, and not written."""
  monkeypatch.setattr(
    page, 'figure', lambda draw, folder, name, label, caption: f'{draw(False) is None}{label}{caption}'
  )


def _paths(node, at=()):
  yield at
  for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
    yield from _paths(value, (*at, key))


def _changed(rng, document):
  """A JSON document with one place changed, gone, renamed or doubled."""
  document = copy.deepcopy(document)
  *groups, last = rng.choice([path for path in _paths(document) if path])
  node = document
  for key in groups:
    node = node[key]
  how = rng.random()
  if how < 0.25:
    del node[last]
  elif how < 0.35 and isinstance(node, dict):
    node[rng.choice(['$a$', '\ud800', 'x.y', ''])] = node.pop(last)
  elif how < 0.45 and isinstance(node, list):
    node.append(copy.deepcopy(node[last]))
  else:
    node[last] = rng.choice(NASTY)
  return document


def _damage(rng, path):
  content, how = path.read_bytes(), rng.random()
  if how < 0.15:
    path.write_bytes(content[: rng.randrange(len(content))])
  elif how < 0.2:
    at = rng.randrange(len(content))
    path.write_bytes(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
  elif how < 0.25:
    path.write_text(rng.choice(['[' * 100_000, '{"a":' * 3000 + '1' + '}' * 3000, '5', '', '\ufeff{}', '9' * 5000]))
  elif path.name == 'metrics.jsonl':
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(_changed(rng, json.loads(lines[at])))
    path.write_text('\n'.join(lines) + '\n')
  else:
    path.write_text(json.dumps(_changed(rng, json.loads(content))))


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.usefixtures('without_files')
def test_a_report_of_damaged_files_works_or_names_the_file_in_one_sentence(runs, tmp_path, capsys, seed):
  rng = random.Random(seed)
  for i in range(12):
    kind = rng.choice(list(KINDS))
    folder = tmp_path / f'{i}'
    shutil.copytree(runs / kind, folder)
    _damage(rng, rng.choice(sorted(path for path in folder.iterdir() if path.is_file())))
    status, (said, error) = report_command.main([str(folder)]), capsys.readouterr()
    if status:
      assert error.startswith('error: ')
      assert error.count('\n') == 1
      assert str(folder) in error
      assert len(error) < 600
    else:
      assert said.strip() == str(folder / 'report.html')


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('5', 'line 2 is no row of a run .it is 5, not an object'),
    ('[' * 100_000, 'line 2 is no row of a run .it is not JSON'),
    ('{"a"', 'line 2 is no row of a run .it is not JSON'),
    ('{}', 'it has no phase'),
    ('{"phase": "rest", "step": 1, "epoch": 1, "accuracy": 1}', 'its phase is "rest", not one of pretrain'),
    ('{"phase": "search", "step": 1, "epoch": NaN, "accuracy": 1}', 'its epoch is NaN, not a number'),
  ],
)
def test_a_line_that_is_no_row_is_named(runs, tmp_path, line, message):
  good = (runs / 'layers' / 'metrics.jsonl').read_text().splitlines()
  (tmp_path / 'metrics.jsonl').write_text('\n'.join([good[0], line, good[1]]))
  with pytest.raises(ValueError, match=f'metrics.jsonl is damaged.*{message}.*remove this line') as caught:
    records.read_rows(tmp_path)
  assert '\n' not in str(caught.value)


def test_a_half_written_last_row_is_left_out_and_a_folder_without_rows_has_none(runs, tmp_path):
  assert records.read_rows(tmp_path) == []
  content = (runs / 'layers' / 'metrics.jsonl').read_bytes()
  whole = records.read_rows(runs / 'layers')
  for cut in range(1, 40):
    (tmp_path / 'metrics.jsonl').write_bytes(content[:-cut])
    assert records.read_rows(tmp_path) == whole[:-1] + whole[-1:] * (cut == 1)


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    (('target',), 0, 'its target is 0, not a number from 1e-30'),
    (('budgets', 0, 'target'), 0, 'in its budgets, its target is 0'),
    (('reference', 'float', 'bitops_g'), None, 'its reference.float.bitops_g is null'),
    (('unit',), '$x$', 'its unit is "[$]x[$]", not a unit'),
    (('test_accuracy',), 97, 'its test_accuracy is 97, not a number from 0 to 1'),
    (('seconds',), '1', 'its seconds is "1", not a number'),
  ],
)
def test_a_result_that_was_edited_is_named_with_its_field(runs, tmp_path, capsys, path, value, message):
  folder = tmp_path / 'run'
  shutil.copytree(runs / 'layers', folder)
  result = json.loads((folder / 'result.json').read_text())
  *groups, last = path
  node = result
  for key in groups:
    node = node[key]
  node[last] = value
  (folder / 'result.json').write_text(json.dumps(result))
  for more in ([], [str(runs / 'kernels')]):
    assert report_command.main([str(folder), *more, f'--out={tmp_path / "out"}']) == 2
    assert re.search(f'error: .*result.json was edited, .*{message}', capsys.readouterr().err)


def _renamed(folder):
  """Gives the layers of a run the worst of names."""
  old = [entry.name for entry in policy.load(folder / 'policy.json').layers]
  for name in ('policy.json', 'metrics.jsonl'):
    text = (folder / name).read_text()
    for before, after in zip(old, NAMES, strict=True):
      inside = json.dumps(after)[1:-1]
      text = text.replace(f'"{before}"', f'"{inside}"').replace(f'"{before}/', f'"{inside}/')
    (folder / name).write_text(text)


def test_names_are_shown_as_they_are(runs, tmp_path):
  folder = tmp_path / 'nasty $x$ <b>&_{2}'
  shutil.copytree(runs / 'layers', folder)
  _renamed(folder)
  found = policy.load(folder / 'policy.json')
  figure = layer_plots.policy_by_layer(found, 3.0)
  plots.save(figure, tmp_path / 'plots', 'bits')  # a warning would be an error
  svg = plots.inline(figure, 'bits')
  for name in NAMES:
    escaped = name.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    assert escaped in svg, name
  rows = records.read_rows(folder)
  assert len(course_plots.bits_over_time(rows, found).axes) == 2
  assert f'<h1>{page.text(folder.name)}</h1>' in page.header(folder.name, '', '')
  assert page.text('a\ud800') == 'a\ufffd'
  assert plots.short('a\ud800\n') == 'a\ufffd\ufffd'


def test_cells_that_may_hold_anything_keep_their_first_letter():
  assert '<td>~/runs</td>' in page.table(('a', 'b'), [('x', '~/runs')], 'label', pale=False)
  assert '<td class="pale">b</td>' in page.table(('a', 'b'), [('x', '~b')], 'label')


@pytest.mark.parametrize('per_channel', [False, True])
def test_figures_of_thousands_of_layers_have_hundreds_of_marks(monkeypatch, tmp_path, per_channel):
  count = 600
  rows = table(per_channel=per_channel)
  many = (*(type(rows[1])(**{**vars(rows[1]), 'name': f'block{i}'}) for i in range(count)), rows[-1])
  monkeypatch.setattr(left_over, 'table', lambda **_: many)
  leave(tmp_path / 'run', kernel=per_channel)
  found, course = policy.load(tmp_path / 'run' / 'policy.json'), records.read_rows(tmp_path / 'run')
  for narrow in (False, True):
    figure = layer_plots.policy_by_layer(found, 3.0, narrow=narrow)
    assert all(len(axis.patches) < 2000 for axis in figure.axes)
    assert figure.get_supxlabel() == 'a bar for 5 layers in a row'
    share = layer_plots.cost_by_layer(found, narrow=narrow).axes[0]
    values = [bar.get_width() if narrow else bar.get_height() for bar in share.patches]
    assert sum(values) == pytest.approx(1, abs=1e-3)
    assert all(len(axis.lines) < 600 for axis in course_plots.bits_over_time(course, found, narrow=narrow).axes)
  assert course_plots.lines_left_out(course)
  histograms = layer_plots.kernel_histograms(found)
  assert (histograms is not None) == per_channel
  if per_channel:
    assert layer_plots.histograms_left_out(found) == count - 62
    assert any(text.get_text() == 'and 538 more' for text in histograms.axes[0].texts)
  said = summary.summary(tmp_path / 'run', json.loads((tmp_path / 'run' / 'result.json').read_text()))
  assert 'and 101 more layers, see policy.json' in said


def test_a_budget_that_came_on_the_way_is_drawn_from_there():
  spent = {'cost': 1.0, 'target': 2.0, 'unit': 'GBitOPs'}
  more = {'cost': 3.0, 'target': 2.0, 'unit': '_x'}
  rows = [
    {'phase': 'finetune', 'epoch': 1.0, 'budgets': [spent]},
    {'phase': 'finetune', 'epoch': 2.0, 'budgets': [more, spent]},
  ]
  (axis,) = course_plots.cost_over_time(rows).axes
  drawn = [line for line in axis.lines if line.get_linestyle() == '-']
  assert [list(line.get_ydata()) for line in drawn] == [[0.5, 0.5], [1.5]]
  assert [text.get_text().strip() for text in axis.get_legend().get_texts()] == ['GBitOPs', '_x']
