"""The evidence study: every method on every network under every budget, over several seeds.

    python benchmarks/accuracy/study.py --dataset=glyphs --jobs=2  # the core grid; it goes on when started again
    python benchmarks/accuracy/study.py --dataset=cifar10 --data_dir=DIR --jobs=2  # class folders of CIFAR-10
    python benchmarks/accuracy/study.py --dataset=glyphs --full  # kernel-wise bits, all networks and budgets
    python benchmarks/accuracy/study.py --dataset=glyphs --only ours paper  # some of it
    python benchmarks/accuracy/study.py --dataset=glyphs --cell=ours,mobilenet_v1,bitops2,0 --results=again.jsonl
    python benchmarks/accuracy/study.py --dataset=glyphs --report  # the table and the figures of what there is

All methods of a network and a seed start from the same float network, see the same images in the same order, and train
for the same number of epochs. A finished cell is a line of `results/study_DATASET.jsonl` and is not run again,
on whatever machine, as long as its configuration is the same (`study_methods.digest`). Choices are made on the
validation split; the test split is read once, at the end of a cell. Each cell is a process of its own, so that its
memory is its own. On the small data sets it keeps to one core, so that its numbers do not depend on how many there are:
`--jobs` takes as many as the machine has.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import study_methods, study_plots, study_report  # noqa: E402
from benchmarks.accuracy.study_methods import BUDGETS, METHODS, SETTINGS, Cell  # noqa: E402


def read_results(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a results file; the last one of a cell counts."""
  lines = path.read_text().splitlines() if path.exists() else []
  rows = [json.loads(line) for line in lines if line.strip()]
  return list({_key(row): row for row in rows}.values())


def _key(row: dict[str, Any]) -> tuple:
  return tuple(row[name] for name in ('dataset', 'method', 'network', 'budget', 'granularity', 'seed', 'digest'))


def key_of(cell: Cell) -> tuple:
  """What tells the line of a cell from the others, and from those of another configuration."""
  return (
    cell.dataset, cell.method, cell.network, cell.budget, cell.granularity, cell.seed, study_methods.digest(cell)
  )  # fmt: skip


def left_to_do(cells: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> list[Cell]:
  """The cells that have no line yet."""
  done = {_key(row) for row in rows}
  return [cell for cell in cells if key_of(cell) not in done]


def append(path: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds a line; several processes may do so at the same time."""
  path.parent.mkdir(parents=True, exist_ok=True)
  line = f'{json.dumps(row)}\n'.encode()
  file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
  try:
    os.write(file, line)  # at once, so that lines do not mix
  finally:
    os.close(file)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dataset', choices=tuple(SETTINGS), default='glyphs')
  size = parser.add_mutually_exclusive_group()
  size.add_argument('--core', action='store_true', help='two networks, bits per layer; the default')
  size.add_argument('--full', action='store_true', help='all networks, budgets and methods, per layer and per kernel')
  parser.add_argument('--only', nargs='+', choices=tuple(METHODS), metavar='METHOD', help=', '.join(METHODS))
  parser.add_argument('--networks', nargs='+', help="of the data set's")
  parser.add_argument('--budgets', nargs='+', choices=tuple(BUDGETS))
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--epochs', type=float, help="of search and of finetuning each, instead of the data set's own")
  parser.add_argument('--data_dir', help='of class folders, or of TFDS')
  parser.add_argument('--cell', help='this one alone, in this process: METHOD,NETWORK,BUDGET,SEED[,kernel]')
  parser.add_argument('--float', help='the float network alone, in this process: NETWORK,SEED')
  parser.add_argument('--report', action='store_true', help='run nothing')
  parser.add_argument('--jobs', type=int, default=1, help='cells at a time')
  parser.add_argument('--cores', help='of this process, by number, as in 0,1')
  parser.add_argument('--workdir', type=pathlib.Path, help='of the runs; runs/study_DATASET unless given')
  parser.add_argument(
    '--results', type=pathlib.Path, help='benchmarks/accuracy/results/study_DATASET.jsonl unless given'
  )
  parser.add_argument('--out', type=pathlib.Path, help='of the table and the figures; the workdir unless given')
  args = parser.parse_args()
  if args.epochs is not None and args.epochs <= 0:
    parser.error(f'--epochs: {args.epochs:g} given: it has to be above 0')
  args.workdir = args.workdir or ROOT / 'runs' / f'study_{args.dataset}'
  args.results = args.results or ROOT / 'benchmarks' / 'accuracy' / 'results' / f'study_{args.dataset}.jsonl'
  args.out = args.out or args.workdir
  if unknown := set(args.networks or ()) - set(SETTINGS[args.dataset].networks):
    known = ', '.join(SETTINGS[args.dataset].networks)
    parser.error(f'--networks: {", ".join(sorted(unknown))} unknown: choose from {known}')
  return args


def shares_of(cores: Sequence[int], jobs: int, one_core: bool) -> list[Sequence[int]]:
  """The cores of each job, none where it is free to choose: one, or its share of all."""
  if cores and one_core:
    return [cores[job % len(cores) :][:1] for job in range(jobs)]
  return [cores[job::jobs] if len(cores) >= jobs > 1 else [] for job in range(jobs)]


def run_all(
  names: Sequence[str], command: Callable[[str], list[str]], logs: pathlib.Path, shares: Sequence[Sequence[int]]
) -> list[str]:
  """Runs a command for each name, one at a time on each share of the cores; the names of those that failed."""
  logs.mkdir(parents=True, exist_ok=True)
  jobs = len(shares)
  waiting, running, failed, ended, began = list(names), {}, [], 0, time.monotonic()
  while waiting or running:
    while waiting and len(running) < jobs:
      name = waiting.pop(0)
      share = next(i for i in range(jobs) if i not in running)
      log = (logs / f'{name.replace(",", "-")}.log').open('w')
      arguments = command(name) + ([f'--cores={",".join(map(str, shares[share]))}'] if shares[share] else [])
      process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
      running[share] = (name, process, log, time.monotonic())
    time.sleep(0.2)
    for share, (name, process, log, started) in list(running.items()):
      if process.poll() is not None:
        del running[share]
        log.close()
        ended += 1
        if process.returncode:
          failed.append(name)
        took, minutes = time.monotonic() - started, (time.monotonic() - began) / 60
        to_come = minutes / ended * (len(names) - ended)
        how = f'FAILED, see {log.name}' if process.returncode else 'done'
        print(f'{name}: {how}, {took:.0f} s; {ended} of {len(names)}, {to_come:.0f} min to come', flush=True)
  return failed


def write_report(rows: Sequence[dict[str, Any]], folder: pathlib.Path) -> str:
  """Writes `study.md` and the figures; the text."""
  if not rows:
    return 'no cell is finished'
  text = study_report.text(rows)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'study.md').write_text(text)
  study_plots.save(study_report.group(rows), folder)
  return text


def main() -> None:
  args = arguments()
  if args.epochs:
    study_methods.set_epochs(args.dataset, args.epochs)
  if args.data_dir:
    study_methods.set_data_dir(args.dataset, args.data_dir)
  elif SETTINGS[args.dataset].folder and not args.report:
    sys.exit(f'error: {args.dataset} is read from class folders: give --data_dir')
  one_core = SETTINGS[args.dataset].one_core
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  if args.cell or args.float:
    mine = list(map(int, args.cores.split(','))) if args.cores else shares_of(cores, 1, one_core)[0]
    if mine and cores:
      os.sched_setaffinity(0, mine)  # before JAX counts them
    from benchmarks.accuracy import study_cell  # loads JAX, which the process that starts the others has no need of

    if args.float:
      network, seed = args.float.split(',')
      study_cell.float_network(args.dataset, network, int(seed), args.workdir)
      return
    cell = study_methods.parse(args.cell, args.dataset)
    if left_to_do([cell], read_results(args.results)):
      append(args.results, study_cell.run(cell, args.workdir))
    done = {_key(row): row for row in read_results(args.results)}
    print(json.dumps(done[key_of(cell)], indent=1))
    return
  choice = dict(full=args.full, methods=args.only, networks=args.networks, budgets=args.budgets, seeds=args.seeds)
  cells = list(study_methods.grid(args.dataset, **choice))
  failed: list[str] = []
  if not args.report:
    todo = left_to_do(cells, read_results(args.results))
    print(f'{len(cells)} cells, {len(todo)} of them to run', flush=True)
    script = [sys.executable, str(pathlib.Path(__file__).resolve()), f'--dataset={args.dataset}']
    script += [f'--workdir={args.workdir}', f'--results={args.results}']
    script += [f'--{name}={value}' for name in ('epochs', 'data_dir') if (value := getattr(args, name))]
    floats = list(dict.fromkeys(f'{cell.network},{cell.seed}' for cell in todo))
    shares, logs = shares_of(cores, args.jobs, one_core), args.workdir / 'logs'
    # The first one alone, since it may have to prepare the data.
    failed = run_all(floats[:1], lambda name: [*script, f'--float={name}'], logs, shares_of(cores, 1, one_core))
    failed += run_all(floats[1:], lambda name: [*script, f'--float={name}'], logs, shares)
    names = [cell.name for cell in todo if f'{cell.network},{cell.seed}' not in failed]
    failed += run_all(names, lambda name: [*script, f'--cell={name}'], logs, shares)
  keys = {key_of(cell) for cell in cells}
  print(write_report([row for row in read_results(args.results) if _key(row) in keys], args.out))
  if failed:
    sys.exit(f'error: {", ".join(failed)} failed; the same command tries again')


if __name__ == '__main__':
  main()
