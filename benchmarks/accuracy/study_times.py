"""How long a training step of each method of the study takes, beside one with uniform bits.

    python benchmarks/accuracy/study_times.py --dataset=glyphs                   # mobilenet_v1 at the BitOPs of 2 bits

The steps are those of the study's cells, each with the reading of its batch, and begin from their float network. All
of them take turns within a round, some steps each, in one process, since a shared machine's speed changes from minute
to minute; ratios are taken within a round, and their median, least and largest value over the rounds are given. A
method that searches counts its two phases by their epochs. Policies that are given are trained as uniform bits are, so
that random, Hessian's and the loss's stand for `uniform_sat`, and need what finding the policy takes beside it.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.accuracy import study_methods  # noqa: E402
from benchmarks.accuracy.study_methods import BUDGETS, METHODS, SETTINGS, Cell  # noqa: E402

TIMED = ('uniform_pact', 'uniform_sat', 'uniform_lsq', 'supernet', 'paper', 'ours')
STEPS, WARM_UP = 10, 3  # steps of a method in a round; rounds that do not count


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--dataset', choices=tuple(SETTINGS), default='glyphs')
  parser.add_argument('--network', default='mobilenet_v1', help="of the data set's")
  parser.add_argument('--budget', choices=tuple(BUDGETS), default='bitops2')
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--workdir', type=pathlib.Path, help='with the float network; runs/study_DATASET unless given')
  args = parser.parse_args()
  args.workdir = args.workdir or ROOT / 'runs' / f'study_{args.dataset}'
  if args.network not in SETTINGS[args.dataset].networks:
    parser.error(f'--network: {args.network} unknown: choose from {", ".join(SETTINGS[args.dataset].networks)}')
  return args


def make_steps(cell: Cell, float_folder: pathlib.Path, folder: pathlib.Path) -> dict[str, tuple[Callable, float]]:
  """For each phase of a cell: a function that makes so many steps, and the epochs of the phase."""
  import jax

  from benchmarks.shared import supernet
  from fracbits_jax import policy
  from fracbits_jax.data.batches import train_batches
  from fracbits_jax.run import begin
  from fracbits_jax.run.experiment import prepare
  from fracbits_jax.run.runner import Run
  from fracbits_jax.train import placement

  config = study_methods.config_of(cell)
  config.init_from = str(float_folder)
  experiment = prepare(config)
  run = Run(experiment, folder)
  # A step costs the same whatever the bits are.
  run.policy = policy.discretize(begin.initial_bits(experiment), experiment.layers, experiment.budget)
  made = {}
  for phase in run.phases:
    if phase == 'search' and METHODS[cell.method].how == 'supernet':
      _, state, train_step = supernet.start(run)
    else:
      begun = run.phase(phase, {})
      optimizer, train_step = begun.make_step(run.steps[phase])
      state = placement.replicate(begin.state(begun.start(), optimizer))
    batches = train_batches(experiment.dataset, batch_size=config.data.batch_size, seed=0)
    held = [state]

    def steps(count: int, held=held, train_step=train_step, batches=batches) -> None:
      for _ in range(count):
        held[0], metrics = train_step(held[0], placement.to_devices(next(batches)))
      jax.block_until_ready((held[0], metrics))

    steps(1)  # compiles it
    made[phase] = (steps, float(config[phase].epochs))
  run.progress.close()
  return made


def table(seconds: dict[str, dict[str, list[float]]], epochs: dict[str, dict[str, float]]) -> str:
  """The rows, as markdown, from the seconds of a step by method, phase and round."""
  share = {method: {phase: e / sum(of.values()) for phase, e in of.items()} for method, of in epochs.items()}
  uniform = seconds['uniform_pact']['finetune']
  lines = ['| method | step of the search | of the finetuning | all epochs |', '|---|---|---|---|']
  for method, phases in seconds.items():
    each = {phase: [s / u for s, u in zip(phases[phase], uniform, strict=True)] for phase in phases}
    whole = [sum(share[method][phase] * each[phase][i] for phase in phases) for i in range(len(uniform))]
    median = lambda phase, each=each: f'{statistics.median(each[phase]):.2f}' if phase in each else ''
    spread = f'{statistics.median(whole):.2f} ({min(whole):.2f} to {max(whole):.2f})'
    lines.append(f'| {METHODS[method].label} | {median("search")} | {median("finetune")} | {spread} |')
  return '\n'.join(lines)


def main() -> None:
  args = arguments()
  if SETTINGS[args.dataset].one_core and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # before JAX counts them
  from benchmarks.accuracy.study_cell import float_network
  from benchmarks.speed.speed import timed

  float_folder = float_network(args.dataset, args.network, 0, args.workdir)
  made = {}
  with tempfile.TemporaryDirectory() as folder:
    for method in TIMED:
      cell = Cell(dataset=args.dataset, method=method, network=args.network, budget=args.budget, seed=0)
      made[method] = make_steps(cell, float_folder, pathlib.Path(folder) / method)
      print(f'{method} is compiled', file=sys.stderr, flush=True)
    order = [(method, phase) for method, phases in made.items() for phase in phases]
    seconds = {method: {phase: [] for phase in phases} for method, phases in made.items()}
    for i in range(-WARM_UP, args.rounds):
      for method, phase in order[:: 1 if i % 2 == 0 else -1]:
        taken = timed(made[method][phase][0], STEPS)
        if i >= 0:
          seconds[method][phase].append(taken)
  epochs = {method: {phase: count for phase, (_, count) in phases.items()} for method, phases in made.items()}
  print(table(seconds, epochs))


if __name__ == '__main__':
  main()
