"""What a training's `--help` says: recipes and fields, read from their sources, so that no package is needed for it."""

import ast
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

# `config.data.batch_size = 256  # over all devices`; in a phase, `epochs=float(epochs),  # its length`.
_FIELD = re.compile(r'^  config\.([\w.]+) = (.*?)(?:  # (.*))?$')
_OF_PHASE = re.compile(r'^      (\w+)=(.*?),(?:  # (.*))?$')
_NUMBER = re.compile(r'\d[\d.]*')
_WIDTH = 40  # of what stands to the left of a meaning


def is_asked(arguments: Sequence[str]) -> bool:
  """Whether the arguments of a command ask for its help."""
  return any(re.fullmatch(r'-h|--?help(short|full)?', argument) for argument in arguments)


def list_is_asked(arguments: Sequence[str]) -> bool:
  """Whether the arguments of a command ask for its recipes."""
  return any(re.fullmatch(r'--?list', argument) for argument in arguments)


def recipes(configs: pathlib.Path) -> str:
  """The recipes in a folder, one line each."""
  return '\n'.join(f'{name:<24}{meaning}' for name, meaning in recipes_in(configs))


def text(about: str, configs: pathlib.Path) -> str:
  """The help of a training.

  Args:
    about: what the program does and its flags.
    configs: the folder of the recipes.
  """
  listed = '\n'.join(_row(name, meaning) for name, meaning in recipes_in(configs))
  named = '\n'.join(_row(f'--config.{name}={default}', meaning) for name, default, meaning in fields(configs))
  return (
    f'{about.strip()}\n\nRecipes, each by --config=NAME, or --config=NAME:4 for the budget of 4 bits everywhere:\n\n'
    f'{listed}\n\nFields, with the value that a recipe starts from:\n\n{named}\n'
  )


def recipes_in(configs: pathlib.Path) -> Iterator[tuple[str, str]]:
  """The name of each recipe in a folder, and the first line of what it says of itself."""
  for path in sorted(configs.glob('*.py')):
    if path.stem not in ('__init__', 'base'):
      about = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
      yield path.stem, about.split('\n')[0].replace('`', '')


def fields(configs: pathlib.Path) -> Iterator[tuple[str, str, str]]:
  """Each field in `base.py`: its name, its default, and the comment beside it; those of phases come once, as PHASE."""
  for line in (configs / 'base.py').read_text(encoding='utf-8').split('\n'):
    for pattern, prefix in ((_FIELD, ''), (_OF_PHASE, 'PHASE.')):
      found = pattern.match(line)
      if found and found[2] != 'ConfigDict()' and not found[2].startswith('phase('):
        default = 'None' if 'placeholder' in found[2] else found[2]
        # What a phase is given is named there, and no default.
        yield prefix + found[1], '' if prefix and not _NUMBER.fullmatch(default) else default, found[3] or ''


def _row(left: str, right: str) -> str:
  width = max(_WIDTH + 30, min(120, shutil.get_terminal_size((120, 24)).columns))
  inset = ' ' * (_WIDTH + 2)
  first = f'  {left}'.ljust(len(inset) - 2) + '  '
  return textwrap.fill(right, width, initial_indent=first, subsequent_indent=inset) if right else first.rstrip()
