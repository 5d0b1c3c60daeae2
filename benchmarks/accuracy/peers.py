"""Learned bits here and in HGQ2 on digits: accuracy over the size of the weights.

    pip install -e '.[peers]'
    python benchmarks/accuracy/peers.py [--seeds 0 1 2] [--betas 1e-7 1e-6] [--bits 2 3 4] [--out=FILE]

Half the width of `tiny_resnet8`, digits at 16 x 16, the same training images in the same order, 30 epochs in batches
of 64. Here: 10 epochs of a float network with SGD, 10 of search by layer under the BitOPs of each of `--bits`, 10 of
finetuning. HGQ2: bits by weight and by element of an input (its defaults) or by layer, from 8, with Adam; 10 epochs
without a price of the bits, 10 in which beta, the price of an effective bit operation (EBOP), rises a hundredfold to
one of `--betas`, 10 at that; then its ranges are traced on the training images. In so few steps Adam at the weights'
rate moves no bit-width by more than one, so bits have ten times that rate, as here. These rates and this course of beta
were not searched.

Size: the sum over kernels of the bits of each weight, sign included, and 4 bytes for each bias. Where HGQ2 has a
bit-width for each weight, nothing is counted for saying which; a circuit has no need to, a memory has. BitOPs: the sum
over multiply-accumulates of both operands' bits, sign included.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.shared import cells  # noqa: E402
from benchmarks.speed.peers_measure import reason  # noqa: E402
from benchmarks.speed.speed_tables import markdown  # noqa: E402
from configs import digits  # noqa: E402
from fracbits_jax.data import sets  # noqa: E402
from fracbits_jax.data.batches import eval_batches, train_batches  # noqa: E402

SIZE, BATCH, WIDTH, PHASE = 16, 64, 0.5, 10  # of an image's side, of a batch, of the network, epochs of a phase
RATE, BITS_RATE = 3e-3, 10.0  # Adam's rate of HGQ2's weights, and that of its bits as a multiple


def ours(bits: float, seed: int, folder: pathlib.Path) -> dict[str, Any]:
  """A run of this project under the BitOPs of uniform bits; all of a seed share a float network."""
  config = digits.get_config(str(bits))
  config.seed = seed
  config.model.name, config.model.width = 'tiny_resnet8', WIDTH
  config.data.image_size, config.data.batch_size = SIZE, BATCH
  for phase in ('pretrain', 'search', 'finetune'):
    config[phase].epochs = float(PHASE)
  config.eval_epochs = float(PHASE)
  result = cells.run_cell(config, folder / f'ours-{bits}-{seed}', folder / f'float-{seed}')
  if not (folder / f'float-{seed}').exists():
    (folder / f'float-{seed}').symlink_to(f'ours-{bits}-{seed}', target_is_directory=True)
  return {'accuracy': result['test_accuracy'], 'bytes': 1e6 * result['size_mb'], 'bitops': 1e9 * result['bitops_g']}


class Hgq:
  """Training of HGQ2's network; compiled once for all seeds and strengths."""

  def __init__(self, granularity: str):
    import jax
    import optax

    from benchmarks.shared.hgq_network import keras, resnet8

    self.jax, self.keras = jax, keras
    self.dataset = sets.load('digits', image_size=SIZE)
    self.epoch_steps = len(self.dataset.train) // BATCH
    widths = tuple(int(WIDTH * channels) for channels in (16, 32, 64))
    self.make = lambda: resnet8(granularity, (SIZE, SIZE, 1), widths)
    self.model = model = self.make()
    self.is_bits = [variable.name in ('b', 'f', 'i') for variable in model.trainable_variables]
    steps = 3 * PHASE * self.epoch_steps
    adam = lambda rate: optax.adam(optax.cosine_decay_schedule(rate, steps))
    groups = ['bits' if is_bits else 'weights' for is_bits in self.is_bits]
    self.optimizer = optax.multi_transform({'weights': adam(RATE), 'bits': adam(BITS_RATE * RATE)}, groups)
    constraints = [variable.constraint or (lambda x: x) for variable in model.trainable_variables]
    priced = [
      variable.name == 'beta' and 'batch_norm' not in variable.path for variable in model.non_trainable_variables
    ]

    def loss_function(trained, held, images, labels):
      logits, held, losses = model.stateless_call(trained, held, images, training=True, return_losses=True)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + sum(losses), held

    @jax.jit
    def step(trained, held, state, images, labels, beta):
      held = [beta if is_beta else value for is_beta, value in zip(priced, held, strict=True)]
      (loss, held), gradients = jax.value_and_grad(loss_function, has_aux=True)(trained, held, images, labels)
      updates, state = self.optimizer.update(gradients, state, trained)
      trained = optax.apply_updates(trained, updates)
      return [keep(value) for keep, value in zip(constraints, trained, strict=True)], held, state, loss

    self.step = step

  def run(self, beta: float, seed: int, split: str) -> dict[str, Any]:
    """Trains at a strength; accuracy on a split, bytes of the weights, BitOPs."""
    self.keras.utils.set_random_seed(seed)
    source = self.make()  # of this seed
    trained = [variable.value for variable in source.trainable_variables]
    held = [variable.value for variable in source.non_trainable_variables]
    state = self.optimizer.init(trained)
    batches = train_batches(self.dataset, batch_size=BATCH, seed=seed)
    for i in range(3 * PHASE * self.epoch_steps):
      batch = next(batches)
      images = batch['image'].astype(np.float32) / 255
      trained, held, state, loss = self.step(
        trained, held, state, images, batch['label'], price(beta, i / self.epoch_steps)
      )
    batches.close()
    if not np.isfinite(loss):
      raise FloatingPointError(f'the loss is {loss}')
    for variables, values in ((self.model.trainable_variables, trained), (self.model.non_trainable_variables, held)):
      for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return self.evaluate(split)

  def evaluate(self, split: str) -> dict[str, Any]:
    from hgq.utils import trace_minmax

    trace_minmax(self.model, self.images('train')[0], batch_size=399)
    images, labels = self.images(split)
    logits = self.keras.ops.convert_to_numpy(self.model(images, training=False))
    return {'accuracy': float(np.mean(logits.argmax(-1) == labels)), **cost(self.model)}

  def images(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    found = list(eval_batches(self.dataset, split, batch_size=100))
    kept = np.concatenate([batch['mask'] for batch in found]) > 0
    images, labels = (np.concatenate([batch[key] for batch in found])[kept] for key in ('image', 'label'))
    return images.astype(np.float32) / 255, labels


def price(beta: float, epoch: float) -> np.float32:
  """Beta at a time: 0 for a phase, up by a factor of 100 in the next, then as it is."""
  return np.float32(0.0 if epoch < PHASE else beta * 100 ** min(0.0, epoch / PHASE - 2))


def cost(model: Any) -> dict[str, float]:
  """Bytes of the kernels and biases of HGQ2's layers, and their BitOPs, of bits with signs."""
  size = bitops = 0.0
  for layer in model.layers:
    if not hasattr(layer, 'kq'):
      continue
    kernel_shape, shape = tuple(layer.kernel.shape), (1, *layer.input.shape[1:])
    kernel, of_input = bits(layer.kq, kernel_shape), bits(layer.iq, shape)
    size += kernel.sum() / 8 + 4 * (layer.filters if hasattr(layer, 'filters') else layer.units) * layer.use_bias
    if len(kernel_shape) == 4:
      bitops += float(np.sum(np.asarray(layer.convolution_op(of_input, kernel))))
    else:
      bitops += float((of_input @ kernel).sum())
  return {'bytes': float(size), 'bitops': bitops}


def bits(quantizer: Any, shape: tuple[int, ...]) -> np.ndarray:
  """The bits of each element, sign included; 0 where there is nothing but a sign."""
  magnitude, whole = (np.asarray(found(shape)) for found in (quantizer.bits_, quantizer.fbits_))
  return np.where(magnitude > 0, whole, 0.0).astype(np.float32)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
  """A row for each method and strength: mean and standard deviation over its seeds."""
  header = ('method', 'test accuracy, %', 'each seed', 'weights, kB', 'MBitOPs')
  lines = []
  for name, found in results.items():
    if failed := [row['failed'] for row in found if 'failed' in row]:
      lines.append((name, f'not run: {failed[0]}', '', '', ''))
      continue
    sizes, bitops = ([row[key] for row in found] for key in ('bytes', 'bitops'))
    each = cells.each(found, 'accuracy')
    mean = each if len(found) == 1 else cells.accuracy(found, 'accuracy')
    lines.append((name, mean, each, f'{np.mean(sizes) / 1e3:.2f}', f'{np.mean(bitops) / 1e6:.2f}'))
  return markdown(header, lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--bits', type=float, nargs='*', default=[2, 3, 4], help='ours: the BitOPs of these uniform bits')
  parser.add_argument('--betas', type=float, nargs='*', default=[1e-7, 1e-6, 1e-5])
  parser.add_argument('--granularities', nargs='+', choices=('weight', 'layer'), default=['weight'])
  parser.add_argument('--split', choices=('validation', 'test'), default='test', help="of HGQ2's accuracy")
  parser.add_argument('--workdir', type=pathlib.Path, default=ROOT / 'runs' / 'benchmark_peers')
  parser.add_argument('--out', type=pathlib.Path, help='a .json of every run')
  args = parser.parse_args()
  cells.set_up()
  results: dict[str, list[dict[str, Any]]] = {}

  def add(name: str, run: Any) -> None:
    start = time.time()
    try:
      row = run()
    except Exception as error:
      row = {'failed': reason(error)}
    results.setdefault(name, []).append({**row, 'seconds': time.time() - start})
    print(name, results[name][-1], file=sys.stderr, flush=True)
    if args.out is not None:
      args.out.write_text(json.dumps(results, indent=1) + '\n')

  for granularity in args.granularities if args.betas else ():
    try:
      hgq = Hgq(granularity)
    except Exception as error:
      results[f'HGQ2, bits by {granularity}'] = [{'failed': reason(error)}]
      continue
    for beta in args.betas:
      for seed in args.seeds:
        add(f'HGQ2, bits by {granularity}, beta {beta:g}', lambda b=beta, s=seed, h=hgq: h.run(b, s, args.split))
  for bits_everywhere in args.bits:
    for seed in args.seeds:
      name = f'this project, BitOPs of {bits_everywhere:g} bits'
      add(name, lambda b=bits_everywhere, s=seed: ours(b, s, args.workdir))
  print(table(results))


if __name__ == '__main__':
  main()
