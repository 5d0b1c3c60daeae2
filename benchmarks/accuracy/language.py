"""A decoder on a text: bits per character of float, uniform, scored and learned bits, at equal bits per weight.

    python benchmarks/accuracy/language.py --text=FILE --jobs=2
    python benchmarks/accuracy/language.py --text=FILE --jobs=2 --order=file                    # not mixed, see below
    python benchmarks/accuracy/language.py --text=FILE --cell=ours,3.5,0 --results=again.jsonl  # one cell
    python benchmarks/accuracy/language.py --report

The network, its quantization and its search are those of the recipe `text_gpt`, wider and with balanced levels: 1.5
million weights in groups of 32, inputs as they are. Half a bit of each weight is the range of its group, so that 4.5,
3.5 and 2.5 bits a weight are uniform bits of 4, 3 and 2. The first nine tenths of the text train; choices are made on
the twentieth behind them, and the last twentieth tests. So that these are not of one play each, the text is cut at
blank lines into pieces of about a thousand characters, which are mixed; `--order=file` leaves it as it is.

All quantized networks of a seed start from the same float network and are trained for as many steps, of which a tenth
is the search; `ours_on_top` has as many after it, and methods that end in `_longer` have as many as that in all. A
finished cell is a line of `results/language.jsonl` and is not run again.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.accuracy import study  # noqa: E402
from configs import base, text_gpt  # noqa: E402
from fracbits_jax.report import plots  # noqa: E402
from fracbits_jax.system.files import write_whole  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / 'results' / 'language.jsonl'
METRIC = 'bits_per_character'
METHODS = {
  'uniform': 'uniform bits',
  'hessian': 'Hessian trace and integer program',
  'ours': 'ours',
  'uniform_longer': 'uniform bits, a tenth more steps',
  'hessian_longer': 'Hessian, a tenth more steps',
  'ours_on_top': 'ours, the search on top',
}
BITS = (4.5, 3.5, 2.5)  # a weight, ranges of groups included
ORDERS = ('mixed', 'file')
PIECE = 1000  # characters, at least
FLOAT_EPOCHS, EPOCHS, SEARCHED = 4.0, 1.0, 0.1


def mixed(text: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """A file with the pieces of a text in random order, each of `PIECE` characters at least and ended by a blank line."""
  pieces = ['']
  for part in text.read_text(encoding='utf-8').split('\n\n'):
    if len(pieces[-1]) >= PIECE:
      pieces.append('')
    pieces[-1] += part + '\n\n'
  np.random.default_rng(0).shuffle(pieces)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'mixed.txt'
  write_whole(path, ''.join(pieces).encode())
  return path


def float_config(text: str, seed: int) -> ConfigDict:
  """Of the float network of a seed."""
  config = text_gpt.get_config()
  config.seed, config.phases = seed, ('pretrain',)
  config.data.dataset, config.data.data_dir = 'text', text
  config.model.width = 1.5
  config.pretrain = base.phase(FLOAT_EPOCHS, 2e-3, warmup_epochs=0.2)
  return config


def config_of(method: str, bits: float, seed: int, text: str) -> ConfigDict:
  """Of a quantized network, without the folders that its float network and its policy come from."""
  config = float_config(text, seed)
  config.budget.bits_per_weight = bits
  config.quant.kernel_levels = 'balanced'
  searches = method.startswith('ours')
  config.phases = ('search', 'finetune') if searches else ('finetune',)
  epochs = EPOCHS + SEARCHED if method.endswith(('_longer', '_on_top')) else EPOCHS
  middle = SEARCHED / epochs if searches else 0.0
  config.search = base.phase(SEARCHED, 1e-3, warmup_epochs=0.02, cosine=(0.0, middle))
  config.finetune = base.phase((1 - middle) * epochs, 1e-3, warmup_epochs=0.05, cosine=(middle, 1.0))
  return config


def float_network(text: str, seed: int, workdir: pathlib.Path) -> pathlib.Path:
  """Trains the float network of a seed, unless it is there; its folder."""
  from fracbits_jax.run import runner

  folder = workdir / f'float-{seed}'
  runner.run(float_config(text, seed), folder)
  return folder


def run(name: str, text: str, order: str, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the cell `METHOD,BITS,SEED` on a text in an order; its line for the results."""
  from benchmarks.accuracy import study_cell
  from benchmarks.shared import cells
  from fracbits_jax import policy
  from fracbits_jax.run import experiment, runner

  cells.set_up()
  method, bits, seed = name.split(',')
  began = time.monotonic()
  config = config_of(method, float(bits), int(seed), text)
  config.init_from = str(float_network(text, int(seed), workdir))
  folder = workdir / name.replace(',', '-')
  how = method.removesuffix('_longer')
  if how in study_cell.POLICIES:
    path = workdir / f'{folder.name}.json'
    if not path.exists():
      study_cell.POLICIES[how](experiment.prepare(config), int(seed)).save(path)
    config.policy = str(path)
  result = runner.run(config, folder)
  floats = json.loads((workdir / f'float-{seed}' / 'result.json').read_text())
  found = policy.load(folder / 'policy.json')
  return {
    'order': order,
    'method': method,
    'bits': float(bits),
    'seed': int(seed),
    'test': result[f'test_{METRIC}'],
    'float': floats[f'test_{METRIC}'],
    'searched': result[f'searched_{METRIC}'],
    'bits_per_weight': result['bits_per_weight'],
    'size_mb': result['size_mb'],
    'policy': {entry.name: entry.kernel for entry in found.layers if entry.learned},
    'steps': result['steps'],
    'minutes': round((time.monotonic() - began) / 60, 1),
    'versions': result['made_with'],
    'date': time.strftime('%Y-%m-%d'),
  }


def read_results(path: pathlib.Path, order: str) -> dict[str, dict[str, Any]]:
  """Finished cells of an order by name."""
  rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
  return {f'{row["method"]},{row["bits"]:g},{row["seed"]}': row for row in rows if row['order'] == order}


def table(rows: dict[str, dict[str, Any]]) -> str:
  """Means and standard deviations over the seeds, and differences seed by seed with their standard errors."""
  lines = ['| bits a weight | method | bits per character | less uniform bits | less Hessian | bits a weight used |']
  lines.append('|---|---|---|---|---|---|')
  seeds = sorted({row['seed'] for row in rows.values()})
  floats = [next(row['float'] for row in rows.values() if row['seed'] == seed) for seed in seeds]
  lines.append(f'| 32 | float | {_spread(floats)} | | | |')
  for bits, (method, label) in itertools.product(BITS, METHODS.items()):
    found = [row for row in rows.values() if (row['method'], row['bits']) == (method, bits)]
    if not found:
      continue
    gaps = ' | '.join(_gap(found, rows, other) for other in ('uniform', 'hessian'))
    used = [row['bits_per_weight'] for row in found]
    span = ' to '.join(sorted({f'{min(used):.3f}', f'{max(used):.3f}'}))
    lines.append(f'| {bits:g} | {label} | {_spread([row["test"] for row in found])} | {gaps} | {span} |')
  return '\n'.join(lines)


def _gap(found: list[dict[str, Any]], rows: dict[str, dict[str, Any]], method: str) -> str:
  """How far some cells are above those of a method with the same bits and seed: the mean, and its standard error."""
  others = [rows.get(f'{method},{row["bits"]:g},{row["seed"]}') for row in found]
  gaps = [row['test'] - other['test'] for row, other in zip(found, others, strict=True) if other]
  if found[0]['method'] == method or not gaps:
    return ''
  error = np.std(gaps, ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else np.nan
  return f'{np.mean(gaps):+.4f} ({error:.4f})'


def _spread(values: list[float]) -> str:
  from benchmarks.shared import cells

  return cells.with_deviation(values, 4)


def plot(rows: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
  """The bits that each kernel of the decoder has learned: the mean over the seeds, for each budget."""
  learned = {bits: [r['policy'] for r in rows.values() if (r['method'], r['bits']) == ('ours', bits)] for bits in BITS}
  learned = {bits: policies for bits, policies in learned.items() if policies}
  names = list(next(iter(learned.values()))[0])
  with plots.style():
    figure, axis = plots.new_figure(0.21 * len(names) + 1.2)
    places, colors = np.linspace(-0.24, 0.24, len(learned)), (plots.INPUT, plots.KERNEL, plots.COST)
    for place, (bits, policies), color in zip(places, learned.items(), colors, strict=False):
      means = [np.mean([policy[name] for policy in policies]) for name in names]
      axis.plot(means, place + np.arange(len(names)), 'o', ms=4, color=color, label=f'{bits:g} bits a weight')
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel('bits of the kernel, mean over the seeds')
    axis.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axis.tick_params(axis='y', which='minor', length=0)
    axis.grid(axis='y', which='major', visible=False)
    axis.grid(axis='y', which='minor', alpha=0.5)
    axis.grid(axis='x', alpha=0.3)
    axis.legend(loc='lower right')
    plots.save(figure, path.parent, path.stem)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--text', help='a file of UTF-8')
  parser.add_argument('--order', choices=ORDERS, default=ORDERS[0], help='of the pieces of the text')
  parser.add_argument('--methods', nargs='+', choices=tuple(METHODS), default=tuple(METHODS))
  parser.add_argument('--bits', nargs='+', type=float, choices=BITS, default=BITS)
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--cell', help='this one alone, in this process: METHOD,BITS,SEED')
  parser.add_argument('--float', type=int, help='the float network of this seed alone, in this process')
  parser.add_argument('--cores', help='of this process, by number, as in 0,1')
  parser.add_argument('--jobs', type=int, default=1, help='cells at a time, a core each')
  parser.add_argument('--report', action='store_true', help='run nothing')
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'language')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS)
  args = parser.parse_args()
  if not (args.text or args.report):
    parser.error('--text is missing: give a file of UTF-8')
  workdir = args.workdir / args.order
  if args.cell or args.float is not None:
    if args.cores:
      os.sched_setaffinity(0, map(int, args.cores.split(',')))  # before JAX counts them
    text = str(args.text if args.order == 'file' else mixed(pathlib.Path(args.text), workdir))
    if args.cell:
      study.append(args.results, run(args.cell, text, args.order, workdir))
    else:
      float_network(text, args.float, workdir)
    return
  rows, failed = read_results(args.results, args.order), []
  if not args.report:
    wanted = [f'{m},{b:g},{s}' for s, b, m in itertools.product(args.seeds, args.bits, args.methods)]
    todo = [name for name in wanted if name not in rows]
    options = ('text', 'order', 'workdir', 'results')
    script = [sys.executable, __file__, *(f'--{name}={getattr(args, name)}' for name in options)]
    shares = study.shares_of(sorted(os.sched_getaffinity(0)), args.jobs, one_core=True)
    floats = sorted({name.split(',')[2] for name in todo})
    failed = study.run_all(floats, lambda seed: [*script, f'--float={seed}'], workdir / 'logs', shares)
    names = [name for name in todo if name.split(',')[2] not in failed]
    failed += study.run_all(names, lambda name: [*script, f'--cell={name}'], workdir / 'logs', shares)
    rows = read_results(args.results, args.order)
  if rows:
    print(table(rows))
    if any(name.startswith('ours') for name in rows):
      workdir.mkdir(parents=True, exist_ok=True)
      plot(rows, workdir / 'language_policy.png')
  if failed:
    sys.exit(f'error: {", ".join(failed)} failed; the same command tries again')


if __name__ == '__main__':
  main()
