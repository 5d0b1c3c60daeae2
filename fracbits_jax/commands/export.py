"""Writes the network of a finished run in a format that other programs read."""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

# format -> (module, the extra that has its packages, suffix of its files)
FORMATS = {
  'packed': ('fracbits_jax.export.packed', None, '.fracbits'),
  'qonnx': ('fracbits_jax.export.qonnx_format', 'qonnx', '.qonnx.onnx'),
  'onnx': ('fracbits_jax.export.onnx_format', 'onnx', '.onnx'),
  'c': ('fracbits_jax.export.c_format', 'c', '_c'),
  'litert': ('fracbits_jax.export.litert_format', 'litert', '.tflite'),
  'qwix': ('fracbits_jax.export.qwix_format', 'qwix', '_qwix'),
  'stablehlo': ('fracbits_jax.export.stablehlo', 'stablehlo', '.stablehlo'),
}


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax export') -> int:
  """Exports a run; prints what was written."""
  parser = argparse.ArgumentParser(prog=program, description=__doc__)
  parser.add_argument('--workdir', required=True, help='folder of a finished run')
  parser.add_argument('--format', required=True, help=', '.join(FORMATS))
  parser.add_argument('--out', help='the file to write; in the folder of the run by default')
  parser.add_argument('--best', action='store_true', help='the state that validated best, not the last')
  args = parser.parse_args(argv)
  try:
    if args.format not in FORMATS:
      raise ValueError(f'--format {args.format} is unknown: give one of {", ".join(FORMATS)}')
    name, extra, suffix = FORMATS[args.format]
    try:
      module = importlib.import_module(name)
    except ModuleNotFoundError as error:
      # The extra of the format, where another one has the package as well.
      raise ValueError(
        f"--format {args.format} needs the package {error.name}: pip install 'fracbits_jax[{extra or 'train'}]'"
      ) from None
    from fracbits_jax.export.source import source_of_run  # behind the checks that need no run

    source = source_of_run(args.workdir, best=args.best)
    out = pathlib.Path(args.out) if args.out else pathlib.Path(args.workdir) / f'{source.name}{suffix}'
    print(module.write(source, out))
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
