"""Reads every image of a folder of classes once."""

import argparse
import sys
from collections.abc import Sequence

from fracbits_jax.data.check_images import check, summary
from fracbits_jax.system.bar import Bar


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax check_images') -> None:
  """Reads every image of a folder of classes; exits with 1 if one cannot be read, or the folder cannot be used."""
  parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
  parser.add_argument('folder', help='what data.data_dir is to be, with train/<class>/ in it')
  parser.add_argument('--workers', type=int, help='threads; as many as processors by default')
  args = parser.parse_args(argv)
  if args.workers is not None and not 1 <= args.workers <= 1024:
    sys.exit(f'error: --workers={args.workers} is out of range: give a number from 1 to 1024')
  try:
    checked = check(args.folder, workers=args.workers, show=Bar('images'))
  except ValueError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('\nstopped')
  for line in summary(checked):
    print(line)
  sys.exit(1 if checked.bad else 0)
