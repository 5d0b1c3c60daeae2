"""What somebody sees who has not installed what is needed."""

import ast
import configparser
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

import pytest
from left_over import leave

from fracbits_jax.system import extras

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [ROOT / 'main.py', *sorted(ROOT.glob('fracbits_jax/**/*.py'))]


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
  """Of every import and every command where none of the extras is installed, see `hide.py`."""
  folder = tmp_path_factory.mktemp('hidden')
  leave(folder / 'run')
  done = subprocess.run(
    [sys.executable, str(ROOT / 'tests' / 'hide.py'), str(folder)],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_module_imports_or_names_the_extra_to_install(outcomes):
  found = [outcome for outcome in outcomes if 'module' in outcome]
  assert len(found) > 60
  assert [outcome for outcome in found if outcome['raised']] == []
  missing = {outcome['module']: outcome['missing'] for outcome in found if outcome['missing']}
  assert {'fracbits_jax.run.runner', 'fracbits_jax.run.finished', 'fracbits_jax.export.onnx_format'} <= missing.keys()
  assert all(re.search(r"pip install 'fracbits_jax\[\w+\]'$", text) for text in missing.values())
  assert 'fracbits_jax[onnx]' in missing['fracbits_jax.export.onnx_format']
  for name in ('quantize', 'layers', 'cost', 'policy', 'layers.wrap', 'policy.sensitivity', 'models', 'export.packed'):
    assert f'fracbits_jax.{name}' not in missing


def test_every_command_shows_its_help_and_names_the_extra_to_install(outcomes):
  found = [outcome for outcome in outcomes if 'command' in outcome]
  assert len({outcome['command'] for outcome in found}) >= 6
  for outcome in found:
    assert not outcome['raised'], outcome
    if outcome['arguments'] == ['--help']:
      assert outcome['status'] == 0
      assert len(outcome['said']) > 100, outcome
    elif outcome['command'] not in ('fracbits_jax.cost',):  # which needs none
      assert outcome['status'], outcome
      assert re.fullmatch(r"error: .*pip install 'fracbits_jax\[\w+\]'\n", outcome['said']), outcome
  (cost,) = [o for o in found if o['command'] == 'fracbits_jax.cost' and o['arguments'] != ['--help']]
  assert 'bitops_g=' in cost['said']


def _imports(tree):
  """Each import of a package of an extra, and whether it stands within `extras.needed`."""
  guarded = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.With) and any('extras.needed' in ast.unparse(item) for item in node.items):
      guarded |= set(ast.walk(node))
  for node in ast.walk(tree):
    names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
    for name in names:
      if name.split('.')[0] in extras.PACKAGES:
        yield name, node in guarded


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_of_a_package_that_may_be_missing_names_its_extra(path):
  assert [name for name, guarded in _imports(ast.parse(path.read_text())) if not guarded] == []


def test_there_are_imports_of_packages_that_may_be_missing():
  assert sum(len(list(_imports(ast.parse(path.read_text())))) for path in SOURCES) > 30


def test_every_package_of_an_extra_is_known_by_the_name_that_is_imported():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  normal = lambda name: re.sub(r'[-_.]+', '-', name).lower()
  there = importlib.metadata.packages_distributions()
  for extra in extras.EXTRAS:
    of_extra = {normal(name) for p in extras.PACKAGES for name in there.get(p, ())}
    lines = setup['options.extras_require'][extra].strip().split('\n')
    declared = {normal(re.match(r'[\w.-]+', line)[0]) for line in lines}
    installed = {normal(name) for names in there.values() for name in names}
    assert declared & installed <= of_extra


def test_what_is_missing_in_the_project_itself_is_no_missing_extra():
  with pytest.raises(ModuleNotFoundError) as caught, extras.needed('train'):
    import fracbits_jax.no_such_module  # noqa: F401
  assert not isinstance(caught.value, extras.MissingExtra)
  with pytest.raises(extras.MissingExtra, match=r"no_such_package.*'fracbits_jax\[onnx\]'"), extras.needed('onnx'):
    import no_such_package.inner  # noqa: F401
