"""The installed command `fracbits-jax`: one name for all that the package does."""

import importlib
import sys
from collections.abc import Sequence

from fracbits_jax.system import process

_COMMANDS = {
  'train': 'trains, searches bit-widths, finetunes: a recipe; --list names them',
  'cost': 'what a network costs, layer by layer',
  'export': 'writes the network of a finished run in a format that other programs read',
  'report': 'writes the report of a finished run again, or compares several',
  'sensitivity': 'makes a policy without a search, from what each layer does to the loss',
  'prepare': 'prepares a data set of TensorFlow Datasets',
  'check_images': 'reads every image of a folder of classes once',
}


def main(argv: Sequence[str] | None = None) -> int | None:
  """Runs the command that the first argument names; returns its exit status."""
  process.settle()
  arguments = sys.argv[1:] if argv is None else list(argv)
  name = arguments[0].replace('-', '_') if arguments and not arguments[0].startswith('-') else None
  if name in _COMMANDS:
    return run(name, arguments[1:], f'fracbits-jax {arguments[0]}')
  listed = '\n'.join(f'  {command:<14}{meaning}' for command, meaning in _COMMANDS.items())
  if name is None and set(arguments) <= {'-h', '--help'}:
    print(f'fracbits-jax COMMAND ...\n\nLearned mixed-precision quantization for JAX and Flax.\n\n{listed}\n')
    print('Each command has a --help of its own.')
    return 0
  print(f'error: {arguments[0]} is no command: give one of {", ".join(_COMMANDS)}', file=sys.stderr)
  return 2


def run(name: str, argv: Sequence[str] | None = None, program: str | None = None) -> int | None:
  """Runs a command as `program` calls it, `python -m fracbits_jax.NAME` by default; returns its exit status."""
  command = importlib.import_module(f'fracbits_jax.commands.{name}')
  return command.main(argv, program=program or f'python -m fracbits_jax.{name}')
