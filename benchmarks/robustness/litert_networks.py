"""LiteRT files of small random networks: whether they load, and give codes of integer inference within a rounding.

    python benchmarks/robustness/litert_networks.py --networks=100

Each file is run by LiteRT with XNNPACK and without, and by tflite-micro. Given the codes that a runtime computes, what
a convolution or a dense layer makes of them has to be within one code of integer inference. Where summands, means and
values with several readers are rounded on the way, the largest difference is printed.
"""

import argparse
import collections
import dataclasses
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from benchmarks.robustness import random_networks
from benchmarks.shared import litert_codes, litert_runtimes
from fracbits_jax.export import integer, litert_format
from fracbits_jax.export.source import Source

OPERATIONS = (
  'average pool', 'batch norm', 'branches', 'chained', 'channels twice', 'circular', 'convolution', 'dense',
  'depthwise', 'grouped', 'halves', 'joined rows', 'looped', 'max pool', 'pad', 'patches', 'relu', 'relu6', 'reshape',
  'residual', 'split', 'transpose',
)  # fmt: skip


def draw(seed: int) -> tuple[Source, np.ndarray]:
  """A network whose layers have inputs of 8 bits and kernels of 4 and 8, and inputs for it."""
  rng = np.random.default_rng(seed)
  names = tuple(map(str, rng.choice(OPERATIONS, int(rng.integers(2, 6)))))
  how = dict(scheme='lsq', granularity=str(rng.choice(['layer', 'kernel'])))
  source, x = random_networks.of_operations(names, seed, widths=(4, 8), **how)
  wide = lambda node: {**node.params, 'grid': dataclasses.replace(node.params['grid'], bits=8)}
  nodes = tuple(
    dataclasses.replace(node, params=wide(node)) if node.op == 'quantize' else node for node in source.graph.nodes
  )
  return dataclasses.replace(source, given=dataclasses.replace(source.graph, nodes=nodes)), x


def differences(file: litert_format.Written, x: np.ndarray, images: bool) -> dict[str, np.ndarray]:
  """|Differences| of codes, by the operations that make them, over all runtimes and layers."""
  layers = litert_codes.layers_of(file)
  run = integer.inference(file.graph, integer_inputs=images, keep=tuple(layers))
  examples = litert_codes.as_int8(x) if images else litert_codes.quantized(file, x)
  found = collections.defaultdict(list)
  for runtime in litert_runtimes.RUNTIMES:
    _, codes = litert_codes.codes_of(file, runtime, examples)
    _, given = run(x, codes)
    for name in layers:
      made = litert_codes.made_by(file.plan, file.plan.codes[name])
      found[made].append(np.abs(codes[name] - given[name]).reshape(-1))
  return {made: np.concatenate(parts) for made, parts in found.items()}


def main() -> int:
  """Prints a line for each wrong file, and the counts."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--networks', type=int, default=100)
  parser.add_argument('--first', type=int, default=0, help='the first seed')
  args = parser.parse_args()
  refused, codes, wrong, begin = collections.Counter(), collections.defaultdict(list), 0, time.perf_counter()
  for seed in range(args.first, args.first + args.networks):
    source, x = draw(seed)
    try:
      file = litert_format.built(source, examples=x)
    except ValueError as error:
      refused[str(error).split(' has no counterpart')[0].split(' in ')[0]] += 1
      continue
    try:
      found = differences(file, x, source.input_range is not None)
    except ValueError as error:  # integer inference has it not either
      refused[' '.join(str(error).split()[-8:])] += 1
      continue
    for made, other in found.items():
      codes[made in litert_codes.EXACT].append(other)
      if made in litert_codes.EXACT and other.max() > 1:
        wrong += 1
        print(f'seed {seed}: {made} differs by {other.max()}: {source.model.operations}', flush=True)
    if seed % 25 == 24:
      jax.clear_caches()
  print(f'{args.networks - sum(refused.values())} files of {args.networks} networks; refused: {dict(refused)}')
  for exact, parts in codes.items():
    other = np.concatenate(parts)
    what = 'convolutions and dense layers of codes' if exact else 'what has been rounded before'
    print(f'{what}: {np.mean(other > 0):.2%} of {other.size:,} codes differ, by up to {other.max()}')
  print(f'{time.perf_counter() - begin:.0f} s')
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
