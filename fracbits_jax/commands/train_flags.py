"""The flags of a training: its recipe, other values for its fields, its folder, its hosts."""

import dataclasses
import sys
from collections.abc import Sequence

from fracbits_jax.run import recipe
from fracbits_jax.system import extras

with extras.needed():
  from absl import flags
  from ml_collections import config_flags

  from fracbits_jax.run import workdir

Error = flags.Error
DEFAULT = 'digits'


@dataclasses.dataclass(frozen=True)
class Command:
  """A command whose flags are defined; `flags.FLAGS` has their values once it is parsed.

  Attributes:
    found: its recipe.
    others: its arguments without `--config`, behind the name of the program.
  """

  found: recipe.Recipe
  others: Sequence[str]

  def parse(self, argv: Sequence[str]) -> list[str]:
    """Reads the arguments, for `app.run`; ends the program with a sentence on the first that is wrong."""
    del argv  # `others` are the same without --config
    try:
      return flags.FLAGS(self.others)
    except flags.Error as error:
      sys.exit(f'error: {" ".join(recipe.in_words(str(error)).split())}')

  def workdir(self) -> str:
    """The folder of the run; raises `ValueError` for an empty one."""
    given = flags.FLAGS.workdir
    if given == '':
      raise ValueError('--workdir= names no folder: give one, or leave the flag out')
    return given or str(workdir.of_recipe(self.found.path, self.found.argument))


def define(argv: Sequence[str]) -> Command:
  """Defines the flags for a command, once in a program.

  Raises:
    ValueError, OSError, KeyError, TypeError, AttributeError, flags.Error: of a recipe or a field, with a sentence.
  """
  given, others = recipe.take(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False), DEFAULT)
  found = recipe.find(given, recipe.folder())
  defaults = recipe.load(found)
  recipe.check_overrides(defaults, others)
  # Overrides of fields are read here already.
  config_flags.DEFINE_config_dict('config', defaults, 'The recipe.', lock_config=True, sys_argv=others)
  flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME or runs/NAME-BITS by default.')
  flags.DEFINE_bool('accept_changes', False, 'Go on in a folder whose run has begun with other settings or data.')
  flags.DEFINE_string('coordinator', None, 'Of several hosts: HOST:PORT of host 0.')
  flags.DEFINE_integer('hosts', None, 'Of several hosts: how many there are.')
  flags.DEFINE_integer('host', None, 'Of several hosts: which one this is, from 0.')
  return Command(found, others)
