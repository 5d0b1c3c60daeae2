"""Learned against uniform bits on digits, over several seeds: `python benchmarks/accuracy/digits.py [--seeds 0 1 2]`.

Each seed trains one float network; the learned and the uniform network both start from it and are trained for the
same number of epochs under the same budget. Prints a markdown table and writes `results.json` beside the runs.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.shared import cells  # noqa: E402
from configs import digits, digits_uniform  # noqa: E402

METHODS = {'learned': digits, 'uniform': digits_uniform}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'benchmark_digits')
  parser.add_argument('--set', nargs=2, action='append', default=[], metavar=('FIELD', 'JSON'), help='a config value')
  args = parser.parse_args()
  cells.set_up()
  changes = {name: json.loads(value) for name, value in args.set}

  def cell(method: str, seed: int) -> dict:
    config = METHODS[method].get_config()
    config.update_from_flattened_dict({**changes, 'seed': seed})
    return cells.run_cell(config, args.workdir / f'{method}-{seed}', args.workdir / f'learned-{seed}')

  results = {method: [cell(method, seed) for seed in args.seeds] for method in METHODS}
  (args.workdir / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
  print('\n| network | test accuracy, % | each seed | cost / target | bit-widths |\n|---|---|---|---|---|')
  learned = results['learned']
  print(f'| float | {cells.accuracy(learned, "float_accuracy")} | {cells.each(learned, "float_accuracy")} | | |')
  for method, found in results.items():
    widths = '; '.join(cells.span(r['bit_widths']) for r in found)
    print(f'| {method} | {cells.accuracy(found)} | {cells.each(found)} | {cells.budget_used(found)} | {widths} |')


if __name__ == '__main__':
  main()
