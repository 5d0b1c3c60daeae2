r"""Broken policies and lookup tables for their readers: `python benchmarks/fuzz.py [--inputs=100000] [--seed=0]`.

Valid files with parts that are changed, deleted, repeated, nested or taken from elsewhere, and bytes of no meaning. A
reader has to accept a file, and then what it returns must hold what its type promises, or refuse it by a `ValueError`
of one clean line, within a second. Prints a markdown table; ends with status 1 if anything else came about.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from fracbits_jax import cost, lookup, policy  # noqa: E402
from fracbits_jax.cost import Layer  # noqa: E402

MAX_SECONDS = 1.0  # of processor time for one file
MAX_MESSAGE = 1000

LAYERS = (
  Layer(name='stem', macs=1000, weights=100, channels=4, kernel_bits=8, input_bits=8),
  Layer(name='block/a', macs=3000, weights=300, channels=3, per_channel=True, choices=(0, 2, 3, 4)),
  Layer(name='block/b', macs=9000, weights=900, channels=5, choices=(2, 4, 8), input_choices=(2, 4, 8)),
  Layer(name='head', macs=500, weights=500, channels=5, biases=5, kernel_bits=8),
)

_DEEP = [f'{left * depth}{right * depth}' for left, right in (('[', ']'), ('{"a":', '}')) for depth in (9, 9999)]
_ANYWHERE = [
  '', '0', '1', '8', '33', '-1', '-0', '8.0', '2.5', '1e0', '1e-400', '1e29', '1e31', '1e400', '1_0', '0x8', '٨', '²',
  '9' * 19, '1' + '0' * 400, '1' + '0' * 5000, '1' * 100_000, 'nan', 'NaN', 'Infinity', '-Infinity', 'inf', 'null',
  'true', 'false', '\0', '\n', '\r', '\t', '\x0b', '\x1b[31m', '\x7f', '\x85', '\u2028', '\u202e', '\ufeff', '\udc80',
  'é', 'e\u0301', '\U000e0041', '😀', 'x' * 300, 'x' * 100_000, '"', "'", '""', '"8"', '"8,8"', ',', ',,,', ':', '#',
  '/', '{}', '[]',
]  # fmt: skip
_IN_POLICIES = [
  '[]', '{}', '[[]]', '[{}]', '[null]', '[0]', '[0, 0, 0]', '[2, 3, 4]', '[8, 8, 8]', '[true, 2, 3]', '[2.0, 3, 4]',
  '[-1, 2, 3]', '[8' + ', 8' * 99 + ']', '["kernel"]', '["input"]', '["kernel", "kernel"]', '["input", "kernel"]',
  '"kernel"', '"input"', '"\\u0000"', '"\\n"', '"\\ud800"', '"\\u202e"', '"\\u001b[2J"', '"<b>"', '"a|b"', '"é"',
  '"e\\u0301"', '"' + 'x' * 300 + '"', '"stem"', '"stem/kernel"', '"block"', '"block/a"', '"block/a/kernel"',
  '"block/b/input/x"', '"Block/a"', '"block//a"', '"bitops"', '"size"', '"lookup"', '"MB"', '"name"', '"layers"',
  '"also"', '"version": 1', '"also": 1', '"also": true', '"also": "size"', '"also": {"metric": "size"}', *_DEEP,
]  # fmt: skip
_IN_TABLES = [
  'kernel_bits', 'input_bits', 'cost', 'kind', 'dense', 'depthwise', 'grouped', '8,8,1', '8,8,64,dense', '0,1,0',
  '0,1,1', '# unit: cycles', '# unit: <b>', '# unit:', '# total: x', '#unit:\u2028', 'kernel_bits,input_bits,cost',
  'kernel_bits,input_bits,cost,kind',
]  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


class Hang(BaseException):
  """A file took its reader too long; no `Exception`, so that no reader can catch it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """A reader of files.

  Attributes:
    read: reads the file of a path.
    broken: what of a result's promises does not hold, given the path that it was read from.
    files: valid files.
    parts: where the parts of a valid file begin and end.
    strangers: what is put in the place of a part.
  """

  read: Callable[[pathlib.Path], Any]
  broken: Callable[[Any, pathlib.Path], list[str]]
  files: tuple[str, ...]
  parts: Callable[[str], tuple[tuple[int, int], ...]]
  strangers: list[str]


@functools.cache
def json_parts(text: str) -> tuple[tuple[int, int], ...]:
  """The values of a JSON file, and the members of its objects."""
  parts: list[tuple[int, int]] = []
  opened: list[tuple[int, int | None]] = []
  key: int | None = None  # where the member of the next value begins
  begin = 0
  for token in _TOKEN.finditer(text):
    if token[0] in '[{':
      opened.append((token.start(), key))
      key = None
    elif token[0] == ':':
      key = begin
    elif token[0] != ',':
      begin, key = opened.pop() if token[0] in ']}' else (token.start(), key)
      parts += [(start, token.end()) for start in (begin, key) if start is not None]
      key = None
  return tuple(parts)


@functools.cache
def csv_parts(text: str) -> tuple[tuple[int, int], ...]:
  """The lines of a CSV file, and their fields."""
  return tuple(found.span() for pattern in (r'[^\n]+', r'[^,\n]+') for found in re.finditer(pattern, text))


def broken_policy(found: policy.Policy, path: pathlib.Path) -> list[str]:
  """The promises of `Policy` that a policy read from a file does not keep."""
  kernels = [e.kernel if isinstance(e.kernel, tuple) else (e.kernel,) for e in found.layers]
  widths = [b for e, kernel in zip(found.layers, kernels, strict=True) for b in (*kernel, e.input)]
  counts = [n for e in found.layers for n in (e.macs, e.weights)]
  spent = [{'metric': found.metric, 'unit': found.unit, 'target': found.target, 'cost': found.cost}, *found.also]
  costs = [found.bitops_g, found.size_mb, *(s[key] for s in spent for key in ('target', 'cost'))]
  names = [e.name for e in found.layers]
  bits = found.bits()
  promises = {
    'there are layers': bool(names),
    'names are printable and occur once': all(map(str.isprintable, names)) and len(set(names)) == len(names),
    'bits are integers from 0 to 32': all(type(b) is int and 0 <= b <= 32 for b in widths),
    'every kernel has bits': all(kernels),
    'counts are integers from 0': all(type(n) is int and n >= 0 for n in counts),
    'shares are from 0 to 1': all(type(e.cost_share) is float and 0 <= e.cost_share <= 1 for e in found.layers),
    'costs are finite': all(type(c) is float and 0 <= c < math.inf for c in costs),
    'metrics are known': all(s['metric'] in cost.METRICS for s in spent),
    'units are clean': all(s['unit'].isprintable() and len(s['unit']) < 30 and '<' not in s['unit'] for s in spent),
    'what is learned is named once': all(
      set(e.learned) <= {'kernel', 'input'} and len(set(e.learned)) == len(e.learned) for e in found.layers
    ),
    'bits are found by name': all(
      np.array_equal(cost.bits_of(bits, e.name, which), getattr(e, which)) for e in found.layers for which in e.learned
    ),
  }
  broken = [promise for promise, kept in promises.items() if not kept]
  if not broken:
    found.save(path)
    broken += ['what is saved can be loaded'] * (policy.load(path) != found)
  return broken


def broken_policy_of_network(found: policy.Policy, path: pathlib.Path) -> list[str]:
  """The same for a policy that was checked against `LAYERS`."""
  bits = found.bits()
  allowed = all(
    np.shape(cost.bits_of(bits, layer.name, which)) == shape
    and np.isin(cost.bits_of(bits, layer.name, which), choices).all()
    for layer in LAYERS
    for which, (shape, choices) in cost.learned(layer).items()
  )
  costs = cost.bitops(bits, LAYERS), cost.model_size(bits, LAYERS)
  promises = {'bits are allowed': allowed, 'the network has a cost': all(0 < c < math.inf for c in costs)}
  return broken_policy(found, path) + [promise for promise, kept in promises.items() if not kept]


def broken_table(found: lookup.Table, path: pathlib.Path) -> list[str]:
  """The promises of `Table` that a table read from a file does not keep."""
  del path
  axes = found.kernel_bits, found.input_bits
  grids = [np.asarray(grid) for _, grid in found.costs]
  kinds = [kind for kind, _ in found.costs]
  far = np.arange(34.0)
  promises = {
    'bits are integers from 0 to 32': all(type(b) is int and 0 <= b <= 32 for bits in axes for b in bits),
    'bits increase': all(list(bits) == sorted(set(bits)) for bits in axes),
    'a kernel has bits': found.kernel_bits[-1] > 0,
    'kinds are known': set(kinds) <= {'', *lookup.KINDS} and len(set(kinds)) == len(kinds) > 0,
    'units are clean': all(u.isprintable() and len(u) < 30 and '<' not in u for u in (found.unit, found.total)),
    'costs are a grid': all(grid.shape == tuple(map(len, axes)) for grid in grids),
    'costs are finite': all((grid >= 0).all() and (grid <= 1e30).all() for grid in grids),
    'costs do not fall': all((np.diff(grid, axis=i) >= 0).all() for grid in grids for i in (0, 1)),
    'costs between are finite': all(
      np.isfinite(found.per_mac(kind or found._any, far, a)).all() for kind in kinds for a in found.input_bits[::7]
    ),
  }
  return [promise for promise, kept in promises.items() if not kept]


def _policies() -> tuple[str, ...]:
  """The files of a policy under one budget, and of one under two."""
  bits = cost.uniform_bits(LAYERS, 3.4)
  size = cost.budget('size', LAYERS, equivalent_bits=4)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'policy.json'
    texts = []
    for also in ((), (size,)):
      policy.discretize(bits, LAYERS, cost.budget('bitops', LAYERS, equivalent_bits=3.5, also=also)).save(path)
      texts.append(path.read_text())
  return tuple(texts)


def _tables() -> tuple[str, ...]:
  """The files of two tables that come along, and of a small one with kinds."""
  folder = ROOT / 'fracbits_jax' / 'tables'
  small = 'kernel_bits,input_bits,cost,kind\n0,4,0,\n4,4,1,\n8,4,2,\n0,4,0,dense\n4,4,1.5,dense\n8,4,30,dense\n'
  return (f'# unit: cycles\n{small}', *((folder / f'{name}.csv').read_text() for name in ('bit_serial', 'tensor_core')))


@functools.cache
def readers() -> dict[str, Reader]:
  """The readers by name."""
  policies = Reader(
    read=policy.load,
    broken=broken_policy,
    files=_policies(),
    parts=json_parts,
    strangers=[*_ANYWHERE, *map(json.dumps, _ANYWHERE), *2 * _IN_POLICIES],
  )
  of_network = functools.partial(policy.load, layers=LAYERS)
  return {
    'policy': policies,
    'policy of a network': dataclasses.replace(policies, read=of_network, broken=broken_policy_of_network),
    'lookup table': Reader(
      read=lookup.load,
      broken=broken_table,
      files=_tables(),
      parts=csv_parts,
      strangers=_ANYWHERE + 2 * _IN_TABLES,
    ),
  }


def broken_file(rng: random.Random, reader: Reader) -> bytes:
  """A file for a reader, in the range from one changed part to noise."""
  if rng.randrange(20) == 0:
    return rng.randbytes(rng.randrange(300))
  text = rng.choice(reader.files)
  parts = reader.parts(text)
  before = len(text) + 1
  for begin, end in sorted((rng.choice(parts) for _ in range(rng.choice((1, 1, 1, 1, 2, 5)))), reverse=True):
    if end <= before:
      text, before = text[:begin] + _changed(rng, reader, text[begin:end]) + text[end:], begin
  content = text.encode('utf-8', 'surrogatepass')
  return _damaged(rng, content) if rng.randrange(6) == 0 else content


def _changed(rng: random.Random, reader: Reader, part: str) -> str:
  """What comes to stand in the place of a part."""
  how = rng.randrange(11)
  if how < 4:
    return rng.choice(reader.strangers)
  if how < 6:  # a part of another place, where it may well belong
    text = rng.choice(reader.files)
    begin, end = rng.choice([at for at in reader.parts(text) if how == 4 or text[at[0]] == part[:1]] or [(0, 0)])
    return text[begin:end]
  if how == 6:  # often, and layers under names of their own
    times = rng.choice((2, 2, 2, 2, 2, 3, 40)) if rng.randrange(500) else 9999
    names = range(times) if rng.randrange(2) else [*range(times - 1), 0]
    between = rng.choice((', ', ', ', ',', '\n', ''))
    return between.join(part.replace('"name": "', f'"name": "{name or ""}') for name in names)
  if how == 7:
    depth = rng.choice((1, 1, 2, rng.randrange(800, 1000)))  # there is a depth that can be read, but hardly
    left, right = rng.choice((('[', ']'), ('{"a": ', '}'), ('"', '"')))
    return left * depth + part + right * depth
  at = rng.randrange(len(part) + 1)
  if how == 8:
    return part[:at] + rng.choice(reader.strangers) + part[at:]
  return part[:at] + (chr(rng.randrange(0xD800)) if how == 9 else rng.choice('0123456789')) + part[at + 1 :]


def _damaged(rng: random.Random, content: bytes) -> bytes:
  """A file whose bytes went through something."""
  at = rng.randrange(len(content) + 1)
  how = rng.randrange(8)
  if how == 0:
    return content[:at]
  if how == 1:
    return content[at:]
  if how == 2:
    return rng.choice((b'\xef\xbb\xbf', b'\xff\xfe', b'\xef\xbb\xbf\xef\xbb\xbf', b'\0')) + content
  if how == 3:
    return content.decode('utf-8', 'replace').encode(rng.choice(('utf-16', 'utf-32', 'utf-7')))
  if how == 4:
    return content.replace(b'\n', rng.choice((b'\r\n', b'\r', b'', b'\0', b'\xe2\x80\xa8')))
  if how == 5 and rng.randrange(20) == 0:  # too large, or nearly
    return content + rng.choice((b' ', b'\n', b'#', b'[', b'1', b',')) * rng.choice((990_000, 3_990_000, 5_000_000))
  flipped = bytearray(content)
  for _ in range(rng.choice((1, 1, 3, 30))):
    if flipped:
      flipped[rng.randrange(len(flipped))] = rng.randrange(256)
  return bytes(flipped)


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


def judge(reader: Reader, path: pathlib.Path, content: bytes) -> str:
  """`accepted`, `refused`, or what else a reader did with a file, written to `path`."""
  path.write_bytes(content)
  try:
    with _at_most(MAX_SECONDS):
      found = reader.read(path)
  except (Exception, Hang) as error:
    message = str(error)
    clean = message.isprintable() and 0 < len(message) <= MAX_MESSAGE
    return 'refused' if type(error) is ValueError and clean else f'{type(error).__name__}: {message!r}'
  try:
    broken = reader.broken(found, path)
  except Exception as error:
    broken = [f'{type(error).__name__}: {error}']
  return f'accepted, but not true: {"; ".join(broken)}' if broken else 'accepted'


def feed(name: str, inputs: int, seed: int, path: pathlib.Path) -> list[str]:
  """Feeds broken files to a reader; its row of the table, without what it did beside accepting and refusing."""
  reader = readers()[name]
  counts: collections.Counter = collections.Counter()
  slowest = 0.0
  start = time.perf_counter()
  for i in range(inputs):
    content = broken_file(random.Random(f'{seed} {name} {i}'), reader)
    before = time.process_time()
    verdict = judge(reader, path, content)
    slowest = max(slowest, time.process_time() - before)
    counts[verdict if verdict in ('accepted', 'refused') else 'other'] += 1
    if verdict not in ('accepted', 'refused') and counts['other'] <= 10:
      print(f'{name}, input {i}, {len(content)} bytes, {content[:60]!r}: {verdict[:400]}', file=sys.stderr)
  seconds = f'{time.perf_counter() - start:.0f}'
  found = [f'{counts[verdict]:,}' for verdict in ('accepted', 'refused', 'other')]
  return [name, f'{inputs:,}', *found, seconds, f'{1000 * slowest:.0f}']


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--inputs', type=int, default=100_000, help='files for each reader')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  warnings.simplefilter('error')
  memory = pathlib.Path('/dev/shm')
  with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
    rows = [feed(name, args.inputs, args.seed, pathlib.Path(folder) / 'file') for name in readers()]
  print('| reader | files | accepted | refused | other | seconds | slowest, ms |\n|---|---|---|---|---|---|---|')
  for row in rows:
    print(f'| {" | ".join(row)} |')
  return int(any(row[4] != '0' for row in rows))


if __name__ == '__main__':
  sys.exit(main())
