"""Prepares a data set of TensorFlow Datasets for training."""

import argparse
import sys
from collections.abc import Sequence

from fracbits_jax.system import extras
from fracbits_jax.system.bar import Bar


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax prepare') -> None:
  """Prepares a TFDS data set, which a later run then reads; downloads it where it can be downloaded."""
  parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
  parser.add_argument('--dataset', required=True, help='a name of TensorFlow Datasets, such as imagenet2012 or food101')
  parser.add_argument('--data_dir', help='where TFDS keeps data, ~/tensorflow_datasets by default')
  parser.add_argument('--manual_dir', help='where files lie that cannot be downloaded; downloads/manual in data_dir')
  parser.add_argument('--debug', action='store_true', help='tells the whole error')
  args = parser.parse_args(argv)
  try:
    with extras.needed():
      from absl import logging

    from fracbits_jax.data.prepare import prepare

    logging.set_verbosity(logging.WARNING)
    print(prepare(args.dataset, args.data_dir, args.manual_dir, show=Bar('records')))
  except ValueError as error:
    if args.debug:
      raise
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('\nstopped; the same command starts the preparation again')
