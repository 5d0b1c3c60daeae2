"""A run as a file of LiteRT: its accuracy in the runtimes that others wrote, its size, and its arena.

    python benchmarks/accuracy/litert.py --workdir=runs/float [--images=400]

A finished run is written with its bit-widths, a float one with 8 bits everywhere after training: clips and ranges are
calibrated on training images, nothing is trained. All test images, or the first ones, are run by integer inference in
JAX, by LiteRT with XNNPACK and without, and by tflite-micro, whose recording allocator says what its arena takes. That
is on a machine of 64 bits, where what it keeps of tensors and operations is larger than on a microcontroller.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from benchmarks.shared import litert_codes, litert_runtimes
from benchmarks.shared.after_training import images_of, source_and_run
from fracbits_jax.export import integer, litert_format
from fracbits_jax.fast import platforms

_BATCH = 100


def in_batches(function, images: np.ndarray) -> np.ndarray:
  """What a function of float images gives for all of them."""
  parts = np.split(images.astype(np.float32), range(_BATCH, len(images), _BATCH))
  return np.concatenate([np.asarray(function(part)) for part in parts])


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--images', type=int, default=400)
  parser.add_argument('--wide', action='store_true', help='weights of four bits as int8')
  args = parser.parse_args()
  platforms.keep_memory()
  source, run = source_and_run(args.workdir)
  images, labels = images_of(run, 'test', args.images)
  file = litert_format.built(source, narrow=not args.wide)
  print(f'{source.name}: {len(file.content):,} bytes, weights {file.weights}, {file.narrowed} of -128 made -127')
  operations = [operation.op for operation in file.plan.operations]
  print('operations: ' + ', '.join(f'{operations.count(op)} {op}' for op in sorted(set(operations))))
  print(f'arena of tflite-micro: {litert_runtimes.arena_bytes(file.content):,} bytes')
  print(f'\n| run by | accuracy on {len(labels)} images | other answers than integer inference | ms an image |')
  print('|---|---|---|---|')
  answers = {}
  if run.result['phase'] != 'finetune':
    model = run.experiment.float_model.clone(axis_name=None)
    answers['float'] = in_batches(jax.jit(lambda x: model.apply(run.variables, x)), images), None
  run_integers = integer.inference(source.graph)
  answers['integer inference'] = in_batches(lambda x: run_integers(x)[0], images), None
  for runtime in litert_runtimes.RUNTIMES:
    loaded = litert_runtimes.loaded(file.content, runtime)
    begin = time.perf_counter()
    (found,) = litert_runtimes.in_order(loaded, litert_codes.as_int8(images))
    answers[runtime] = litert_codes.real(file, found), 1e3 * (time.perf_counter() - begin) / len(images)
  expected = answers['integer inference'][0].argmax(-1)
  for name, (logits, milliseconds) in answers.items():
    right, other = np.mean(logits.argmax(-1) == labels), np.sum(logits.argmax(-1) != expected)
    print(f'| {name} | {right:.2%} | {other} | {"" if milliseconds is None else f"{milliseconds:.2f}"} |')


if __name__ == '__main__':
  main()
