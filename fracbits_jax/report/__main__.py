"""`python -m fracbits_jax.report`, the command `fracbits-jax report`."""

import sys

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()

  from fracbits_jax.commands import console

  sys.exit(console.run('report'))
