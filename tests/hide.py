"""Imports every module and runs every command of the project where the packages of its extras are not to be found.

python tests/hide.py FOLDER

FOLDER holds a finished run `run`. Prints a line of JSON for each: what it says, its exit status, what it raises beside.
"""

import contextlib
import importlib
import importlib.metadata
import io
import json
import pathlib
import pkgutil
import re
import runpy
import sys
import traceback

ROOT = pathlib.Path(__file__).parents[1]
sys.path[0] = str(ROOT)

import fracbits_jax  # noqa: E402
from fracbits_jax.system.extras import PACKAGES, MissingExtra  # noqa: E402

BASE = ('jax', 'flax', 'optax', 'numpy', 'scipy')
MODULES = [module.name for module in pkgutil.walk_packages(fracbits_jax.__path__, 'fracbits_jax.')]
COMMANDS = [
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
  for path in sorted(ROOT.glob('fracbits_jax/**/*.py'))
  if re.search(r"^if __name__ == '__main__':", path.read_text(), re.M)
]


def with_base() -> set[str]:
  """The packages that come with the project's own requirements."""
  found, left = set(), list(BASE)
  while left:
    name = re.match(r'[\w.-]+', left.pop())[0].lower().replace('_', '-')
    if name not in found:
      found.add(name)
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        left += [needed for needed in importlib.metadata.requires(name) or () if 'extra ==' not in needed]
  there = importlib.metadata.packages_distributions()
  return {p for p in PACKAGES if found & {name.lower().replace('_', '-') for name in there.get(p, ())}}


class Hidden:
  """A finder that finds nothing of some packages."""

  def __init__(self, packages):
    self.packages = packages

  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in self.packages:
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def arguments(folder):
  """With which each command does something that needs no run of its own."""
  out, workdir = f'--out={folder / "out"}', f'--workdir={folder / "run"}'
  return {
    'fracbits_jax': [['train', f'--workdir={folder / "new"}']],
    'main.py': [[f'--workdir={folder / "new"}'], ['--config=none']],
    'fracbits_jax.check_images': [[str(folder)]],
    'fracbits_jax.cost': [['--model=resnet8', '--bits=3', '--image_size=8']],
    'fracbits_jax.export': [
      [workdir, out, f'--format={name}'] for name in ('packed', 'onnx', 'qonnx', 'litert', 'stablehlo')
    ],
    'fracbits_jax.prepare': [['--dataset=digits']],
    'fracbits_jax.report': [[str(folder / 'run'), out], [str(folder / 'run'), str(folder / 'run'), out]],
    'fracbits_jax.sensitivity': [[workdir, out]],
  }


def run(command, given):
  """How a command ends, and what it says."""
  said, sys.argv = io.StringIO(), [command, *given]
  found = {'command': command, 'arguments': given, 'status': 0, 'raised': None}
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
      if command == 'main.py':
        runpy.run_path(str(ROOT / command), run_name='__main__')
      else:
        runpy.run_module(command, run_name='__main__', alter_sys=True)
    except SystemExit as end:
      found['status'] = end.code or 0
      if isinstance(end.code, str):
        print(end.code)
    except BaseException:
      found['raised'] = traceback.format_exc()
  return {**found, 'said': said.getvalue()}


def imported(name):
  """What the import of a module raises."""
  try:
    importlib.import_module(name)
  except MissingExtra as missing:
    return {'module': name, 'missing': str(missing), 'raised': None}
  except BaseException:
    return {'module': name, 'missing': None, 'raised': traceback.format_exc()}
  return {'module': name, 'missing': None, 'raised': None}


def main():
  folder = pathlib.Path(sys.argv[1])
  sys.meta_path.insert(0, Hidden(set(PACKAGES) - with_base()))
  given = arguments(folder)
  for command in ('main.py', *COMMANDS):
    for each in (['--help'], *given.get(command, [[]])):
      print(json.dumps(run(command, each)))
  for name in MODULES:
    if not name.endswith('.__main__'):
      print(json.dumps(imported(name)))


if __name__ == '__main__':
  main()
