"""Writes the report of a finished run again, or compares several runs."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from fracbits_jax.run.records import check_config, check_result, read_finished


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax report') -> int:
  """Writes pages; returns the exit status."""
  parser = argparse.ArgumentParser(prog=program, description=__doc__)
  parser.add_argument('runs', nargs='+', type=pathlib.Path, metavar='RUN', help='folder of a finished run')
  parser.add_argument(
    '--out', type=pathlib.Path, help='folder to write into; that of the run, or `comparison` where there are several'
  )
  args = parser.parse_args(argv)
  try:
    if len(args.runs) == 1:
      path = _of_one(args.runs[0], args.out)
    else:
      from fracbits_jax.report import compare  # with matplotlib

      path = compare.write(args.runs, args.out or pathlib.Path('comparison'))
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(path)
  return 0


def _of_one(workdir: pathlib.Path, out: pathlib.Path | None) -> pathlib.Path:
  """Writes the report of a finished run again."""
  from fracbits_jax.report import summary  # with matplotlib

  config, result = read_finished(workdir)
  check_config(workdir / 'config.json', config)
  check_result(workdir / 'result.json', result)
  return summary.write(workdir, result, out)
