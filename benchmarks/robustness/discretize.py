"""Discretizing bit-widths per kernel, against the paper's single offset: `python benchmarks/robustness/discretize.py`.

For MobileNetV2 at 224 x 224: how long it takes, and how much of the target is used, over random searched bits.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from fracbits_jax import cost, models, policy  # noqa: E402
from fracbits_jax.layers import QuantConfig  # noqa: E402


def single_offset(bits: dict, layers: tuple, budget: cost.Budget) -> float:
  """The cost of round(bits + d) for the best d in [-1, 0], or NaN if none meets the target."""

  def moved(offset: float) -> dict:
    shifted = lambda l, which: np.round(cost.bits_of(bits, l.name, which) + offset)
    return cost.fill_bits(layers, lambda l, which, shape, choices: np.clip(shifted(l, which), choices[0], choices[-1]))

  low, high = -1.0, 0.0
  if not budget.holds(moved(low), layers):
    return float('nan')
  for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if budget.holds(moved(middle), layers) else (low, middle)
  return float(budget.cost(moved(low), layers))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', default='mobilenet_v2')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  print(
    '| allowed bits | as at | bit-widths | seconds | cost / target | single offset / target | ours closer by at least |'
  )
  print('|---|---|---|---|---|---|---|')
  for choices, target_bits in ((range(2, 9), 3), (range(2, 9), 5), (range(1, 9), 4), (range(9), 2)):
    quant = QuantConfig(granularity='kernel', choices=choices, input_choices=[b for b in choices if b > 1])
    layers = cost.trace(models.create(args.model, quant=quant), (224, 224, 3))
    budget = cost.budget('bitops', layers, equivalent_bits=target_bits)
    count = sum(int(np.prod(shape, dtype=int)) for l in layers for shape, _ in cost.learned(l).values())
    seconds, used, offset = [], [], []
    for seed in range(args.repeats):
      rng = np.random.default_rng(seed)
      bits = cost.fill_bits(layers, lambda l, which, shape, c: rng.normal(target_bits, 1, shape))  # noqa: B023
      start = time.perf_counter()
      found = policy.discretize(bits, layers, budget)
      seconds.append(time.perf_counter() - start)
      used.append(found.cost / budget.target)
      offset.append(single_offset(bits, layers, budget) / budget.target)
    ratios = f'{min(used):.5f} to {max(used):.5f} | {min(offset):.5f} to {max(offset):.5f}'
    lead = min(np.subtract(used, offset))
    row = f'| {choices[0]}-{choices[-1]} | {target_bits} bits | {count:,} | {np.median(seconds):.2f}'
    print(f'{row} | {ratios} | {lead:.1e} |')


if __name__ == '__main__':
  main()
