"""The C code of networks beside tflite-micro on this machine, one thread, interleaved: times of an image as ratios.

    python benchmarks/speed/device.py --models tiny_resnet8 tiny_mobilenet --repeats=30

Each network has kernels of 8 bits and inputs of 8 bits, random weights, and is written twice: as C, compiled with
`gcc -O2`, and as a LiteRT file, run by tflite-micro's interpreter. The same network with kernels of 4 and of 2 bits is
C code beside that of 8 bits. A time is the median over the repeats, in which all take their turns.
"""

import argparse
import ctypes
import functools
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared import litert_runtimes
from fracbits_jax import layers, models
from fracbits_jax.export import c_format, litert_format
from fracbits_jax.export.source import Source, source_of

SHAPES = {'tiny_resnet8': (32, 32, 3), 'tiny_mobilenet': (96, 96, 3), 'ds_cnn': (49, 10, 1)}
BITS = (8, 4, 2)


def source(name: str, bits: int) -> Source:
  """A network with random weights, its inner kernels at one bit-width."""
  quant = layers.QuantConfig(scheme='lsq', kernel_bits=bits, input_bits=8, quantize_residuals=name == 'tiny_resnet8')
  model, x = models.create(name, 10, quant=quant), jnp.zeros((1, *SHAPES[name]))
  return source_of(model, jax.jit(model.init)(jax.random.key(0), x), x, name='net', input_range=(0, 255))


def c_code(written: Source, folder: pathlib.Path) -> Callable[[np.ndarray], None]:
  """A function that runs an image through the C code of a network."""
  c_format.write(written, folder)
  library = folder / 'net.so'
  files = [str(folder / name) for name in ('net.c', 'fracbits.c')]
  subprocess.run(['gcc', '-std=c99', '-O2', '-shared', '-fPIC', '-o', str(library), *files], check=True)
  loaded = ctypes.CDLL(str(library))
  loaded.net_input.restype = ctypes.c_void_p
  place = loaded.net_input()

  def run(image: np.ndarray) -> None:
    ctypes.memmove(place, image.ctypes.data, image.size)
    loaded.net_run()

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--models', nargs='+', choices=list(SHAPES), default=list(SHAPES))
  parser.add_argument('--repeats', type=int, default=30)
  args = parser.parse_args()
  print(
    f'{"network":<16}{"8 bits, ms":>12}{"tflite-micro, ms":>18}{"8 bits / it":>13}{"4 / 8 bits":>12}{"2 / 8 bits":>12}'
  )
  for name in args.models:
    image = np.random.default_rng(0).integers(0, 256, SHAPES[name], np.uint8)
    with tempfile.TemporaryDirectory() as folder:
      runs = {bits: c_code(source(name, bits), pathlib.Path(folder) / str(bits)) for bits in BITS}
      file = pathlib.Path(folder) / 'net.tflite'
      examples = np.random.default_rng(1).integers(0, 256, (8, *SHAPES[name]))
      litert_format.write(source(name, 8), file, examples=examples)
      micro = litert_runtimes.loaded(file.read_bytes(), litert_runtimes.MICRO)
      example = (image.astype(np.int32) - 128).astype(np.int8)[None]
      all_runs = {bits: functools.partial(run, image) for bits, run in runs.items()}
      all_runs['micro'] = functools.partial(micro, example)
      times: dict[object, list[float]] = {key: [] for key in all_runs}
      for _ in range(args.repeats):
        for key, run in all_runs.items():
          start = time.thread_time()
          run()
          times[key].append(1e3 * (time.thread_time() - start))
    m = {key: statistics.median(values) for key, values in times.items()}
    print(
      f'{name:<16}{m[8]:>12.2f}{m["micro"]:>18.2f}{m[8] / m["micro"]:>13.3f}{m[4] / m[8]:>12.2f}{m[2] / m[8]:>12.2f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
