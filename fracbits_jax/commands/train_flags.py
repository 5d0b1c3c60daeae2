"""The flags of a training: its recipe, other values for its fields, its folder, its hosts."""

import sys
from collections.abc import Sequence

from fracbits_jax.run import recipe
from fracbits_jax.system import extras

with extras.needed():
  from absl import flags
  from ml_collections import ConfigDict, config_flags

  from fracbits_jax.run import workdir

Error = flags.Error
DEFAULT = 'digits'


def define(argv: Sequence[str]) -> 'Flags':
  """Defines the flags for a command, once in a program.

  Raises:
    ValueError, OSError, KeyError, TypeError, AttributeError, flags.Error: of a recipe or a field, with a sentence.
  """
  given, arguments = recipe.take(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False), DEFAULT)
  found = recipe.find(given, recipe.folder())
  defaults = recipe.load(found)
  recipe.check_overrides(defaults, arguments)
  # Overrides of fields are read here already.
  config = config_flags.DEFINE_config_dict('config', defaults, 'The recipe.', lock_config=True, sys_argv=arguments)
  return Flags(found, argv[1:], arguments, config)


class Flags:
  """The flags, as they are given.

  Args:
    found: the recipe.
    arguments: of the command, as they were given.
    others: those without `--config`, behind the name of the program.
    config: the flag of the configuration.

  Attributes:
    arguments: as above.
  """

  def __init__(
    self,
    found: recipe.Recipe,
    arguments: Sequence[str],
    others: list[str],
    config: 'flags.FlagHolder[ConfigDict]',
  ):
    self.arguments = list(arguments)
    self._found, self._others, self._config = found, others, config
    self._workdir = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/NAME or runs/NAME-BITS by default.')
    self._accept_changes = flags.DEFINE_bool(
      'accept_changes', False, 'Go on in a folder whose run has begun with another network, other bits or other data.'
    )
    self._coordinator = flags.DEFINE_string('coordinator', None, 'Of several hosts: HOST:PORT of host 0.')
    self._hosts = flags.DEFINE_integer('hosts', None, 'Of several hosts: how many there are.')
    self._host = flags.DEFINE_integer('host', None, 'Of several hosts: which one this is, from 0.')

  def parse(self, argv: Sequence[str]) -> list[str]:
    """Reads the arguments, for `app.run`; ends the program with a sentence on the first that is wrong."""
    del argv  # `others` are the same without --config
    try:
      return flags.FLAGS(self._others)
    except flags.Error as error:
      sys.exit(f'error: {" ".join(recipe.in_words(str(error)).split())}')

  @property
  def config(self) -> ConfigDict:
    """The configuration, with the fields that were given."""
    return self._config.value

  def workdir(self) -> str:
    """The folder of the run; raises `ValueError` for an empty one."""
    if self._workdir.value == '':
      raise ValueError('--workdir= names no folder: give one, or leave the flag out')
    return self._workdir.value or str(workdir.of_recipe(self._found.path, self._found.argument))

  @property
  def accept_changes(self) -> bool:
    return self._accept_changes.value

  @property
  def coordinator(self) -> str | None:
    return self._coordinator.value

  @property
  def hosts(self) -> int | None:
    return self._hosts.value

  @property
  def host(self) -> int | None:
    return self._host.value

  @property
  def has_verbosity(self) -> bool:
    """Whether `--verbosity` was given."""
    return bool(flags.FLAGS['verbosity'].present)
