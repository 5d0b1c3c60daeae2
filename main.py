"""Trains a float network, searches its bit-widths under a budget, makes them integers and finetunes.

python main.py [--config=configs/NAME.py] [--config.FIELD=VALUE ...] [--workdir=FOLDER]
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from fracbits_jax import run

_DEFAULT = str(pathlib.Path(__file__).resolve().parent / 'configs' / 'digits.py')


def _fail(error: BaseException) -> None:
  """Ends the program with one sentence."""
  text = str(error)
  if isinstance(error, KeyError | AttributeError):
    text = f'the config has no such field: {error.args[0]}'.replace('\\n', ' ').replace('\\', '').replace("''", "'")
  sys.exit(f'error: {" ".join(text.split())}')


try:
  # Overrides of fields are read here already, so a mistyped field is found here.
  _CONFIG = config_flags.DEFINE_config_file('config', _DEFAULT, 'The recipe.', lock_config=True)
except (KeyError, AttributeError, TypeError, ValueError, OSError) as error:
  _fail(error)
_WORKDIR = flags.DEFINE_string('workdir', None, "Folder of the run; runs/<config's name> unless given.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    sys.exit(f'error: unexpected arguments {" ".join(argv[1:])}: every setting is a --flag')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # checkpoints and data sets tell every step they take
  path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0])
  if not path.exists():
    sys.exit(f'error: the config file {path} does not exist')
  try:
    run.run(_CONFIG.value, _WORKDIR.value or pathlib.Path('runs') / path.stem)
  except (ValueError, OSError, FloatingPointError) as error:
    if flags.FLAGS.verbosity >= logging.DEBUG:
      raise
    _fail(error)
  except KeyboardInterrupt:
    sys.exit('\nstopped; the same command continues from the last checkpoint')


if __name__ == '__main__':
  app.run(main)
