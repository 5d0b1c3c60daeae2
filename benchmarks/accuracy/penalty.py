"""Where the searched cost ends, by target and kind of penalty, on digits: `python benchmarks/accuracy/penalty.py`.

The controlled penalty with one setting, and the fixed one with kappa = 1, each from the same float network. Prints a
markdown table, draws `cost_by_penalty.png` beside the runs, writes `results.json`. A finished cell is not run again.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from matplotlib.figure import Figure  # noqa: E402

from benchmarks.shared import cells  # noqa: E402
from configs import digits  # noqa: E402
from fracbits_jax.report import plots  # noqa: E402
from fracbits_jax.run import progress  # noqa: E402

PENALTIES = {'controlled': {'budget.controlled': True}, 'fixed, kappa = 1': {'budget.kappa': 1.0}}


def cell(penalty: str, bits: float, args: argparse.Namespace) -> list[dict]:
  """The rows of one search."""
  config = digits.get_config()
  config.update_from_flattened_dict({'data.image_size': args.image_size, 'seed': args.seed})
  config.phases = ('pretrain',)
  floats = args.workdir / 'float'
  cells.run_cell(config, floats)
  config.phases = ('pretrain', 'search')
  config.update_from_flattened_dict({**PENALTIES[penalty], 'budget.equivalent_bits': bits})
  folder = args.workdir / f'{penalty.split(",")[0]}-{bits:g}'
  cells.run_cell(config, folder, floats)
  return [row for row in progress.read_rows(folder) if row['phase'] == 'search']


def figure(courses: dict[str, dict[float, list[dict]]]) -> Figure:
  """The course of cost over target through each search, one panel a penalty."""
  drawn, axes = plots.new_figure(3.2, columns=len(courses), sharey=True)
  for axis, (penalty, by_bits) in zip(axes, courses.items(), strict=True):
    axis.axhspan(0.98, 1.02, color='#e8f0fa', zorder=0)
    for i, (bits, rows) in enumerate(by_bits.items()):
      shade = plots.shade(i / max(len(by_bits) - 1, 1))
      ratios = [row['cost'] / row['target'] for row in rows]
      axis.plot([row['epoch'] for row in rows], ratios, color=shade, linewidth=1.6, label=f'{bits:g} bits')
    axis.set_title(penalty)
    axis.set_xlabel('epoch of the search')
  axes[0].set_ylabel('cost / target')
  axes[-1].legend(title='target as at', loc='upper right')
  return drawn


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--bits', type=float, nargs='+', default=[2.5, 3.0, 4.0, 5.0, 6.0], help='targets, as bits')
  parser.add_argument('--image_size', type=int, default=16)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'benchmark_penalty')
  args = parser.parse_args()
  cells.set_up()
  courses = {penalty: {bits: cell(penalty, bits, args) for bits in args.bits} for penalty in PENALTIES}
  ends = {p: {b: rows[-1]['cost'] / rows[-1]['target'] for b, rows in found.items()} for p, found in courses.items()}
  (args.workdir / 'results.json').write_text(json.dumps(ends, indent=2) + '\n')
  with plots.style():
    plots.save(figure(courses), args.workdir, 'cost_by_penalty')
  print('\n| cost / target at the end of the search |', ' | '.join(f'{bits:g} bits' for bits in args.bits), '|')
  print('|---' * (1 + len(args.bits)) + '|')
  for penalty, found in ends.items():
    print(f'| {penalty} |', ' | '.join(f'{ratio:.4f}' for ratio in found.values()), '|')


if __name__ == '__main__':
  main()
