"""`python -m fracbits_jax.prepare`, the command `fracbits-jax prepare`."""

import sys

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()

  from fracbits_jax.commands import console

  sys.exit(console.run('prepare'))
