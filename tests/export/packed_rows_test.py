"""The rows of version 2 of a packed file, which refer back, and those of version 1, which name things."""

import hashlib
import json
import struct
import zlib

import export_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_nets import IMAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax import models
from fracbits_jax.export import comparison, packed, packed_header, packed_rows
from fracbits_jax.export.source import source_of
from fracbits_jax.graph import graph
from fracbits_jax.layers import QuantConfig


def sealed(header, body, version):
  compressed = zlib.compress(json.dumps(header).encode(), 9)
  head = lambda digest: struct.pack('<8sIIQ32s', b'FRACBITS', version, len(compressed), len(body), digest)
  return head(hashlib.sha256(head(bytes(32)) + compressed + bytes(body)).digest()) + compressed + bytes(body)


@st.composite
def graphs(draw):
  """Rows of version 1: each takes values before it, inputs of the network, arrays, numbers, or is a kernel."""
  rows, places = [], 0
  for i in range(draw(st.integers(0, 12))):
    values = [row[2] for row in rows] + ['x', 'y']
    if draw(st.booleans()):
      places += draw(st.integers(0, 2))  # such as the ranges of its channels
      rows.append(['kernel', [], f'kernel:{i}', [4], 'float32', {'layer': 'l', 'kernel': places}])
      places += 1
      continue
    inputs = []
    for _ in range(draw(st.integers(0, 3))):
      kind = draw(st.sampled_from(('value', 'number', 'new', 'array')))
      if kind == 'new' or (kind == 'array' and not places):
        inputs.append([places])
        places += 1
      elif kind == 'array':
        inputs.append([draw(st.integers(0, places - 1))])
      else:
        inputs.append(draw(st.sampled_from(values)) if kind == 'value' else ['int32', draw(st.integers(-9, 9))])
    rows.append(['add', inputs, f'add:{i}', [-1, 4], 'float32', {'a': [1, 2]}])
  return rows


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_the_shorter_rows_are_read_as_the_longer_ones(rows):
  assert packed_rows.expanded(json.loads(json.dumps(packed_rows.shortened(rows)))) == rows


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp('rows') / 'net.fracbits'
  source = export_nets.source('lsq', 'kernel')
  packed.write(source, path)
  return source, path


def test_a_file_of_version_1_is_read_as_the_same_network(written, tmp_path):
  source, path = written
  header, body, version = packed_header.unseal(path.read_bytes())
  assert version == 2
  rows = packed_rows.expanded(header['nodes'])
  first = tmp_path / 'first.fracbits'
  first.write_bytes(sealed({**header, 'nodes': rows}, body, 1))
  assert packed_header.unseal(first.read_bytes())[2] == 1
  ours, theirs = packed.read(path), packed.read(first)
  assert packed._same(ours.graph, theirs.graph)
  assert (ours.layers, ours.input_range, ours.size_mb) == (theirs.layers, theirs.input_range, theirs.size_mb)
  # Version 1 named values as it liked.
  name = lambda x: x.replace(':', '_') if isinstance(x, str) else x
  rows = [[op, list(map(name, inputs)), name(output), *rest] for op, inputs, output, *rest in rows]
  renamed = {**header, 'nodes': rows, 'output': name(header['output'])}
  first.write_bytes(sealed(renamed, body, 1))
  found = packed.read(first).graph
  assert [node.output for node in found.nodes] == [row[2] for row in rows]
  np.testing.assert_array_equal(graph.evaluate(found, IMAGES)[0], graph.evaluate(ours.graph, IMAGES)[0])
  assert comparison.compare(found, IMAGES, reference=source.graph).different == 0


def test_another_version_is_refused_by_number(written, tmp_path):
  header, body, _ = packed_header.unseal(written[1].read_bytes())
  for version in (0, 3):
    (tmp_path / 'other').write_bytes(sealed(header, body, version))
    with pytest.raises(
      ValueError, match=f'it has version {version}, and this program reads versions 1 and 2; export it'
    ):
      packed.read(tmp_path / 'other')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (['neg', [1], [-1, 4], 'float32', {}], 'takes what one gives that is not there'),
    (['neg', [0], [-1, 4], 'float32', {}], 'takes what one gives that is not there'),
    (['neg', [-1], [-1, 4], 'float32', {}], 'takes what one gives that is not there'),
    (['neg', [True], [-1, 4], 'float32', {}], 'is true, not of 2 entries'),
    (['neg', [[-1]], [-1, 4], 'float32', {}], 'an array that is not there'),
    (['neg', [[-(10**9)]], [-1, 4], 'float32', {}], 'an array that is not there'),
    (['neg', [[None]], [-1, 4], 'float32', {}], 'an array that is not there'),
    (['neg', 'input', [-1, 4], 'float32', {}], 'the inputs of an operation are "input", not a list'),
    (['neg', ['input'], 'neg:0', [-1, 4], 'float32', {}], 'not of 5 entries'),
    ([['neg'], ['input'], [-1, 4], 'float32', {}], 'that is unknown'),
    (['kernel', [], [4], 'float32', {'layer': 'l', 'kernel': -1}], 'an array that is not there'),
    (['kernel', [], [4], 'float32', {'layer': 'l'}], 'an array that is not there'),
    (['kernel', [], [4], 'float32', 5], 'the parameters of kernel are 5'),
  ],
)
def test_rows_that_refer_to_nothing_are_refused(row, message, tmp_path):
  header = {'name': 'n', 'input': ['input', [-1, 4], 'float32', None], 'output': 'neg:0', 'nodes': [row]}
  header |= {'arrays': [], 'layers': [], 'bitops_g': 0.0, 'size_mb': 0.0}
  (tmp_path / 'net').write_bytes(sealed(header, b'', 2))
  with pytest.raises(ValueError, match=message) as caught:
    packed.read(tmp_path / 'net')
  assert str(caught.value).isprintable()


def test_another_block_of_a_network_takes_few_bytes_of_the_header(tmp_path):
  quant = QuantConfig(scheme='lsq', sat=False, group_size=8, weight_only=True)
  tokens = jnp.zeros((1, 16), jnp.int32)

  def length(depth):
    model = models.create('gpt_mini', num_classes=8, width=0.25, depth=depth, head_dim=8, dim=32, quant=quant)
    source = source_of(model, model.init(jax.random.key(0), tokens), tokens)
    packed.write(source, tmp_path / 'net')
    return struct.unpack_from('<I', (tmp_path / 'net').read_bytes(), 12)[0]

  assert length(4) - length(2) < 2 * 250
