"""Every quantizer, granularity and kind of budget on digits, over several seeds.

    python benchmarks/accuracy/variants.py

All start from the same float networks, one a seed, on 16 x 16 images, where digits are harder than at the recipe's
32 x 32. Prints a markdown table and writes `results.json` beside the runs. A finished cell is not run again; `--only`
splits the work over processes.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.shared import cells  # noqa: E402
from configs import digits, digits_prune, digits_size, digits_uniform  # noqa: E402

# Name -> recipe, overrides.
VARIANTS = {
  'uniform bits': (digits_uniform, {}),
  'layer-wise, PACT': (digits, {}),
  'layer-wise, PACT, in bfloat16': (digits, {'model.dtype': 'bfloat16'}),
  'layer-wise, SAT': (digits, {'quant.sat': True}),
  'layer-wise, modified': (digits, {'quant.scheme': 'modified'}),
  'layer-wise, LSQ': (digits, {'quant.scheme': 'lsq'}),
  'layer-wise, stochastic': (digits, {'quant.stochastic': True}),
  'layer-wise, controlled penalty': (digits, {'budget.controlled': True}),
  'kernel-wise, PACT': (digits, {'quant.granularity': 'kernel'}),
  'kernel-wise, faster bits, controlled penalty': (
    digits,
    {'quant.granularity': 'kernel', 'optimizer.bits_rate': 100.0, 'budget.controlled': True},
  ),
  'kernel-wise, channels faster, controlled penalty': (
    digits,
    {'quant.granularity': 'kernel', 'optimizer.channel_bits_rate': 10.0, 'budget.controlled': True},
  ),
  'kernel-wise, LSQ': (digits, {'quant.granularity': 'kernel', 'quant.scheme': 'lsq'}),
  'lookup table, 2, 4 or 8 bits': (
    digits,
    {'budget.metric': 'lookup', 'budget.table': 'bit_fusion', 'quant.choices': (2, 4, 8)},
  ),
  'signed inputs (MobileNetV2)': (digits, {'model.name': 'mobilenet_v2'}),
  'weight-only, size of 2 bits': (digits_size, {}),
  'channel pruning, BitOPs of 2 bits': (digits_prune, {}),
  'channel pruning, BitOPs of 2 bits, inputs slower': (
    digits_prune,
    {'optimizer.bits_rate': 10.0, 'optimizer.channel_bits_rate': 10.0},
  ),
}
SHORTER = {'data.image_size': 16, 'search.epochs': 20.0, 'finetune.epochs': 20.0}


def cell(name: str, seed: int, workdir: pathlib.Path) -> dict:
  """Runs one variant with one seed."""
  recipe, changes = VARIANTS[name]
  config = recipe.get_config()
  config.update_from_flattened_dict({**SHORTER, 'seed': seed})
  if 'search' not in config.phases:
    config.finetune.epochs = config.search.epochs + config.finetune.epochs
  config.update_from_flattened_dict(changes)
  start = digits.get_config()
  start.update_from_flattened_dict({**SHORTER, 'seed': seed, 'phases': ('pretrain',), 'model.name': config.model.name})
  floats = workdir / f'float-{config.model.name}-{seed}'
  cells.run_cell(start, floats)
  folder = ''.join(c if c.isalnum() else '_' for c in name)
  return cells.run_cell(config, workdir / f'{folder}-{seed}', floats)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--only', nargs='+', default=list(VARIANTS), choices=list(VARIANTS), metavar='NAME')
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'benchmark_variants')
  args = parser.parse_args()
  cells.set_up()
  results = {name: [cell(name, seed, args.workdir) for seed in args.seeds] for name in args.only}
  (args.workdir / 'results.json').write_text(json.dumps(results, indent=2) + '\n')
  print('\n| variant | float, % | final, % | each seed | cost / target | bits |\n|---|---|---|---|---|---|')
  for name, found in results.items():
    floats, widths = cells.accuracy(found, 'float_accuracy'), '; '.join(cells.span(r['bit_widths']) for r in found)
    accuracies = f'{cells.accuracy(found)} | {cells.each(found)}'
    print(f'| {name} | {floats} | {accuracies} | {cells.budget_used(found)} | {widths} |')


if __name__ == '__main__':
  main()
