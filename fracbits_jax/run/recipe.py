"""A recipe as the command line names it: its file found, its argument told from its path, its configuration made.

A config file is Python that runs. Whatever is wrong with it ends in one sentence.
"""

import dataclasses
import difflib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fracbits_jax
from fracbits_jax.run import settings

_LISTED = 8  # files of a folder that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A config file, and what stands behind the colon: `configs/digits.py:4`.

  Attributes:
    path: the file.
    argument: what `get_config` is given; `None` for nothing.
  """

  path: pathlib.Path
  argument: str | None = None


def folder() -> pathlib.Path:
  """The folder of the recipes: within an installed package, beside the package in a checkout."""
  package = pathlib.Path(fracbits_jax.__file__).parent
  installed = package / 'configs'
  return installed if installed.is_dir() else package.parent / 'configs'


def take(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
  """The value of the last `--config` among the arguments of a command, and the other arguments.

  Raises:
    ValueError: it has no value.
  """
  given, others, left = default, [], list(arguments)
  while left:
    argument = left.pop(0)
    found = re.fullmatch(r'--?config(=(.*))?', argument, re.S)
    if argument == '--' or not found:
      others += [argument, *left] if argument == '--' else [argument]
      left = [] if argument == '--' else left
    elif found[1]:
      given = found[2]
    elif left and not left[0].startswith('-'):
      given = left.pop(0)
    else:
      raise ValueError('--config has no value: give the name of a recipe or the path of a config file')
  return given, others


def find(given: str, recipes: pathlib.Path) -> Recipe:
  """What `--config` names.

  Args:
    given: the path of a config file or the name of a recipe, with or without `.py`, and maybe a colon and an argument.
      A path that itself has a colon is taken as it is where there is such a file.
    recipes: the folder of the recipes.

  Raises:
    ValueError: there is no such file.
  """
  if not given:
    raise ValueError(f'--config= names nothing: give one of {_names(recipes)}, or the path of a config file')
  for text, argument in _readings(given):
    for path in (pathlib.Path(text), pathlib.Path(f'{text}.py'), recipes / text, recipes / f'{text}.py'):
      if text and path.is_file():
        return Recipe(path=path, argument=argument)
  for text, _ in _readings(given):
    if text and pathlib.Path(text).is_dir():
      files = sorted(path.name for path in pathlib.Path(text).glob('*.py') if path.stem != '__init__')
      held = f'one of its files, {_some(files)}' if files else 'a config file'
      raise ValueError(f'--config={given} is a folder: give {held}')
  text = list(_readings(given))[-1][0]
  known = {path.stem for path in recipes.glob('*.py')} - {'__init__', 'base'}
  close = difflib.get_close_matches(pathlib.Path(text).stem, known, n=1)
  meant = f'; did you mean {close[0]}?' if close else f'; the recipes are {_names(recipes)}'
  raise ValueError(f'the config file {text} does not exist{meant}')


def _readings(given: str) -> Iterator[tuple[str, str | None]]:
  """A path and an argument for each way to read a text: without an argument first, then by its last colon, and on."""
  yield given, None
  for found in reversed(list(re.finditer(':', given))):
    yield given[: found.start()], given[found.end() :]


def _names(recipes: pathlib.Path) -> str:
  return ', '.join(sorted({path.stem for path in recipes.glob('*.py')} - {'__init__', 'base'}))


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:_LISTED]) + (f' and {len(names) - _LISTED} more' if len(names) > _LISTED else '')


def load(recipe: Recipe) -> Any:
  """The configuration that a recipe makes.

  Raises:
    ValueError: one sentence: the file is no Python, it fails, it has no `get_config`, or that takes no argument.
  """
  path = recipe.path
  _provide_configs()
  loader = importlib.machinery.SourceFileLoader('config_of_this_run', str(path))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  assert spec is not None  # it has a loader
  module = importlib.util.module_from_spec(spec)
  _call(path, lambda: loader.exec_module(module))
  make = getattr(module, 'get_config', None)
  if not callable(make):
    raise ValueError(
      f'the config file {path} has no function get_config: give a file that defines one, as those in configs/ do'
    )
  arguments = [] if recipe.argument is None else [recipe.argument]
  try:
    inspect.signature(make).bind(*arguments)
  except TypeError:
    took = (
      f'takes nothing after a colon: leave out :{recipe.argument}' if arguments else 'needs something after a colon'
    )
    raise ValueError(f'the config file {path} {took}') from None
  config = _call(path, lambda: make(*arguments))
  if not (hasattr(config, 'lock') and hasattr(config, 'keys')):
    raise ValueError(
      f'get_config of {path} returns {type(config).__name__}: let it return the ConfigDict that it makes'
    )
  return config


def _provide_configs() -> None:
  """Lets a config file say `from configs import base` wherever the recipes lie."""
  recipes = folder()
  if str(recipes) in getattr(sys.modules.get('configs'), '__path__', ()):
    return
  spec = importlib.util.spec_from_file_location(
    'configs', recipes / '__init__.py', submodule_search_locations=[str(recipes)]
  )
  assert spec is not None  # its suffix has a loader
  assert spec.loader is not None
  sys.modules['configs'] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)


def _call(path: pathlib.Path, what: Callable[[], Any]) -> Any:
  """What a part of a config file returns; what it raises is one sentence, with its line unless a recipe words it."""
  try:
    return what()
  except SyntaxError as error:
    raise ValueError(
      f'the config does not load: {error.filename or path}, line {error.lineno}, is no Python: {error.msg}'
    ) from None
  except Exception as error:  # whatever the code of a stranger raises
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    own = traceback.extract_tb(error.__traceback__)[-1].filename != str(path) and isinstance(error, ValueError)
    where = '' if own or not frames else f'{path}, line {frames[-1].lineno}: {type(error).__name__}: '
    raise ValueError(f'the config does not load: {where}{error}') from None


def check_overrides(config: Any, arguments: Sequence[str]) -> None:
  """Raises `ValueError` for the first `--config.NAME` whose name is no field, with the nearest that is."""
  known = _paths(config)
  for argument in arguments:
    found = re.fullmatch(r'--?(?:no)?config\.([^=]*)(=.*)?', argument, re.S)
    if not found or found[1] in known:
      continue
    name = found[1]
    close = _nearest(name, known)
    meant = f'did you mean {" or ".join(close[:_LISTED])}?' if close else '--help lists all fields'
    raise ValueError(f'the config has no such field: {name}; {meant}')


def _nearest(name: str, known: Sequence[str]) -> list[str]:
  """The fields that a mistyped one may mean: of the same name in another group, else those spelled alike."""
  last = lambda path: path.rpartition('.')[2]
  same = [path for path in known if last(path) == last(name)]
  alike = difflib.get_close_matches(last(name), set(map(last, known)), n=1)
  close = [] if same and '.' not in name else difflib.get_close_matches(name, same or known, n=1)
  return close or same or [path for path in known if last(path) in alike]


def _paths(config: Any, prefix: str = '') -> list[str]:
  """All fields by path, and the groups of them."""
  found = []
  for name in config.keys():  # noqa: SIM118 (a ConfigDict)
    value = config[name] if not hasattr(config, 'get_ref') or config[name] is None else config.get_ref(name).get()
    found += [f'{prefix}{name}', *(_paths(value, f'{prefix}{name}.') if hasattr(value, 'keys') else [])]
  return found


def in_words(text: str) -> str:
  """A sentence of the parser of flags, in words that say what a field takes."""
  found = re.match(r'flag --config\.([\w.]+)=(.*?): ', text, re.S)
  if not found:
    return text
  name, value = found.groups()
  field = settings.FIELDS.get(name)
  if field is None:
    parts = [path for path in settings.FIELDS if path.startswith(f'{name}.')]
    return (
      f'--config.{name}={value} is a group of fields: give one of them, such as --config.{parts[0]}' if parts else text
    )
  return f'{name}={value} {field.refusal()}'
