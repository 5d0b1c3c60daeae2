"""What compiling a search step of a decoder costs, by the number of its blocks: one loop beside blocks one by one.

    python benchmarks/speed/scanned.py [--depths 4 24] [--repeats=3]

The step is that of the recipe `text_gpt`: its loss, its penalty and its optimizer. Seconds are CPU time of the process
for tracing, lowering and compiling, the least of the repeats, which take turns; nothing is run.
"""

import argparse
import itertools
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from configs import text_gpt
from fracbits_jax.run import begin, experiment


def compiled(depth: int, scan: bool) -> tuple[float, int]:
  """CPU seconds until a search step is compiled, and the bytes of its program's text."""
  config = text_gpt.get_config()
  config.model.decoder.depth, config.model.decoder.scan = depth, scan
  found = experiment.prepare(config)
  rate = begin.schedule(found, 'search', steps=100, steps_per_epoch=100)
  optimizer = begin.optimizer(found, 'search', rate)
  state = jax.eval_shape(lambda: begin.state(begin.shapes(found, 'search'), optimizer))
  tokens = jax.ShapeDtypeStruct((1, config.data.batch_size, config.data.context + 1), np.int32)
  one = lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
  jax.clear_caches()
  began = time.process_time()
  lowered = begin.train_step(found, 'search', optimizer, rate).lower(jax.tree.map(one, state), {'tokens': tokens})
  lowered.compile()
  return time.process_time() - began, len(lowered.as_text())


def main() -> None:
  """Prints a row for each number of blocks."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--depths', type=int, nargs='+', default=[4, 24])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--only_scanned', action='store_true', help='leave out blocks one by one, which take minutes')
  args = parser.parse_args()
  jax.config.update('jax_enable_compilation_cache', False)
  ways = [True] if args.only_scanned else [True, False]
  cases = list(itertools.product(ways, args.depths))
  found = {case: [] for case in cases}
  for _ in range(args.repeats):
    for scan, depth in cases:
      found[scan, depth].append(compiled(depth, scan))
  print('| blocks | one loop | CPU seconds | of the fewest blocks | program, kB |\n|---|---|---|---|---|')
  for scan, depth in cases:
    seconds, size = min(found[scan, depth])
    least = min(found[scan, args.depths[0]])[0]
    print(f'| {depth} | {"yes" if scan else "no"} | {seconds:.1f} | {seconds / least:.2f} | {size / 1e3:,.0f} |')


if __name__ == '__main__':
  main()
