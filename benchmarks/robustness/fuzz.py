r"""Broken files for their readers.

    python benchmarks/robustness/fuzz.py [--inputs=100000] [--seed=0] [--readers policy packed]

Valid policies, lookup tables and packed networks with parts that are changed, deleted, repeated, nested or taken from
elsewhere, and bytes of no meaning. A reader has to accept a file, and then what it returns must hold what its type
promises, or refuse it by a `ValueError` of one clean line, within a second, and packed networks in little memory beside
their own arrays. Prints a markdown table; ends with status 1 if anything else came about.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import gc
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.robustness import fuzz_packed, fuzz_packed_checks, fuzz_policies, fuzz_text
from fracbits_jax import policy
from fracbits_jax.cost import lookup
from fracbits_jax.export import packed

MAX_SECONDS = 1.0  # of processor time for one file
MAX_MEGABYTES = 64.0  # beside what is returned
MAX_MESSAGE = 1000


class Hang(BaseException):
  """A file took its reader too long; no `Exception`, so that no reader can catch it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """A reader of files.

  Attributes:
    read: reads the file of a path.
    files: valid files.
    change: makes a broken file.
    broken: what of a result's promises does not hold, given the path that it was read from.
    own_bytes: what a result takes itself, where the memory beside it counts.
  """

  read: Callable[[pathlib.Path], Any]
  files: tuple[bytes, ...]
  change: Callable[[random.Random], bytes]
  broken: Callable[[Any, pathlib.Path], list[str]]
  own_bytes: Callable[[Any], int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What a reader did: `accepted`, `refused` or else; the seconds of the processor; MB beside the result."""

  verdict: str
  seconds: float
  megabytes: float


def _of_texts(texts: fuzz_text.Texts, **functions: Callable) -> Reader:
  files = tuple(text.encode() for text in texts.files)
  return Reader(files=files, change=functools.partial(fuzz_text.broken_file, texts=texts), **functions)


def _of_packed(change: Callable, broken: Callable) -> Reader:
  files = fuzz_packed.files()
  return Reader(read=packed.read, files=files, change=change, broken=broken, own_bytes=fuzz_packed_checks.own_bytes)


_READERS: dict[str, Callable[[], Reader]] = {
  'policy': lambda: _of_texts(fuzz_policies.policy_texts(), read=policy.load, broken=fuzz_policies.broken_policy),
  'policy of a network': lambda: _of_texts(
    fuzz_policies.policy_texts(),
    read=functools.partial(policy.load, layers=fuzz_policies.LAYERS),
    broken=fuzz_policies.broken_policy_of_network,
  ),
  'lookup table': lambda: _of_texts(fuzz_policies.table_texts(), read=lookup.load, broken=fuzz_policies.broken_table),
  'packed': lambda: _of_packed(fuzz_packed.damaged_file, fuzz_packed_checks.not_the_original),
  'packed, sealed': lambda: _of_packed(fuzz_packed.sealed_file, fuzz_packed_checks.broken_network),
}
NAMES = tuple(_READERS)


@functools.cache
def reader_of(name: str) -> Reader:
  """The reader of a name, with the files for it."""
  return _READERS[name]()


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
  """Raises `Hang` after as much time of the processor, which other programs do not count into."""

  def stop(*_: Any) -> None:
    raise Hang(f'more than {seconds:g} s')

  previous = signal.signal(signal.SIGPROF, stop)
  signal.setitimer(signal.ITIMER_PROF, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, previous)


def judge(reader: Reader, path: pathlib.Path, content: bytes) -> Outcome:
  """What a reader does with a file, written to `path`."""
  path.write_bytes(content)
  found, verdict, seconds, megabytes = _read(reader, path, traced=reader.own_bytes is not None)
  if reader.own_bytes is not None and seconds > MAX_SECONDS / 10:  # much of which may be the tracing of memory
    found, verdict, seconds, _ = _read(reader, path, traced=False)
  if megabytes > MAX_MEGABYTES:
    verdict = f'{verdict}, with {megabytes:.0f} MB'
  if verdict == 'accepted':
    try:
      broken = reader.broken(found, path)
    except Exception as error:
      broken = [f'{type(error).__name__}: {error}']
    verdict = f'accepted, but not true: {"; ".join(broken)}' if broken else 'accepted'
  return Outcome(verdict=verdict, seconds=seconds, megabytes=megabytes)


def _read(reader: Reader, path: pathlib.Path, *, traced: bool) -> tuple[Any, str, float, float]:
  """The result, whether there is one or why not, the processor's seconds and, if traced, MB beside the result."""
  found, verdict, megabytes = None, 'accepted', 0.0
  if traced:
    tracemalloc.start()
  start = time.process_time()
  try:
    with _at_most(10 * MAX_SECONDS if traced else MAX_SECONDS):
      found = reader.read(path)
  except (Exception, Hang) as error:
    message = str(error)
    clean = message.isprintable() and 0 < len(message) <= MAX_MESSAGE
    verdict = 'refused' if type(error) is ValueError and clean else f'{type(error).__name__}: {message!r}'
  seconds = time.process_time() - start
  if traced:
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    megabytes = (most - (0 if found is None else reader.own_bytes(found))) / 1e6
  return found, verdict, seconds, megabytes


def feed(name: str, inputs: int, seed: int, path: pathlib.Path) -> list[str]:
  """Feeds broken files to a reader; its row of the table, without what it did beside accepting and refusing."""
  reader = reader_of(name)
  counts: collections.Counter = collections.Counter()
  slowest = most = 0.0
  gc.freeze()  # what is there already is not looked through again and again
  start = time.perf_counter()
  for i in range(inputs):
    content = reader.change(random.Random(f'{seed} {name} {i}'))
    outcome = judge(reader, path, content)
    slowest, most = max(slowest, outcome.seconds), max(most, outcome.megabytes)
    kind = outcome.verdict if outcome.verdict in ('accepted', 'refused') else 'other'
    counts[kind] += 1
    if kind == 'other' and counts['other'] <= 10:
      print(f'{name}, input {i}, {len(content)} bytes, {content[:60]!r}: {outcome.verdict[:400]}', file=sys.stderr)
  seconds = f'{time.perf_counter() - start:.0f}'
  found = [f'{counts[kind]:,}' for kind in ('accepted', 'refused', 'other')]
  megabytes = '' if reader.own_bytes is None else f'{most:.1f}'
  return [name, f'{inputs:,}', *found, seconds, f'{1000 * slowest:.0f}', megabytes]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--inputs', type=int, default=100_000, help='files for each reader')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--readers', nargs='+', choices=NAMES, default=NAMES)
  args = parser.parse_args()
  warnings.simplefilter('error')
  memory = pathlib.Path('/dev/shm')
  with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
    print('| reader | files | accepted | refused | other | seconds | slowest, ms | most memory, MB |')
    print('|---|---|---|---|---|---|---|---|', flush=True)
    rows = []
    for name in args.readers:
      rows.append(feed(name, args.inputs, args.seed, pathlib.Path(folder) / 'file'))
      print(f'| {" | ".join(rows[-1])} |', flush=True)
  print(f'The process took {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB at most.', file=sys.stderr)
  return int(any(row[4] != '0' for row in rows))


if __name__ == '__main__':
  sys.exit(main())
