"""`python -m fracbits_jax.check_images`, the command `fracbits-jax check_images`."""

import sys

from fracbits_jax.system import process

if __name__ == '__main__':
  process.settle()

  from fracbits_jax.commands import console

  sys.exit(console.run('check_images'))
