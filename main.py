"""Trains a float network, searches its bit-widths under a budget, makes them integers and finetunes.

python main.py [--config=NAME[:BITS]] [--config.FIELD=VALUE ...] [--workdir=FOLDER] [--accept_changes]
               [--coordinator=HOST:PORT --hosts=N --host=I]

  --config          a recipe below, or the path of a config file; digits unless given
  --config.FIELD    another value for one of the fields below
  --workdir         folder of the run; runs/NAME or runs/NAME-BITS unless given
  --accept_changes  go on in a folder whose run has begun with another network, other bits or other data
  --coordinator, --hosts, --host
                    of several hosts: HOST:PORT of host 0, how many there are, and which one this is, from 0
  --help            this text
"""

from fracbits_jax import process

process.settle()

# ruff: noqa: E402
import pathlib
import shlex
import sys
import traceback

from fracbits_jax import extras, recipe, usage

_CONFIGS = pathlib.Path(__file__).resolve().parent / 'configs'

if __name__ == '__main__' and usage.is_asked(sys.argv[1:]):  # before what an installation may lack
  sys.exit(print(usage.text(__doc__, _CONFIGS)))
try:
  with extras.needed():
    import jax
    from absl import app, flags, logging
    from ml_collections import config_flags

  from fracbits_jax import hosts, platforms, preemption, run, workdir
except extras.MissingExtra as error:
  sys.exit(f'error: {error}')


def _fail(error: BaseException) -> None:
  """Ends the program with one sentence."""
  text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
  text = f'error: {" ".join(text.split())}'
  if jax.distributed.is_initialized():
    hosts.leave(text)
  sys.exit(text)


try:
  _GIVEN, _ARGUMENTS = recipe.take(flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False), 'digits')
  _RECIPE = recipe.find(_GIVEN, _CONFIGS)
  _DEFAULTS = recipe.load(_RECIPE)
  recipe.check_overrides(_DEFAULTS, _ARGUMENTS)
  # Overrides of fields are read here already.
  _CONFIG = config_flags.DEFINE_config_dict('config', _DEFAULTS, 'The recipe.', lock_config=True, sys_argv=_ARGUMENTS)
except (KeyError, AttributeError, TypeError, ValueError, OSError, flags.Error) as error:
  _fail(error)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME or runs/NAME-BITS unless given.')
_ACCEPT_CHANGES = flags.DEFINE_bool(
  'accept_changes', False, 'Go on in a folder whose run has begun with another network, other bits or other data.'
)
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Of several hosts: HOST:PORT of host 0.')
_HOSTS = flags.DEFINE_integer('hosts', None, 'Of several hosts: how many there are.')
_HOST = flags.DEFINE_integer('host', None, 'Of several hosts: which one this is, from 0.')


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(_ARGUMENTS)
  except flags.Error as error:
    sys.exit(f'error: {" ".join(recipe.in_words(str(error)).split())}')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    sys.exit(f'error: unexpected arguments {" ".join(argv[1:])}: every setting is a --flag')
  platforms.keep_memory()
  platforms.collect_garbage_rarely()
  platforms.cache_compilations()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)  # what goes wrong ends in a sentence; libraries log it as tracebacks before
  if _WORKDIR.value == '':
    sys.exit('error: --workdir= names no folder: give one, or leave the flag out')
  folder = _WORKDIR.value or workdir.of_recipe(_RECIPE.path, _RECIPE.argument)
  try:
    hosts.start(_COORDINATOR.value, _HOSTS.value, _HOST.value)
    with preemption.watched():
      command = shlex.join(['python', *sys.argv])
      run.run(_CONFIG.value, folder, accept_changes=_ACCEPT_CHANGES.value, command=command)
  except (ValueError, OSError, FloatingPointError) as error:
    if flags.FLAGS.verbosity >= logging.DEBUG:
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


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
