"""What benchmarks and the documentation's programs name exists; most of them run too long for the suite."""

import ast
import importlib
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = sorted([*ROOT.glob('benchmarks/**/*.py'), *ROOT.glob('docs/*.py'), *ROOT.glob('configs/*.py')])
OPTIONAL = ('torch', 'qonnx', 'keras', 'hgq', 'brevitas')


def found(module, name):
  """What `from module import name` gives; raises `AssertionError` where it is neither an attribute nor a module."""
  try:
    held = getattr(importlib.import_module(module), name, None)
    return importlib.import_module(f'{module}.{name}') if held is None else held
  except ModuleNotFoundError as error:
    if error.name in OPTIONAL:
      return None
    raise AssertionError(f'{module} has no {name}') from None


@pytest.mark.parametrize('path', PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_the_package_that_a_program_uses_exists(path):
  tree, modules = ast.parse(path.read_text()), {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in ('fracbits_jax', 'benchmarks'):
      assert ROOT.joinpath(*node.module.split('.')).with_suffix('.py') != path, f'line {node.lineno}: it imports itself'
      modules |= {alias.asname or alias.name: found(node.module, alias.name) for alias in node.names}
  modules = {name: held for name, held in modules.items() if isinstance(held, types.ModuleType)}
  rebound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
  rebound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in rebound:
      module = modules.get(node.value.id)
      assert module is None or hasattr(module, node.attr), f'line {node.lineno}: {node.value.id} has no {node.attr}'
