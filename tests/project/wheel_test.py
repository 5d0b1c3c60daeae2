"""What an installation has without a checkout: the command `fracbits-jax`, the recipes, the tables."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from benchmarks.shared.tiny import TINY
from fracbits_jax.run import recipe, usage

ROOT = pathlib.Path(__file__).resolve().parents[2]


_HELPS = """
import contextlib, io, json, runpy, sys
program, names = sys.argv[1], sys.argv[2:]
found = {}
for name in names:
  said, sys.argv = io.StringIO(), [program, name, '--help']
  try:
    with contextlib.redirect_stdout(said):
      runpy.run_path(program, run_name='__main__')
  except SystemExit as end:
    found[name] = said.getvalue() if not end.code else f'exit status {end.code}'
print(json.dumps(found))
"""


class Installed:
  """A wheel, unpacked beside the packages of this environment, in a folder that has nothing else."""

  def __init__(self, folder: pathlib.Path):
    source, self.site, self.here = folder / 'source', folder / 'site', folder / 'here'
    self.here.mkdir()
    ignored = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in ('fracbits_jax', 'configs'):
      shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
      shutil.copy(ROOT / name, source)
    self._pip('wheel', '--no-deps', f'--wheel-dir={folder}', source)
    self._pip('install', '--no-deps', f'--target={self.site}', *folder.glob('*.whl'))
    self._environment = {**os.environ, 'PYTHONPATH': str(self.site)}

  def _pip(self, *arguments: str | pathlib.Path) -> None:
    quiet = ('--quiet', '--disable-pip-version-check')
    subprocess.run([sys.executable, '-m', 'pip', *map(str, arguments), *quiet], check=True)

  def run(self, *arguments: str) -> str:
    """What `fracbits-jax` says, in a folder outside any checkout."""
    return self._python(str(self.site / 'bin' / 'fracbits-jax'), *arguments)

  def helps(self, names: Sequence[str]) -> dict[str, str]:
    """What `fracbits-jax NAME --help` says, by name; one process is each of them in turn."""
    said = self._python('-c', _HELPS, str(self.site / 'bin' / 'fracbits-jax'), *names)
    return json.loads(said.splitlines()[-1])

  def _python(self, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=self.here, env=self._environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  return Installed(tmp_path_factory.mktemp('installed'))


def test_it_has_every_module(installed):
  modules = lambda folder: {path.relative_to(folder) for path in folder.glob('fracbits_jax/**/*.py')}
  assert modules(ROOT) <= modules(installed.site)


def test_a_recipe_is_trained_and_its_network_leaves(installed):
  # One step of one phase: the others are modules of the same package, which is there as a whole.
  changes = {'phases': '("finetune",)', 'finetune.epochs': 1 / 9, 'model.width': 0.25, 'data.image_size': 8}
  flags = [f'--config.{name}={value}' for name, value in {**TINY, **changes}.items()]
  said = installed.run('train', '--config=digits:4', '--config.data.data_dir=data', *flags)
  assert 'final     test accuracy' in said
  run = installed.here / 'runs' / 'digits-4'
  assert (run / 'report.html').exists()
  said = installed.run('export', f'--workdir={run}', '--format=packed')
  (written,) = run.glob('*.fracbits')
  assert said.startswith(f'{written}: {written.stat().st_size:,} bytes')


def test_it_lists_its_recipes_and_their_fields(installed):
  listed = dict(line.split(maxsplit=1) for line in installed.run('train', '--list').splitlines())
  assert listed == dict(usage.recipes_in(recipe.folder()))
  assert len(listed) > 20
  assert 'data.batch_size' in installed.run('train', '--help')


def test_it_knows_what_a_network_costs(installed):
  said = installed.run('cost', '--model=mobilenet_v1', '--bits=3', '--table=bit_fusion').splitlines()
  assert said[-1] == 'bitops_g=5.730 size_mb=2.223'


def test_its_help_names_every_command_and_each_has_one(installed):
  names = [line.split()[0] for line in installed.run('--help').splitlines() if line.startswith('  ')]
  assert names == ['train', 'cost', 'export', 'report', 'sensitivity', 'prepare', 'check_images']
  helps = installed.helps(names)
  for name in names:
    assert f'fracbits-jax {name}' in helps[name]
