"""`python -m fracbits_jax.export`, the command `fracbits-jax export`."""

import sys

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()

  from fracbits_jax.commands import console

  sys.exit(console.run('export'))
