"""Trains a float network, searches its bit-widths under a budget, makes them integers and finetunes.

python main.py [--config=configs/NAME.py[:BITS]] [--config.FIELD=VALUE ...] [--workdir=FOLDER] [--accept_changes]
               [--coordinator=HOST:PORT --hosts=N --host=I]
"""

from fracbits_jax import process

process.settle()

# ruff: noqa: E402
import pathlib
import shlex
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fracbits_jax import hosts, platforms, preemption, run, workdir

_DEFAULT = str(pathlib.Path(__file__).resolve().parent / 'configs' / 'digits.py')

_LOADING = 'Error whilst parsing config file'  # how the flag's parser begins


def _fail(error: BaseException) -> None:
  """Ends the program with one sentence."""
  text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
  if _LOADING in text:  # a traceback follows; its origin has the sentence
    while _LOADING in str(error) and error.__context__:
      error = error.__context__
    text = f'the config does not load: {error}'
  if isinstance(error, KeyError | AttributeError):
    text = f'the config has no such field: {error.args[0]}'.replace('\\n', ' ').replace('\\', '').replace("''", "'")
  text = f'error: {" ".join(text.split())}'
  if jax.distributed.is_initialized():
    hosts.leave(text)
  sys.exit(text)


try:
  # Overrides of fields are read here already, so a mistyped field is found here.
  _CONFIG = config_flags.DEFINE_config_file('config', _DEFAULT, 'The recipe.', lock_config=True)
except (KeyError, AttributeError, TypeError, ValueError, OSError) as error:
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
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(error)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    sys.exit(f'error: unexpected arguments {" ".join(argv[1:])}: every setting is a --flag')
  platforms.keep_memory()
  platforms.collect_garbage_rarely()
  platforms.cache_compilations()
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)  # what goes wrong ends in a sentence; libraries log it as tracebacks before
  config_file = config_flags.get_config_filename(flags.FLAGS['config'])
  path = pathlib.Path(config_file.split(':')[0])
  if not path.exists():
    sys.exit(f'error: the config file {path} does not exist')
  folder = _WORKDIR.value or workdir.default(config_file)
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
