import configparser
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
EXTRAS = SETUP['options.extras_require']


def _requirements(*texts: str) -> dict[str, str]:
  """The oldest release of each package that is asked for, by name."""
  lines = [line for text in texts for line in text.splitlines() if line and not line.startswith('fracbits_jax[')]
  return dict(re.fullmatch(r'([\w.-]+)[>=]=([\w.]+)(?:,<[\w.]+)?(?:; .+)?', line).groups() for line in lines)


def test_the_minima_are_those_that_are_declared():
  tested = _requirements(
    SETUP['options']['install_requires'],
    *(EXTRAS[name] for name in EXTRAS if name not in ('docs', 'peers', 'third_party')),
  )
  lines = (ROOT / '.ci' / 'minima.txt').read_text().splitlines()
  assert dict(line.split('==') for line in lines if not line.startswith('#')) == tested


def test_what_two_extras_ask_for_is_the_same_release():
  found = {}
  for text in (SETUP['options']['install_requires'], *EXTRAS.values()):
    for name, version in _requirements(text).items():
      assert found.setdefault(name, version) == version, name


def test_the_oldest_and_the_newest_declared_python_are_those_of_the_continuous_integration():
  classifiers = SETUP['metadata']['classifiers'].splitlines()
  declared = [line.split(' :: ')[-1] for line in classifiers if re.search(r':: 3\.\d+$', line)]
  workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
  jobs = workflow['jobs']['test']['strategy']['matrix']['include']
  assert {job['python-version'] for job in jobs} == {declared[0], declared[-1]}
  assert {job['releases'] for job in jobs if job['python-version'] == declared[0]} == {'minima', 'newest'}
  assert SETUP['options']['python_requires'] == f'>={declared[0]}'
