"""The folder of a run: whose it is, and what a run with a changed configuration may do in it."""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from fracbits_jax.files import write_whole

# What a saved state stands and falls with: with another value it has no meaning, or its results would be of neither.
_OF_THE_STATE = re.compile(
  r'seed|phases|policy|init_from|quant\..*'
  r'|model\.(name|width|small_images|image_mean|relu6)'
  r'|data\.(dataset|image_size|exif_orientation|background|batch_size)'
)


def default(config_file: str) -> pathlib.Path:
  """The folder of a recipe's run: `runs/NAME` for `configs/NAME.py`, and `runs/NAME-4` for `configs/NAME.py:4`."""
  path, colon, argument = config_file.partition(':')
  name = pathlib.Path(path).stem
  return pathlib.Path('runs') / (f'{name}-{re.sub(r"[^A-Za-z0-9.]", "_", argument)}' if colon else name)


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
  changed = _changes(mine, read_object(path)) if path.exists() else {}
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


def read_object(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON object of the run's own; raises `ValueError` with one sentence if it is broken."""
  try:
    found = json.loads(pathlib.Path(path).read_text())
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f'{path} is broken: choose another --workdir, or remove the file')
  return found


def read_finished(workdir: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """What `config.json` and `result.json` of a finished run hold.

  Raises:
    ValueError: one sentence: no finished run there, or damaged files.
  """
  workdir = pathlib.Path(workdir)
  try:
    found = tuple(json.loads((workdir / name).read_text()) for name in ('config.json', 'result.json'))
  except OSError:
    raise ValueError(f'{workdir} holds no finished run: give a folder with config.json and result.json') from None
  except (ValueError, RecursionError):
    raise ValueError(f'{workdir} is damaged: its config.json or its result.json is not JSON') from None
  if not all(isinstance(part, dict) for part in found):
    raise ValueError(f'{workdir} was left by another version: its config.json or its result.json is no object')
  return found
