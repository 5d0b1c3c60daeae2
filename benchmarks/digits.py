"""Learned against uniform bits on digits, over several seeds: `python benchmarks/digits.py [--seeds 0 1 2]`.

Each seed trains one float network; the learned and the uniform network both start from it and are trained for the
same number of epochs under the same budget. Prints a markdown table and writes `results.json` beside the runs. A cell
that is finished is not run again.
"""

import argparse
import json
import pathlib
import shutil
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import digits, digits_uniform  # noqa: E402
from fracbits_jax import policy, run  # noqa: E402

METHODS = {'learned': digits, 'uniform': digits_uniform}


def cell(method: str, seed: int, workdir: pathlib.Path, changes: dict) -> dict:
  """Runs one method with one seed, or reads its result."""
  config = METHODS[method].get_config()
  config.update_from_flattened_dict({**changes, 'seed': seed})
  folder = workdir / f'{method}-{seed}'
  shared = workdir / f'learned-{seed}' / 'checkpoints' / 'pretrain'
  mine = folder / 'checkpoints' / 'pretrain'
  if method != 'learned' and shared.exists() and not mine.exists():
    shutil.copytree(shared, mine)
  result = run.run(config, folder)
  chosen = policy.load(folder / 'policy.json')
  widths = {b for e in chosen.layers for which in e.learned for b in np.atleast_1d(getattr(e, which)).tolist()}
  return {**result, 'bit_widths': sorted(widths)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'benchmark_digits')
  parser.add_argument('--set', nargs=2, action='append', default=[], metavar=('FIELD', 'JSON'), help='a config value')
  args = parser.parse_args()
  jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache' / 'jax'))
  changes = {name: json.loads(value) for name, value in args.set}
  results = {m: [cell(m, seed, args.workdir, changes) for seed in args.seeds] for m in ('learned', 'uniform')}
  (args.workdir / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
  floats = [r['float_accuracy'] for r in results['learned']]
  print(
    '\n| network | test accuracy, mean ± deviation | each seed | cost / target | bit-widths |\n|---|---|---|---|---|'
  )
  print(row('float', floats, '', ''))
  for method, cells in results.items():
    ratios = ', '.join(f'{r["cost"] / r["target"]:.4f}' for r in cells)
    widths = '; '.join(' '.join(map(str, r['bit_widths'])) for r in cells)
    print(row(method, [r['test_accuracy'] for r in cells], ratios, widths))


def row(name: str, accuracies: list[float], ratios: str, widths: str) -> str:
  values = 100 * np.asarray(accuracies)
  each = ', '.join(f'{v:.2f}' for v in values)
  spread = values.std(ddof=1) if len(values) > 1 else float('nan')
  return f'| {name} | {values.mean():.2f} ± {spread:.2f} | {each} | {ratios} | {widths} |'


if __name__ == '__main__':
  main()
