"""Batches: Grain shuffles, augments and puts together, in a thread or in worker processes.

Batches are dicts of NumPy arrays: `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`, `target` float32 `[N, ...]` where
the set has targets, and in evaluation `mask` float32 `[N]`, which is 0 where an example only fills the last batch.
Those of a text hold windows of T + 1 tokens, `tokens` int32 `[N, T + 1]`, and in evaluation a `mask` `[N, T]`. With
`shard=(index, count)` N is the share of one of `count` processes: its every `count`-th example of the batch, starting
at `index`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import grain
  from absl import flags

from fracbits_jax.data import images, windows
from fracbits_jax.data.dataset import Dataset, Spec
from fracbits_jax.data.sources import Examples, Windows

Batch = dict[str, np.ndarray]
Wait = Callable[[], contextlib.AbstractContextManager]

_IN_A_THREAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
_IN_PLACE = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # a worker has nothing else to do
_SPLITS = ('train', 'validation', 'test')
_WORKER_BATCHES = 2  # that each worker has ready
_WORKER = 'grain-process-prefetch'  # what the names of worker processes begin with
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which the module mmap does not name


class _Draw(grain.transforms.RandomMap):
  """Gives an example its random numbers, as the state of a generator; its image is not touched yet."""

  def random_map(self, index: int, rng: np.random.Generator) -> tuple[int, Mapping[str, Any]]:
    return index, rng.bit_generator.state


@dataclasses.dataclass(frozen=True)
class _Augment:
  """Makes the examples of a batch one after the other, each into its place: one image at a time is in memory."""

  source: Examples
  spec: Spec
  shape: tuple[int, int, int]
  target_shape: tuple[int, ...] | None
  noise: float
  shared: bool  # whether the images lie in memory that the receiving process maps instead of copying

  def __call__(self, drawn: Sequence[tuple[int, Mapping[str, Any]]]) -> Batch:
    create = _shared_memory if self.shared else np.empty
    batch = {'image': create((len(drawn), *self.shape), np.uint8), 'label': np.empty(len(drawn), np.int32)}
    if self.target_shape is not None:
      batch['target'] = np.empty((len(drawn), *self.target_shape), np.float32)
    rng = np.random.Generator(np.random.Philox())
    for i, (index, state) in enumerate(drawn):
      example, rng.bit_generator.state = self.source[index], state
      self._augment(example['image'], rng, out=batch['image'][i])
      _complete(batch, i, example, self.noise, rng)
    return batch

  def _augment(self, image: np.ndarray | images.Encoded, rng: np.random.Generator, out: np.ndarray) -> None:
    if self.spec.resized_crop:
      images.random_resized_crop(image, self.shape[0], rng, out)
    else:
      images.resize(image, *self.shape[:2], out)
    if self.spec.shift:
      out[...] = images.random_shift(out, self.spec.shift, rng)
    if self.spec.flip and rng.integers(2):
      images.flip(out, out)


def _shared_memory(shape: tuple[int, ...], dtype: Any) -> grain.multiprocessing.SharedMemoryArray:
  """An array in shared memory whose pages are there at once; one by one, as they are touched, costs a worker 2%."""
  array = grain.multiprocessing.SharedMemoryArray(shape, dtype)
  if sys.platform == 'linux':
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = ctypes.c_size_t(array.ctypes.data + array.nbytes - start)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), length, _POPULATE_WRITE)  # a kernel without it does nothing
  return array


class TrainBatches(Iterator[Batch]):
  """Endless training batches with a position: that of the batches handed out, whatever is read ahead.

  The position does not depend on the number of workers. Reading starts with the first batch; `close` ends it.
  """

  def __init__(self, batches: grain.MapDataset, workers: int, wait: Wait = contextlib.nullcontext):
    self._batches, self._workers, self._wait = batches, workers, wait
    self._position, self._reader = 0, None

  def __next__(self) -> Batch:
    if self._reader is None:
      self._reader = _read(self._batches[self._position :], self._workers)
    with self._wait():
      batch = _next(self._reader)
    self._position += 1  # not before the wait has ended: an exception in it leaves the batch to the next reader
    return batch

  def get_state(self) -> dict[str, int]:
    return {'next_index': self._position}

  def set_state(self, state: dict[str, int]) -> None:
    self.close()
    self._position = state['next_index']

  def close(self) -> None:
    """Ends the thread or the worker processes; another batch would start them again."""
    if self._reader is not None:
      self._reader.close()
      self._reader = None


def train_batches(
  dataset: Dataset,
  *,
  batch_size: int,
  seed: int,
  workers: int = 0,
  shard: tuple[int, int] = (0, 1),
  wait: Wait = contextlib.nullcontext,
) -> TrainBatches:
  """Endless training batches, shuffled anew and augmented anew in every epoch; a text is cut anew into windows.

  An epoch has `len(dataset.train) // batch_size` batches. The same seed gives the same batches with any number of
  workers, and the shards of a batch are together the whole one.

  Args:
    dataset: an opened data set.
    batch_size: examples of a batch over all shards.
    seed: of order and augmentation.
    workers: processes that read and augment; 0 for a thread of this one. They import the main module, so a script that
      asks for them needs the usual `if __name__ == '__main__'`.
    shard: `(index, count)`, see above.
    wait: makes the context in which each batch is waited for; it may end the wait by an exception.

  Raises:
    ValueError: from the iterator, one sentence that names the example which cannot be used.
  """
  index, count = shard
  epoch = len(dataset.train) // batch_size * batch_size
  augment: Callable[[Any], Batch]
  if isinstance(dataset.train, Windows):
    augment = windows.Cut(dataset.train)
  else:
    shapes = (dataset.image_shape, dataset.target_shape)
    augment = _Augment(dataset.train, dataset.spec, *shapes, dataset.noise, shared=workers > 0)
  batches = (
    grain.MapDataset.range(len(dataset.train))
    .seed(seed)
    .shuffle()
    .random_map(_Draw())
    .slice(slice(index, epoch, count))
    .batch(batch_size // count, batch_fn=augment)
    .repeat()
  )
  return TrainBatches(batches, workers, wait)


def _complete(batch: Batch, i: int, example: Mapping[str, Any], noise: float, rng: np.random.Generator) -> None:
  """Fills in what a batch has of an example beside its image; with noise, which the image gets, the image before."""
  if noise:
    batch['target'][i] = np.float32(batch['image'][i]) / 255
    images.add_noise(batch['image'][i], noise, rng)
  for name in batch.keys() - {'image', 'mask'} - ({'target'} if noise else set()):
    batch[name][i] = example[name]


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
  """The batches of a source in evaluation, by their index; the noise of an example of a split is always the same."""

  source: Examples
  split: int
  spec: Spec
  shape: tuple[int, int, int]
  target_shape: tuple[int, ...] | None
  noise: float
  batch_size: int
  shard: tuple[int, int]

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size)

  def __getitem__(self, index: int) -> Batch:
    first, (shard, count) = index * self.batch_size, self.shard
    examples = range(first + shard, min(first + self.batch_size, len(self.source)), count)
    n = self.batch_size // count
    batch: Batch = {
      'image': np.zeros((n, *self.shape), np.uint8),
      'label': np.zeros(n, np.int32),
      'mask': np.zeros(n, np.float32),
    }
    if self.target_shape is not None:
      batch['target'] = np.zeros((n, *self.target_shape), np.float32)
    for i, index in enumerate(examples):
      example = self.source[index]
      batch['image'][i] = self._prepare(example['image'])
      batch['mask'][i] = 1
      _complete(batch, i, example, self.noise, np.random.Generator(np.random.Philox(key=[self.split, index])))
    return batch

  def _prepare(self, image: np.ndarray | images.Encoded) -> np.ndarray:
    if self.spec.resized_crop:
      return images.centre_crop(image, self.shape[0])
    return images.resize(image, *self.shape[:2])


def eval_batches(
  dataset: Dataset, split: str, *, batch_size: int, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
  """The batches of a split, each example exactly once over all shards; the last batch is filled up and masked.

  Arguments as for `train_batches`; images that are in memory already are left to this process.
  """
  source, shapes = getattr(dataset, split), (dataset.image_shape, dataset.target_shape)
  batches: _EvalBatches | windows.EvalBatches
  if isinstance(source, Windows):
    batches = windows.EvalBatches(source, batch_size, shard)
  else:
    batches = _EvalBatches(source, _SPLITS.index(split), dataset.spec, *shapes, dataset.noise, batch_size, shard)
  workers = 0 if dataset.in_memory else min(workers, len(batches))
  if not workers:
    yield from map(batches.__getitem__, range(len(batches)))
    return
  reader = _read(grain.MapDataset.source(batches), workers)
  try:
    for _ in range(len(batches)):
      yield _next(reader)
  finally:
    reader.close()


def _read(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
  if not workers:
    return iter(batches.to_iter_dataset(_IN_A_THREAD))
  if not flags.FLAGS.is_parsed():  # outside absl's app.run Grain would fail to read its own flags
    flags.FLAGS.mark_as_parsed()
  options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_WORKER_BATCHES)
  return iter(batches.to_iter_dataset(_IN_PLACE).mp_prefetch(options, worker_init_fn=_start_worker))


def _start_worker(index: int, count: int) -> None:
  del index, count
  threading.Thread(target=_end_with_parent, daemon=True).start()
  for number in (signal.SIGINT, signal.SIGTERM):  # the main process ends the workers when it is asked to stop
    signal.signal(number, signal.SIG_IGN)
  os.environ['JAX_PLATFORMS'] = 'cpu'  # a worker has no use for an accelerator


def _end_with_parent() -> None:
  """Ends this worker process when the main process is gone, however that ended."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


def _next(reader: grain.DatasetIterator) -> Batch:
  """The next batch; an error says what the source or the worker says, without what Grain adds to it."""
  try:
    return {name: np.asarray(value) for name, value in next(reader).items()}
  except ValueError as error:
    raise ValueError(str(error)) from error
  except RuntimeError as error:
    raise ChildProcessError(
      f'a worker process of the input ended ({str(error).split(".")[0]}): it may have been out of memory or out of '
      'shared memory, /dev/shm, so give fewer data.workers or a smaller data.batch_size'
    ) from None
  except BaseException:  # an interruption: a worker may be stuck, and who asks to stop does not wait for it
    for child in multiprocessing.active_children():
      if child.name.startswith(_WORKER):
        child.kill()
    raise
