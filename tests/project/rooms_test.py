import pathlib
import subprocess
import sys

import fracbits_jax

PACKAGE = pathlib.Path(fracbits_jax.__file__).parent


def loaded(program):
  """The modules of the package that a fresh interpreter has loaded behind a program."""
  told = f'{program}\nimport sys\nprint(*(name for name in sys.modules if name.startswith("fracbits_jax")))'
  done = subprocess.run([sys.executable, '-c', told], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
  return set(done.stdout.split())


def test_the_package_alone_loads_nothing_but_itself():
  assert loaded('import fracbits_jax') == {'fracbits_jax'}


def test_public_names_load_no_pipeline_and_no_run():
  names = ('quantize', 'layers', 'models', 'cost', 'policy', 'quantize_model', 'from_float', 'layers.QuantConfig')
  program = '\n'.join(['import fracbits_jax', *(f'fracbits_jax.{name}' for name in names)])
  rooms = {module.split('.')[1] for module in loaded(program) if '.' in module}
  assert rooms >= {'quantize', 'layers', 'models', 'cost', 'policy'}
  assert rooms.isdisjoint({'data', 'train', 'run', 'report', 'export', 'commands'})


def test_every_room_says_what_it_is_for():
  for path in PACKAGE.glob('*/__init__.py'):
    assert path.read_text().startswith('"""'), path
