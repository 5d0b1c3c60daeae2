import pathlib
import re
import runpy

import numpy as np
import pytest
import yaml

import fracbits_jax
from configs import base
from fracbits_jax.report import plots

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), ROOT / 'benchmarks' / 'README.md'])
DOCSTRINGS = runpy.run_path(str(ROOT / 'docs' / 'docstrings.py'))


def _prose(page: pathlib.Path) -> str:
  """The text of a page without its blocks of code; directives stay."""
  block = lambda found: found[0] if found[1].startswith('{') else ''
  return re.sub(r'^```(.*?)\n.*?^```$', block, page.read_text(), flags=re.M | re.S)


def _files_named(page: pathlib.Path) -> set[str]:
  text = _prose(page)
  named = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'^```\{include\} (\S+)', text, re.M)
  for entries in re.findall(r'^```\{toctree\}\n(.*?)```', text, re.M | re.S):
    entries = [entry for entry in entries.split('\n') if re.fullmatch(r'[\w/]+', entry)]
    named += [f'{e}.ipynb' if (page.parent / f'{e}.ipynb').exists() else f'{e}.md' for e in entries]
  return {name.split('#')[0] for name in named if '://' not in name and not name.startswith('#')}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page):
  assert [name for name in sorted(_files_named(page)) if not (page.parent / name).exists()] == []


def _anchors(page: pathlib.Path) -> set[str]:
  """Those of the headings of a page, and of a page that it includes."""
  text = page.read_text()
  pages = [text, *((page.parent / name).read_text() for name in re.findall(r'^```\{include\} (\S+)', text, re.M))]
  prose = re.sub(r'^```.*?^```$', '', '\n'.join(pages), flags=re.M | re.S)
  headings = re.findall(r'^#{1,4} (.+)$', prose, re.M)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_heading_that_a_page_links_to_exists(page):
  links = re.findall(r'\]\(([^)\s#:]*)#([^)\s]+)\)', _prose(page))
  assert [
    f'{name}#{anchor}' for name, anchor in links if anchor not in _anchors(page.parent / name if name else page)
  ] == []


def test_an_anchor_is_made_of_its_heading(tmp_path):
  (tmp_path / 'more.md').write_text('# More\n')
  page = tmp_path / 'page.md'
  page.write_text('# How `a_b.c` moves, in 2D\n\n```bash\n# no heading\n```\n\n```{include} more.md\n```\n')
  assert _anchors(page) == {'how-a_bc-moves-in-2d', 'more'}


def test_links_pictures_and_contents_are_found():
  assert _files_named(ROOT / 'docs' / 'index.md') >= {'method.md', 'bits_by_layer.png', 'reference/index.md'}
  assert _files_named(ROOT / 'docs' / 'studies.md') == {'../benchmarks/README.md'}


def test_what_stands_between_two_directives_is_read(tmp_path):
  page = tmp_path / 'page.md'
  page.write_text('```{note}\nOne.\n```\n\n[a](b.md)\n\n```python\nx = [y](z)\n```\n\n```{note}\nTwo.\n```\n')
  assert _files_named(page) == {'b.md'}


def test_what_is_included_from_a_heading_on_has_that_heading():
  include = re.compile(r'^```\{include\} (\S+)\n:start-after: "(.*)"', re.M)
  starts = [(page, *found) for page in PAGES for found in include.findall(page.read_text())]
  assert starts
  for page, name, heading in starts:
    assert f'\n{heading}\n' in (page.parent / name).read_text()


def test_every_page_is_in_the_table_of_contents():
  pages = {page for page in PAGES if 'docs' in page.relative_to(ROOT).parts}
  linked = {(page.parent / name).resolve() for page in pages for name in _files_named(page)}
  assert pages - linked == {ROOT / 'docs' / 'index.md'}


def test_every_picture_is_shown():
  shown = {(page.parent / name).resolve() for page in PAGES for name in _files_named(page)}
  assert [picture.name for picture in ROOT.glob('docs/*.png') if picture not in shown] == []


def test_the_pictures_of_the_formulas_are_drawn():
  script = runpy.run_path(str(ROOT / 'docs' / 'pictures.py'))
  with plots.style():
    for name in ('staircases', 'derivatives', 'mixtures', 'penalties'):
      axes = script[name]().axes
      assert all(axis.lines and axis.get_title(loc='left') for axis in axes), name
      assert all(np.isfinite(line.get_ydata()).all() for axis in axes for line in axis.lines), name


def test_every_public_module_is_in_the_reference_once():
  paths = [path.relative_to(ROOT).with_suffix('') for path in ROOT.glob('fracbits_jax/**/*.py')]
  modules = ['.'.join(path.parts).removesuffix('.__init__') for path in paths]
  public = [name for name in modules if not any(part.startswith('_') for part in name.split('.'))]
  pages = [page.read_text() for page in ROOT.glob('docs/reference/*.md')]
  documented = re.findall(r'^\.\. automodule:: (\S+)', '\n'.join(pages), re.M)
  assert sorted(documented) == sorted(set(public) - {'fracbits_jax'}), 'give each module a place in docs/reference/'


def test_the_plan_has_every_room_once():
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  drawing, table = text.split('## The plan\n')[1].split('\n## ')[0].split('| room |')
  rooms = sorted(path.parent.name for path in ROOT.glob('fracbits_jax/*/__init__.py'))
  assert sorted(re.findall(r'^\| `(\w+)`', table, re.M)) == rooms
  drawn = re.findall(r'[a-z]+', ''.join(line for line in drawing.splitlines(True) if line.startswith('    ')))
  assert sorted(drawn) == rooms


def test_every_benchmark_is_listed():
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  scripts = {str(path.relative_to(ROOT)) for path in ROOT.glob('benchmarks/*/*.py') if '__main__' in path.read_text()}
  assert set(re.findall(r'^    python (benchmarks/\S+)', text, re.M)) == scripts


def test_settings_that_pages_name_exist():
  config = base.get_config()
  # A name with a link is of a function, and with an ending of a file.
  text = re.sub(
    r'\[[^\]]*\]\(|`\w+\.json`', '', ''.join(page.read_text() for page in PAGES if page.name != 'CHANGELOG.md')
  )
  sections = '|'.join(name for name, value in config.items() if hasattr(value, 'keys'))
  named = set(re.findall(rf'`({sections})\.(\w+)', text))
  assert len(named) > 10
  assert [f'{section}.{name}' for section, name in sorted(named) if name not in config[section]] == []


def test_recipes_that_the_advice_names_exist():
  text = (ROOT / 'docs' / 'advice.md').read_text()
  named = set(re.findall(r'`((?:digits|glyphs|mbv|resnet|cifar)\w*)`', text))
  assert named
  assert [name for name in sorted(named) if not (ROOT / 'configs' / f'{name}.py').exists()] == []


def test_the_citation_is_of_this_version_and_of_the_paper():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert citation['cff-version'] == '1.2.0'
  assert {'message', 'title', 'authors'} <= citation.keys()
  assert citation['version'] == fracbits_jax.__version__
  assert citation['license'] == 'Apache-2.0'
  (paper,) = citation['references']
  assert [author['family-names'] for author in paper['authors']] == ['Yang', 'Jin']
  assert paper['url'].endswith('2007.02017')


def test_what_was_released_last_in_the_changelog_is_this_version():
  released = re.findall(r'^## \[([^\]]+)\] - [0-9]', (ROOT / 'CHANGELOG.md').read_text(), re.M)
  assert released[0] == fracbits_jax.__version__


def test_the_licence_is_there_whole():
  text = (ROOT / 'LICENSE').read_text()
  assert 'Apache License' in text
  assert 'END OF TERMS AND CONDITIONS' in text


DOCSTRING = """Clips at |alpha|, see `clip` and `two
words` of kwargs_ and **kwargs.

    y = |x| * 2      (a formula)

* `a`: the first

| name | value |
| ---- | ----- |
| `b`  | 1     |

Returns:
  Whether it held: `true`.
"""


def test_docstrings_mean_what_they_say_in_restructured_text():
  link = {'clip': 'package.clip'}.get
  found = '\n'.join(DOCSTRINGS['to_rst'](DOCSTRING.split('\n'), link))
  assert r'Clips at \|alpha\|, see :py:obj:`clip <package.clip>` and ``two' in found
  assert r'words`` of kwargs\_ and \*\*kwargs.' in found
  assert '::\n\n    y = |x| * 2      (a formula)\n' in found
  assert '\n* ``a``: the first\n' in found
  assert '.. list-table::\n   :header-rows: 1\n\n   * - name\n     - value\n   * - ``b``\n     - 1\n' in found
  assert 'Returns:\n  Whether it held\ue000 ``true``.' in found


@pytest.mark.parametrize(
  ('code', 'name'),
  [
    ('fractional', 'fracbits_jax.quantize.unit.fractional'),
    ('quantize.fractional', 'fracbits_jax.quantize.unit.fractional'),
    ('cost.Layer', 'fracbits_jax.cost.layer_table.Layer'),
    ('policy.Policy.bits', 'fracbits_jax.policy.policies.Policy.bits'),
    ('fracbits_jax.policy.compact', 'fracbits_jax.policy.compact'),
    ('unit.fractional', 'fracbits_jax.quantize.unit.fractional'),
    ('train.optim.with_bits', 'fracbits_jax.train.optim.with_bits'),
    ('cost', None),
    ('nn.Conv', None),
    ('quant.choices', None),
    ('bits / 2', None),
  ],
)
def test_code_is_linked_to_what_it_names(code, name):
  assert DOCSTRINGS['full_name'](code, 'fracbits_jax.quantize') == name
