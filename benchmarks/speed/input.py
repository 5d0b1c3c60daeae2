"""Images per second of the input pipeline on JPEGs of ImageNet's size, beside plain OpenCV in a loop.

python benchmarks/speed/input.py [--images=256] [--rounds=5] [--seconds=2]

Decode, random resized crop to 224, flip. `plain` is one process, one thread and no library but OpenCV: read the file,
decode all of it, crop, resize, flip. `functions` is the same loop over this project's own functions, so that what it
lacks of `plain` is the price of the checks and of the header, and what the pipeline lacks of it that of Grain, of
batches and of the way between processes. The kinds take turns, so that whatever else the machine does hits all of them;
medians over the rounds. Images per second need a free core for each worker; images per CPU second, counted over the
main process and the workers together, hold on a busy machine too. Linux only.
"""

import argparse
import itertools
import math
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

import cv2
import numpy as np

from fracbits_jax.data import images, sets
from fracbits_jax.data.batches import train_batches
from fracbits_jax.data.dataset import FOLDER

SIZE = 224
BATCH = 64


def photo(seed: int) -> np.ndarray:
  """A 375 x 500 image of smooth colours and texture, whose JPEG has about the bytes of an ImageNet photograph."""
  rng = np.random.default_rng(seed)
  smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.float32), (500, 375), interpolation=cv2.INTER_CUBIC)
  detail = cv2.resize(rng.normal(0, 30, (94, 125, 3)), (500, 375), interpolation=cv2.INTER_CUBIC)
  grain = rng.normal(0, rng.uniform(3, 12), (375, 500, 1))
  return np.clip(smooth + detail + grain, 0, 255).astype(np.uint8)


def write(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
  paths = []
  for i in range(count):
    path = folder / 'train' / f'class{i % 4}' / f'{i:05d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.jpg', photo(i), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    paths.append(path)
  return paths


def plain_crop(path: pathlib.Path, rng: np.random.Generator) -> np.ndarray:
  image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
  height, width = image.shape[:2]
  for _ in range(10):
    area, aspect = height * width * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if w <= width and h <= height:
      break
  top, left = rng.integers(max(0, height - h) + 1), rng.integers(max(0, width - w) + 1)
  cut = image[top : top + h, left : left + w]
  how = cv2.INTER_AREA if cut.shape[0] * cut.shape[1] > SIZE * SIZE else cv2.INTER_LINEAR
  resized = cv2.resize(cut, (SIZE, SIZE), interpolation=how)
  return cv2.flip(resized, 1) if rng.integers(2) else resized


def own_crop(path: pathlib.Path, rng: np.random.Generator) -> np.ndarray:
  image = images.random_resized_crop(images.Encoded(path.read_bytes(), 3, str(path)), SIZE, rng)
  return images.flip(image) if rng.integers(2) else image


def cpu_seconds() -> float:
  """CPU time of this process and of its workers so far."""
  total = time.process_time()
  for worker in multiprocessing.active_children():
    fields = pathlib.Path(f'/proc/{worker.pid}/stat').read_text().rsplit(')', 1)[1].split()
    total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return total


def rates_of(take, seconds: float) -> tuple[float, float]:
  """Images per second and per CPU second of a function that returns how many it has made."""
  done, start, cpu = 0, time.perf_counter(), cpu_seconds()
  while time.perf_counter() - start < seconds:
    done += take()
  return done / (time.perf_counter() - start), done / (cpu_seconds() - cpu)


def loop(crop, paths: list[pathlib.Path], seconds: float) -> tuple[float, float]:
  rng, cycle = np.random.default_rng(0), itertools.cycle(paths)
  return rates_of(lambda: len(crop(next(cycle), rng)) // SIZE, seconds)


def measure(folder: pathlib.Path, count: int, rounds: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
  paths = write(folder, count)
  print(f'{count} JPEGs, {np.mean([p.stat().st_size for p in paths]) / 1000:.0f} kB on average, {os.cpu_count()} cores')
  dataset = sets.load(FOLDER, data_dir=str(folder))
  rates: dict[str, list[tuple[float, float]]] = {}

  def pipeline(workers: int) -> tuple[float, float]:
    batches = train_batches(dataset, batch_size=BATCH, seed=0, workers=workers)
    for _ in range(3 + 3 * workers):  # started, and what was made before the clock is used up
      next(batches)
    result = rates_of(lambda: len(next(batches)['label']), seconds)
    batches.close()
    time.sleep(0.3)  # the thread finishes the batch that it is at
    return result

  for _ in range(rounds):
    for kind, run in (
      ('plain', lambda: loop(plain_crop, paths, seconds)),
      ('functions', lambda: loop(own_crop, paths, seconds)),
      *((f'{n} workers', lambda n=n: pipeline(n)) for n in (0, 1, 2)),
    ):
      rates.setdefault(kind, []).append(run())
  return rates


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=2.0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    rates = measure(pathlib.Path(folder), args.images, args.rounds, args.seconds)
  medians = {kind: [statistics.median(m) for m in zip(*measured, strict=True)] for kind, measured in rates.items()}
  print(f'{"":<12} {"images/s":>9} {"of plain, per worker":>21} {"images/CPU s":>13} {"of plain":>9}')
  for kind, (rate, cpu_rate) in medians.items():
    workers = max(1, int(kind[0])) if kind[0].isdigit() else 1
    ratio, cpu_ratio = rate / medians['plain'][0] / workers, cpu_rate / medians['plain'][1]
    print(f'{kind:<12} {rate:>9.0f} {ratio:>21.1%} {cpu_rate:>13.0f} {cpu_ratio:>9.1%}')


if __name__ == '__main__':
  main()
