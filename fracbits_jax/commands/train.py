"""Trains a float network, searches its bit-widths under a budget, makes them integers and finetunes."""

import pathlib
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from fracbits_jax.run import recipe, usage
from fracbits_jax.system import extras

_ABOUT = """{about}

{program} [--config=NAME[:BITS]] [--config.FIELD=VALUE ...] [--workdir=FOLDER] [--accept_changes]
{indent} [--coordinator=HOST:PORT --hosts=N --host=I]

  --config          a recipe below, or the path of a config file; digits unless given
  --config.FIELD    another value for one of the fields below
  --workdir         folder of the run; runs/NAME or runs/NAME-BITS unless given
  --accept_changes  go on in a folder whose run has begun with another network, other bits or other data, or start from
                    weights that were trained on other data
  --coordinator, --hosts, --host
                    of several hosts: HOST:PORT of host 0, how many there are, and which one this is, from 0
  --list            the recipes, one line each
  --help            this text
"""


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax train') -> None:
  """Runs a recipe; ends the program with one sentence where that cannot be.

  Args:
    argv: the arguments behind the name of the program.
    program: that name, as the shell has it.
  """
  arguments = sys.argv[1:] if argv is None else list(argv)
  # Before what an installation may lack.
  if usage.is_asked(arguments):
    about = _ABOUT.format(about=__doc__, program=program, indent=' ' * len(program))
    sys.exit(print(usage.text(about, recipe.folder())))
  if usage.list_is_asked(arguments):
    sys.exit(print(usage.recipes(recipe.folder())))
  try:
    with extras.needed():
      from absl import app

      from fracbits_jax.commands import train_flags
  except extras.MissingExtra as error:
    sys.exit(f'error: {error}')
  try:
    command = train_flags.define([program, *arguments])
  except (KeyError, AttributeError, TypeError, ValueError, OSError, train_flags.Error) as error:
    _fail(error)
  as_given = f'{program} {shlex.join(arguments)}'.rstrip()
  app.run(lambda rest: _run(command, rest, as_given), argv=[program, *arguments], flags_parser=command.parse)


def run(config: Any, workdir: str | pathlib.Path, *, accept_changes: bool = False, command: str | None = None) -> dict:
  """`runner.run` with the report of its result, `report.html` and what the terminal shows; arguments as there."""
  from fracbits_jax.report import summary
  from fracbits_jax.run import runner

  return runner.run(config, workdir, accept_changes=accept_changes, command=command, report=summary)


def _run(command: Any, rest: Sequence[str], as_given: str) -> None:
  """A run as flags say; its errors are one sentence, as long as nobody wants to debug."""
  with extras.needed():
    from absl import flags, logging

  from fracbits_jax.fast import platforms
  from fracbits_jax.train import hosts, preemption

  if len(rest) > 1:
    sys.exit(f'error: unexpected arguments {" ".join(rest[1:])}: every setting is a --flag')
  platforms.keep_memory()
  platforms.collect_garbage_rarely()
  platforms.cache_compilations()
  given = flags.FLAGS
  if not given['verbosity'].present:
    logging.set_verbosity(logging.FATAL)  # what goes wrong ends in a sentence; libraries log it as tracebacks before
  try:
    workdir = command.workdir()
    hosts.start(given.coordinator, given.hosts, given.host)
    with preemption.watched():
      run(given.config, workdir, accept_changes=given.accept_changes, command=as_given)
  except (ValueError, OSError, FloatingPointError) as error:
    if logging.get_verbosity() >= logging.DEBUG:
      raise
    _fail(error)
  except preemption.Preempted as stopped:
    if stopped.stuck:  # the usual end would wait for what is stuck
      hosts.leave(str(stopped), preemption.EXIT_STATUS)
    print(stopped, file=sys.stderr)
    sys.exit(preemption.EXIT_STATUS)
  except Exception as error:
    if hosts.lost(error):
      hosts.leave_for_lost()
    if hosts.several():
      hosts.leave(traceback.format_exc())
    raise


def _fail(error: BaseException) -> None:
  """Ends the program with one sentence."""
  import jax

  from fracbits_jax.train import hosts

  text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
  text = f'error: {" ".join(text.split())}'
  if jax.distributed.is_initialized():
    hosts.leave(text)
  sys.exit(text)
