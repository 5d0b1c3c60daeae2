"""`python -m fracbits_jax`, the command `fracbits-jax`."""

import sys

from fracbits_jax.commands import console

if __name__ == '__main__':
  sys.exit(console.main())
