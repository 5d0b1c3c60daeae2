"""Which criterion of calibration leaves networks most accurate.

    python benchmarks/accuracy/calibration.py --float=DIR ...

Each `DIR` is the folder of a run that has a float network of the recipe `glyphs`, one for each seed, such as those of
`benchmarks/accuracy/study.py`. At uniform bits, and for every criterion, the network is calibrated, its batch norm re-
estimated, and the accuracy on the validation split taken; then it is finetuned for a while, and once more. One program
serves all of it. Prints a markdown table; `--outliers` prints the clips of normal values with one of 100 among them
instead.
"""

import argparse
import contextlib
import functools
import itertools
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.shared import cells  # noqa: E402
from configs import glyphs  # noqa: E402
from fracbits_jax import cost  # noqa: E402
from fracbits_jax.data.batches import train_batches  # noqa: E402
from fracbits_jax.layers import calibrate  # noqa: E402
from fracbits_jax.layers.quant_config import CALIBRATIONS  # noqa: E402
from fracbits_jax.run import begin  # noqa: E402
from fracbits_jax.run.experiment import Experiment, prepare  # noqa: E402
from fracbits_jax.train import placement, step  # noqa: E402


def experiment(folder: pathlib.Path, criterion: str, epochs: float) -> Experiment:
  """The recipe with a finetuning alone, from the float network of a folder."""
  config = glyphs.get_config()
  config.phases, config.init_from, config.distill.weight = ('finetune',), str(folder), 0.0
  config.quant.calibration, config.finetune.epochs = criterion, epochs
  config.finetune.reestimate_batches = 16
  return prepare(config)


def accuracies(of: Experiment, bits: int, machinery: tuple) -> tuple[float, float]:
  """Validation accuracy after the calibration, and after the finetuning."""
  optimizer, train_step, statistics, evaluate = machinery
  dataset, config = of.dataset, of.config
  integers = begin.as_float32(cost.uniform_bits(of.layers, float(bits)))
  state = placement.replicate(
    begin.state(begin.quantized_variables(of, begin.float_variables(of), integers), optimizer)
  )
  state = state.replace(batch_stats=statistics(of, state))
  calibrated = evaluate(state.variables, 'validation')['accuracy']
  with contextlib.closing(train_batches(dataset, batch_size=config.data.batch_size, seed=0)) as batches:
    for batch in itertools.islice(batches, steps(of)):
      state, _ = train_step(state, placement.to_devices(batch))
  state = state.replace(batch_stats=statistics(of, state))
  return calibrated, evaluate(state.variables, 'validation')['accuracy']


def steps(of: Experiment) -> int:
  """Steps of the finetuning."""
  return round(of.config.finetune.epochs * (len(of.dataset.train) // of.config.data.batch_size))


def make_machinery(of: Experiment) -> tuple:
  """What all cells share: the optimizer, its step, the re-estimation of batch norm and the evaluator."""
  from fracbits_jax.train import reestimate

  rate = begin.schedule(of, 'finetune', steps=steps(of), steps_per_epoch=len(of.dataset.train) // 64)
  optimizer = begin.optimizer(of, 'finetune', rate)
  model = begin.model(of, 'finetune')
  mapped = step.over_devices(reestimate.make_statistics_step(model))

  def statistics(of, state):
    reader = train_batches(of.dataset, batch_size=of.config.data.batch_size, seed=1)
    with contextlib.closing(reader) as batches:
      some = map(placement.to_devices, itertools.islice(batches, of.config.finetune.reestimate_batches))
      return reestimate.statistics(mapped, state.variables, some)

  evaluate = begin.evaluator(model, of.dataset, of.config.data.batch_size)
  return optimizer, begin.train_step(of, 'finetune', optimizer, rate), statistics, evaluate


def print_outliers() -> None:
  """The clips of 4,096 normal values, rectified, alone and with one of 100."""
  x = np.maximum(np.random.default_rng(0).normal(size=4096), 0).astype(np.float32)
  print('| criterion | ' + ' | '.join(f'{b} bits, alone and with 100' for b in (2, 3, 4)) + ' |\n|---|---|---|---|')
  for criterion in CALIBRATIONS:
    clip = functools.partial(calibrate.best_clip, signed=False, choices=tuple(range(1, 9)), criterion=criterion)
    pairs = [f'{clip(x, b):.2f}, {clip(np.append(x[1:], np.float32(100)), b):.2f}' for b in (2, 3, 4)]
    print(f'| `{criterion}` | {" | ".join(pairs)} |')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--float', type=pathlib.Path, nargs='+', default=[], help='folders with float networks')
  parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4])
  parser.add_argument('--epochs', type=float, default=0.25, help='of finetuning')
  parser.add_argument('--outliers', action='store_true')
  args = parser.parse_args()
  cells.set_up()
  if args.outliers:
    print_outliers()
    return
  if not args.float:
    parser.error('--float: give the folders of runs with a float network')
  machinery, found = None, {}
  for folder, criterion in itertools.product(args.float, CALIBRATIONS):
    of = experiment(folder, criterion, args.epochs)
    machinery = machinery or make_machinery(of)
    for bits in args.bits:
      pair = accuracies(of, bits, machinery)
      found.setdefault((bits, criterion), []).append(pair)
      print(f'{folder.name}, {criterion}, {bits} bits: {100 * pair[0]:.2f}, {100 * pair[1]:.2f}', flush=True)
  print('\n| bits | criterion | calibrated, % | finetuned, % | each seed |\n|---|---|---|---|---|')
  for (bits, criterion), pairs in sorted(found.items()):
    percent = 100 * np.array(pairs)
    means = ' | '.join(cells.with_deviation(percent[:, i]) for i in range(2))
    print(f'| {bits} | `{criterion}` | {means} | {", ".join(f"{p:.2f}" for p in percent[:, 1])} |')
  print(f'\n{jax.device_count()} {jax.default_backend()} device(s)')


if __name__ == '__main__':
  main()
