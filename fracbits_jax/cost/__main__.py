"""`python -m fracbits_jax.cost`, the command `fracbits-jax cost`."""

import sys

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()

  from fracbits_jax.commands import console

  sys.exit(console.run('cost'))
