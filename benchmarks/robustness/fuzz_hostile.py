"""Headers of packed files that ask for much in few bytes."""

import json
import random
from typing import Any

from fracbits_jax.export import packed_rows

HUGE = [2**k + d for k in (7, 15, 16, 20, 24, 28, 31, 32, 40, 63, 64, 70) for d in (-1, 0)]


def as_version(header: dict[str, Any], version: int) -> dict[str, Any]:
  """A header of version 1 as one of another version, if its operations are rows at all."""
  rows = header.get('nodes')
  if version == 1 or not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 6 for row in rows):
    return header
  outputs = {row[2]: f'{row[0]}:{i}' for i, row in enumerate(rows)}
  return {**header, 'nodes': packed_rows.shortened(rows), 'output': outputs.get(header['output'], header['output'])}


def header(rng: random.Random, version: int) -> bytes:
  """A header of a version that asks for much in few bytes."""
  many = rng.choice((10, 100, 1000, 10_000, 100_000, 400_000))
  some = rng.choice((100, 1000, 5000, 10_000))
  kernel = lambda shape, bits: {
    'nodes': [['kernel', [], 'y', shape, 'float32', {'layer': 'l', 'kernel': 0}]],
    'arrays': [['original', shape, bits, 1.0]],
  }
  node = lambda op, i, shape, params, inputs=1: [
    op,
    [str(i - 1) if i else 'x'] * inputs,
    str(i),
    shape,
    'float32',
    params,
  ]
  one = lambda op, inputs, shape, params: {'nodes': [[op, inputs, 'y', shape, 'float32', params]]}
  huge = [rng.choice((0, 1, 3, many, rng.choice(HUGE))) for _ in range(rng.randrange(1, 4))]
  doubled = [node('concatenate', i, [-1, 4 * 2 ** (i + 1)], {'dimension': 1}, 2) for i in range(rng.randrange(1, 60))]
  made = rng.choice((
    lambda: kernel(huge, 0),
    lambda: kernel([rng.randrange(2), many], [rng.randrange(3) for _ in range(many)]),
    lambda: {'nodes': [node('neg', i, [-1, 4], {}) for i in range(some)], 'output': str(some - 1)},
    lambda: {'nodes': [node('transpose', i, [-1, 4], {'permutation': [0, 1]}) for i in range(some)], 'output': '9'},
    lambda: {'nodes': doubled, 'output': str(len(doubled) - 1)},
    lambda: one('broadcast_in_dim', [['float32', 1.0]], huge, {'shape': huge, 'broadcast_dimensions': []}),
    lambda: one('iota', [], huge, {'shape': huge, 'dimension': 0, 'dtype': 'float32'}),
    lambda: one('pad', ['x', ['float32', 0.0]], [-1, 4 + huge[0]], {'padding_config': [[0, 0, 0], [huge[0], 0, 0]]}),
    lambda: one('concatenate', ['x'] * some, [-1, 4 * some], {'dimension': 1}),
    lambda: {'arrays': [['float32', [0]]] * many},
    lambda: {'layers': [['a', 8, 1, 1]] * many},
    lambda: {'nodes': [[]] * many},
    lambda: {'nodes': [{'': 0}] * many},
    lambda: {'nodes': [str(i) for i in range(many)]},
    lambda: {'nodes': [[i, [i], [[i]]] for i in range(many)]},
    lambda: {str(i): i for i in range(many)},
    lambda: {'name': 'x' * (10 * many)},
    lambda: {'input': ['x', huge, 'float32', None]},
  ))()  # fmt: skip
  rest = {'name': 'n', 'input': ['x', [-1, 4], 'float32', None], 'output': 'y', 'nodes': [], 'arrays': [], 'layers': []}
  made = as_version({**rest, 'bitops_g': 0.0, 'size_mb': 0.0, **made}, version)
  text = json.dumps(made).encode()
  deep = rng.choice((b'[', b'{"a":')) * many
  return rng.choice(
    (text, text, text, text, text, deep, b'"' * many, b'"' + b'\\"' * many, b'9' * many, b' ' * 10 * many)
  )
