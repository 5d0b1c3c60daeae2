"""A finished run with pruned channels, compacted: `python benchmarks/accuracy/compact.py --workdir=runs/digits_prune`.

Prints what is left, and the largest difference between the logits of the two networks on the test split: in float32,
where the order of sums can turn a rounding to a level around, and in float64, where it cannot.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from fracbits_jax import cost  # noqa: E402
from fracbits_jax.data.batches import eval_batches  # noqa: E402
from fracbits_jax.policy import compact  # noqa: E402
from fracbits_jax.run import finished  # noqa: E402


def logits(model, variables, batches, dtype) -> np.ndarray:
  """The logits of every batch `[N, C]`."""
  variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
  apply = jax.jit(model.apply)
  return np.concatenate([apply(variables, jnp.asarray(b['image'], dtype))[b['mask'] > 0] for b in batches])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  args = parser.parse_args()
  run = finished.load(args.workdir)
  experiment = run.experiment
  shape = experiment.dataset.image_shape
  model = experiment.quant_model.clone(axis_name=None)
  smaller, fewer = compact.compact(model, run.variables, shape)
  table = cost.trace(smaller, shape)
  bits = jax.tree.map(lambda x: np.asarray(x, np.float64), fewer['bits'])
  before, after = (sum(l.weights for l in rows) for rows in (experiment.layers, table))
  print(f'pruned channels {run.policy.pruned_channels}, weights {before:,} -> {after:,}')
  print(f'GBitOPs reported {run.result["bitops_g"]:.9f}, counted {float(cost.bitops(bits, table)):.9f}')
  print(f'MB      reported {run.result["size_mb"]:.9f}, counted {float(cost.model_size(bits, table)):.9f}')
  batches = list(eval_batches(experiment.dataset, 'test', batch_size=100))
  for dtype in ('float32', 'float64'):
    with jax.enable_x64(dtype == 'float64'):
      full, compacted = (logits(m, v, batches, dtype) for m, v in ((model, run.variables), (smaller, fewer)))
    differs = np.abs(full - compacted).max(axis=1)
    agree = np.mean(full.argmax(1) == compacted.argmax(1))
    print(
      f'{dtype}: largest difference {differs.max():.2e} among logits up to {np.abs(full).max():.1f}, above 1e-5 for '
      f'{np.sum(differs > 1e-5)} of {len(differs)} images; same answer for {agree:.2%}'
    )


if __name__ == '__main__':
  main()
