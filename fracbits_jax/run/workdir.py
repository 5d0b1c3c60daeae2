"""The folder of a run: whose it is, and what a run with a changed configuration may do in it."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from flax import traverse_util

from fracbits_jax.system import extras

with extras.needed():
  from ml_collections import ConfigDict

from fracbits_jax.run import settings
from fracbits_jax.run.records import read_finished, read_object
from fracbits_jax.system.files import write_whole

__all__ = ['claim', 'default', 'of_recipe', 'read_finished', 'read_object']

_ODD = re.compile(r'[^A-Za-z0-9.]')  # in an argument, for the name of a folder

# What a saved state stands and falls with: with another value it has no meaning, or its results would be of neither.
_OF_THE_STATE = re.compile(
  r'seed|phases|policy|init_from|quant\..*|optimizer\.(name|bits_name)'
  r'|model\.(name|width|small_images|image_mean|relu6|decoder\..*)'
  r'|data\.(dataset|image_size|random_crops|exif_orientation|background|noise|batch_size|tokens|context)'
)


def default(config_file: str) -> pathlib.Path:
  """The folder of a recipe's run: `runs/NAME` for `configs/NAME.py`, and `runs/NAME-4` for `configs/NAME.py:4`."""
  path, colon, argument = config_file.partition(':')
  return of_recipe(pathlib.Path(path), argument if colon else None)


def of_recipe(path: pathlib.Path, argument: str | None = None) -> pathlib.Path:
  """The folder of the run of a config file and its argument, see `default`."""
  return pathlib.Path('runs') / (path.stem if argument is None else f'{path.stem}-{_ODD.sub("_", argument)}')


def claim(workdir: pathlib.Path, config: ConfigDict, *, accept_changes: bool, say: Callable[[str], None]) -> None:
  """Makes a run's folder, or checks that the run in it can go on with this configuration.

  Args:
    workdir: the folder.
    config: what the run is to be done with.
    accept_changes: go on even where the saved state was made for something else.
    say: is told every field that has changed.

  Raises:
    ValueError: one sentence: the folder cannot be written, or which fields have changed too much.
  """
  mine = json.loads(config.to_json())
  path = workdir / 'config.json'
  changed = _changes(mine, settings.completed(read_object(path))) if path.exists() else {}
  fatal = {name: text for name, text in changed.items() if _OF_THE_STATE.fullmatch(name)}
  finished = (workdir / 'result.json').exists()
  if changed and (finished or (fatal and not accept_changes)):
    kind = 'a finished run' if finished else 'a run'
    anyway = '' if finished else ', or give --accept_changes to go on with its state'
    raise ValueError(
      f'{workdir} holds {kind} of another configuration: {"; ".join(changed.values())}; choose another '
      f'--workdir{anyway}'
    )
  if changed:
    say(f'goes on with a changed configuration: {"; ".join(changed.values())}')
  if changed or not path.exists():
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      write_whole(path, json.dumps(mine, indent=2) + '\n')
    except OSError as error:
      raise ValueError(f'{workdir} cannot be written: {error.strerror}; choose another --workdir') from None


def _changes(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
  """By field, a sentence on how it has changed."""
  mine, theirs = (traverse_util.flatten_dict(c, sep='.') for c in (mine, theirs))
  return {
    name: f'{name} is {mine.get(name)!r} and was {theirs.get(name)!r}'
    for name in sorted(mine.keys() | theirs.keys())
    if mine.get(name) != theirs.get(name)
  }
