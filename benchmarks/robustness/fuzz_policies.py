"""Broken policies and lookup tables, and what one that is read has to hold."""

import functools
import json
import math
import pathlib
import tempfile

import numpy as np

from benchmarks.robustness import fuzz_text
from benchmarks.robustness.fuzz_text import ANYWHERE, DEEP
from fracbits_jax import cost, policy
from fracbits_jax.cost import Layer, lookup

LAYERS = (
  Layer(name='stem', macs=1000, weights=100, channels=4, kernel_bits=8, input_bits=8),
  Layer(name='block/a', macs=3000, weights=300, channels=3, per_channel=True, choices=(0, 2, 3, 4)),
  Layer(name='block/b', macs=9000, weights=900, channels=5, choices=(2, 4, 8), input_choices=(2, 4, 8)),
  Layer(name='head', macs=500, weights=500, channels=5, biases=5, kernel_bits=8),
)

_IN_POLICIES = [
  '[]', '{}', '[[]]', '[{}]', '[null]', '[0]', '[0, 0, 0]', '[2, 3, 4]', '[8, 8, 8]', '[true, 2, 3]', '[2.0, 3, 4]',
  '[-1, 2, 3]', '[8' + ', 8' * 99 + ']', '["kernel"]', '["input"]', '["kernel", "kernel"]', '["input", "kernel"]',
  '"kernel"', '"input"', '"\\u0000"', '"\\n"', '"\\ud800"', '"\\u202e"', '"\\u001b[2J"', '"<b>"', '"a|b"', '"é"',
  '"e\\u0301"', '"' + 'x' * 300 + '"', '"stem"', '"stem/kernel"', '"block"', '"block/a"', '"block/a/kernel"',
  '"block/b/input/x"', '"Block/a"', '"block//a"', '"bitops"', '"size"', '"lookup"', '"MB"', '"name"', '"layers"',
  '"also"', '"version": 1', '"also": 1', '"also": true', '"also": "size"', '"also": {"metric": "size"}', *DEEP,
]  # fmt: skip
_IN_TABLES = [
  'kernel_bits', 'input_bits', 'cost', 'kind', 'dense', 'depthwise', 'grouped', '8,8,1', '8,8,64,dense', '0,1,0',
  '0,1,1', '# unit: cycles', '# unit: <b>', '# unit:', '# total: x', '#unit:\u2028', 'kernel_bits,input_bits,cost',
  'kernel_bits,input_bits,cost,kind',
]  # fmt: skip


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
  folder = pathlib.Path(lookup.__file__).parent / 'tables'
  small = 'kernel_bits,input_bits,cost,kind\n0,4,0,\n4,4,1,\n8,4,2,\n0,4,0,dense\n4,4,1.5,dense\n8,4,30,dense\n'
  return (f'# unit: cycles\n{small}', *((folder / f'{name}.csv').read_text() for name in ('bit_serial', 'tensor_core')))


@functools.cache
def policy_texts() -> fuzz_text.Texts:
  """Policies to break."""
  strangers = [*ANYWHERE, *map(json.dumps, ANYWHERE), *2 * _IN_POLICIES]
  return fuzz_text.Texts(files=_policies(), parts=fuzz_text.json_parts, strangers=strangers)


@functools.cache
def table_texts() -> fuzz_text.Texts:
  """Lookup tables to break."""
  return fuzz_text.Texts(files=_tables(), parts=fuzz_text.csv_parts, strangers=ANYWHERE + 2 * _IN_TABLES)
