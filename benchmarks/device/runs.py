"""Finished runs as C: equal logits on test images, accuracy, flash, memory and instructions on an emulated Cortex-M4.

    python benchmarks/device/runs.py --images=400 runs/digits runs/digits_prune

All test images go through the C code, compiled for this machine, which gives the accuracy. As many as `--images` go
through integer inference as well, where all outputs have to be equal to the last bit, and twenty of them run on the
board, see `cortex_m.py`.
"""

import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.device import cortex_m
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export import c_format, c_program, integer
from fracbits_jax.export.source import source_of_run
from fracbits_jax.run import finished

FLAGS = ('-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror', '-O2')
ON_BOARD, BATCH = 20, 100


def test_images(workdir: str) -> tuple[np.ndarray, np.ndarray]:
  """The test images of a run's data and their labels."""
  batches = eval_batches(finished.load(workdir).experiment.dataset, 'test', batch_size=BATCH)
  found = list(batches)
  kept = np.concatenate([b['mask'] for b in found]) > 0
  return tuple(np.concatenate([b[key] for b in found])[kept] for key in ('image', 'label'))


def answers(folder: pathlib.Path, name: str, images: np.ndarray, outputs: int) -> np.ndarray:
  """What the C code of a folder gives for images, int32 `[N, outputs]`."""
  library = folder / 'network.so'
  files = [str(folder / file) for file in (f'{name}.c', 'fracbits.c')]
  subprocess.run(['gcc', *FLAGS, '-shared', '-fPIC', '-o', str(library), *files], check=True)
  code = ctypes.CDLL(str(library))
  call = lambda what: getattr(code, f'{name}_{what}')
  call('input').restype = ctypes.c_void_p
  place, found = call('input')(), np.zeros((len(images), outputs), np.int32)
  for image, row in zip(np.ascontiguousarray(images, np.uint8), found, strict=True):
    ctypes.memmove(place, image.ctypes.data, image.size)
    call('run')()
    call('output')(row.ctypes.data_as(ctypes.c_void_p))
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('workdirs', nargs='+')
  parser.add_argument('--images', type=int, default=400, help='compared with integer inference; whole hundreds')
  args = parser.parse_args()
  unequal = 0
  print('| run | equal logits | accuracy | kernels | flash | memory | stack | instructions an image | board |')
  print('|---|---|---|---|---|---|---|---|---|')
  for workdir in args.workdirs:
    source = source_of_run(workdir)
    images, labels = test_images(workdir)
    count = args.images - args.images % BATCH
    graph = c_program.integer_graph(source.graph)
    program = c_program.program_of(graph)
    infer = integer.inference(graph, fixed_outputs=True)
    expected = [infer(images[i : i + BATCH].astype(np.float32))[0] for i in range(0, count, BATCH)]
    with tempfile.TemporaryDirectory() as out:
      folder = pathlib.Path(out)
      c_format.write(source, folder, examples=images[:ON_BOARD])
      name = c_format.identifier(source.name)
      found = answers(folder, name, images, program.outputs[0].elements)
      equal = int((found[:count] == np.concatenate(expected)).all(-1).sum())
      board = None if cortex_m.missing() else cortex_m.measure(folder)
    unequal += equal != count or (board is not None and board.right != board.vectors)
    on_board = (
      f'{board.flash:,} | {board.ram:,} | {board.stack:,} | {board.instructions:,} | {board.right} of {board.vectors}'
      if board
      else f'- | {program.arena:,} | - | - | no {cortex_m.missing()}'
    )
    print(
      f'| {source.name} | {equal} of {count} | {(found.argmax(-1) == labels).mean():.2%} | '
      f'{program.weight_bytes:,} | {on_board} |',
      flush=True,
    )
  return unequal > 0


if __name__ == '__main__':
  sys.exit(main())
