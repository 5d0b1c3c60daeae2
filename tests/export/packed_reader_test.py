"""Files that somebody wrote to do harm: their checksum is right."""

import hashlib
import json
import struct
import tracemalloc
import zlib

import pytest

from benchmarks.robustness import fuzz_hostile
from fracbits_jax.export import packed, packed_header

_HEADER = {
  'name': 'n',
  'input': ['x', [-1, 4], 'float32', None],
  'output': 'y',
  'nodes': [['neg', ['x'], 'y', [-1, 4], 'float32', {}]],
  'arrays': [],
  'layers': [],
  'bitops_g': 0.0,
  'size_mb': 0.0,
}


def _sealed(text, body=b'', version=1):
  compressed = zlib.compress(text if isinstance(text, bytes) else text.encode())
  head = lambda digest: struct.pack('<8sIIQ32s', b'FRACBITS', version, len(compressed), len(body), digest)
  return head(hashlib.sha256(head(bytes(32)) + compressed + body).digest()) + compressed + body


def _text(**changes):
  """The text of a header; Python writes NaN and such as JSON reads them."""
  return json.dumps({**_HEADER, **changes})


def _one(op, inputs, shape, params, dtype='float32', **changes):
  return _text(nodes=[[op, inputs, 'y', shape, dtype, params]], **changes)


def _kernel(shape, bits=0, alpha=1.0):
  return _one('kernel', [], shape, {'layer': 'l', 'kernel': 0}, arrays=[['original', shape, bits, alpha]])


def _chain(count, op='neg', inputs=1, shape=lambda i: [-1, 4], **params):
  name = lambda i: str(i) if i >= 0 else 'x'
  nodes = [[op, [name(i - 1)] * inputs, name(i), shape(i), 'float32', params] for i in range(count)]
  return _text(nodes=nodes, output=name(count - 1))


def _broadcast(shape):
  return _one('broadcast_in_dim', [['float32', 1.0]], shape, {'shape': shape, 'broadcast_dimensions': []})


HARMFUL = {
  'channels of 0 bits': (_kernel([2**28]), 'its arrays have 268,435,456 entries'),
  'a kernel beyond all memory': (_kernel([2**39, 64]), 'a shape that is not'),
  'channels without rows': (_kernel([0, 2**30]), 'its arrays have 1,073,741,824 entries'),
  'rows without channels': (_kernel([2**30, 2**30, 0]), 'entries'),
  'an array with a side of 0': (_text(arrays=[['float32', [2**31 - 1, 0]]]), 'entries'),
  'bits that are no integers': (_kernel([2], bits=[1.0, 2.0]), 'bit-widths that are not integers'),
  'other bits than channels': (_kernel([2], bits=[1, 2, 3]), 'not as many bit-widths'),
  'a scale without end': (_kernel([2], alpha=1e39), 'the scale of a kernel is 1e'),
  'lists in lists': ('[' * 90_000 + ']' * 90_000, 'nested 90,000 deep'),
  'lists hidden by strings': ('["]]]]", ' * 50 + '0' + ']' * 50, 'nested 50 deep'),
  'many lists': ('[' + '[],' * 1_300_000 + '0]', 'lists'),
  'many strings': ('[' + '"",' * 1_300_000 + '0]', 'strings'),
  'many numbers': ('[' + '1,' * 2_000_000 + '0]', 'entries'),
  'a string without end': ('"' + '\\"' * 100_000, 'Unterminated'),
  'much from little': (b' ' * 10**7, 'longer than 4,194,304 bytes'),
  'many digits': (_text().replace('0.0', '1' * 10**6), 'an integer of 1,000,000 digits'),
  'a chain': (_chain(20_000), 'it has 20,000 operations'),
  'doublings': (_chain(26, 'concatenate', 2, lambda i: [-1, 8 * 2**i], dimension=1), 'compute more than'),
  'a broadcast': (_broadcast([2**30]), 'compute more than'),
  'sides beyond all bounds': (_broadcast([2**40]), 'a shape that is not'),
  'an iota': (_one('iota', [], [2**30], {'shape': [2**30], 'dimension': 0, 'dtype': 'float32'}), 'compute more than'),
  'many inputs': (_one('concatenate', ['x'] * 5000, [-1, 20_000], {'dimension': 1}), 'has 5,000 inputs'),
  'many arrays': (_text(arrays=[['float32', [0]]] * 20_000), 'it has 20,000 arrays'),
  'a huge input': (_text(input=['x', [-1, 2**30], 'float32', None]), 'the shape of its input'),
  'NaN costs': (_text(bitops_g=float('nan')), 'the BitOPs is NaN'),
  'an endless size': (_text().replace('"size_mb": 0.0', '"size_mb": 1e400'), 'the size is Infinity'),
  'negative counts': (_text(layers=[['a', 8, -1, 1]]), '-1 multiplications'),
  'counts of another kind': (_text(layers=[['a', 8, 1.0, 1]]), '1.0 multiplications'),
  'a layer twice': (_text(layers=[['a', 8, 1, 1]] * 2), 'the layer "a" is there twice'),
  'a key twice': (_text().replace('"name"', '"name": "m", "name"'), '"name" is given twice'),
  'another dtype': (_one('neg', ['x'], [-1, 4], {}, dtype='int32'), 'another shape or dtype'),
  'a dtype of Python': (_text(input=['x', [-1, 4], 'object', None]), 'a dtype is "object"'),
  'a number for a list': (_text(nodes=5), 'the operations are 5, not a list'),
  'another key': (_text(code='import os'), 'its header is not an object of'),
  'a range of real numbers': (_text(input=['x', [-1, 4], 'float32', [0.5, 1]]), 'the range of the input'),
  'a name of control characters': (_text(name='\x1b[2J'), 'printable'),
  'letters that are not ASCII': ('{"name": "\u00e9"}', 'not in ASCII'),
  'an input that is nowhere': (_one('neg', ['z'], [-1, 4], {}), 'has no "z"'),
  'an array that is nowhere': (_one('constant', [[7]], [4], {}), 'an array that is not there'),
}


def _as_version(text, version):
  """A header of version 1 as one of another, if it is one at all."""
  try:
    return json.dumps(fuzz_hostile.as_version(json.loads(text), version))
  except (ValueError, TypeError, AttributeError, RecursionError):
    return text


@pytest.mark.parametrize('version', packed_header.VERSIONS)
@pytest.mark.parametrize('kind', HARMFUL)
def test_harm_is_refused_by_name_in_little_memory(kind, version, tmp_path):
  text, message = HARMFUL[kind]
  path = tmp_path / 'net.fracbits'
  keep = version == 1 or any(words in message for words in ('given twice', 'ASCII'))  # JSON would mend it
  keep = keep or isinstance(text, bytes)
  path.write_bytes(_sealed(text if keep else _as_version(text, version), version=version))
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message) as caught:
      packed.read(path)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 40e6
  assert str(caught.value).startswith(f'{path} is no packed network: ')
  assert str(caught.value).isprintable()


def test_the_header_that_they_change_is_read(tmp_path):
  path = tmp_path / 'net.fracbits'
  path.write_bytes(_sealed(_text()))
  assert packed.read(path).graph.output == 'y'
  path.write_bytes(_sealed(_chain(500)))
  assert len(packed.read(path).graph.nodes) == 500


def test_what_is_no_file_is_refused(tmp_path):
  for path, message in (
    (tmp_path, 'it cannot be read'),
    ('/dev/zero', 'it is no file'),
    (tmp_path / 'x', 'No such file'),
  ):
    with pytest.raises(ValueError, match=message):
      packed.read(path)
