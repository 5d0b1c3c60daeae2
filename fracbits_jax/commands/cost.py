"""What a network of `models` costs, layer by layer."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from fracbits_jax import models
from fracbits_jax.cost import (
  bitops,
  format_table,
  lookup,
  lookup_cost,
  model_size,
  peak_memory,
  trace,
  uniform_bits,
)
from fracbits_jax.layers import FLOAT_BITS, QuantConfig


def main(argv: Sequence[str] | None = None, *, program: str = 'fracbits-jax cost') -> int:
  """Prints the cost of a network by layer, its totals on the last line."""
  parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
  parser.add_argument('--model', required=True, help=', '.join(models.names()))
  parser.add_argument('--bits', type=float, required=True, help='bit-width of all learnable kernels and inputs')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--channels', type=int, default=3, help='colour channels of an image')
  parser.add_argument('--context', type=int, default=128, help='tokens of a window, for decoders of language')
  parser.add_argument('--num_classes', type=int, default=1000, help='or the vocabulary of a decoder')
  parser.add_argument('--width', type=float, default=1.0, help='width multiplier')
  parser.add_argument('--table', help=f'a lookup table as well: {", ".join(lookup.names())}, or the path of a CSV file')
  parser.add_argument('--quantize_residuals', action='store_true', help='what comes into residual blocks as well')
  args = parser.parse_args(argv)
  try:
    if not 0 <= args.bits <= FLOAT_BITS:
      raise ValueError(f'--bits {args.bits:g} is not a bit-width: give a number from 0 to {FLOAT_BITS}')
    if min(args.image_size, args.num_classes, args.channels, args.context) < 1 or not args.width > 0:
      raise ValueError('--image_size, --channels, --context, --num_classes and --width must be above 0')
    quant = QuantConfig(quantize_residuals=args.quantize_residuals)
    model = models.create(args.model, num_classes=args.num_classes, quant=quant, width=args.width)
    image = (1, args.image_size, args.image_size, args.channels)
    tokens = jax.ShapeDtypeStruct((1, args.context), np.int32)
    layers = trace(model, tokens if getattr(model, 'task', '') == 'language' else image)
    table = None if args.table is None else lookup.load(args.table)
    if table is not None:
      asked = tuple(sorted({math.floor(args.bits), math.ceil(args.bits)}))
      priced = (dataclasses.replace(l, choices=asked, input_choices=asked) for l in layers)
      layers = layers.with_rows(priced)
      table.check(layers)
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  bits = uniform_bits(layers, args.bits)
  print(format_table(bits, layers))
  if table is not None:
    print(f'{table.name}: {lookup_cost(bits, layers, table):.3f} {table.total}')
  try:
    print(f'memory: {peak_memory(bits, layers):.3f} kB of RAM')
  except ValueError as error:
    print(error)
  print(f'bitops_g={float(bitops(bits, layers)):.3f} size_mb={float(model_size(bits, layers)):.3f}')
  return 0
