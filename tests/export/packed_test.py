import hashlib
import json
import struct
import zlib

import export_nets
import numpy as np
import pytest
from export_nets import IMAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax.commands import export as command
from fracbits_jax.export import bitpack, packed, packed_reader
from fracbits_jax.graph import graph


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_packed_is_unpacked(data):
  channels, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
  per_channel = data.draw(st.booleans())
  bits = np.asarray(
    data.draw(st.lists(st.integers(0, 16), min_size=channels, max_size=channels))
    if per_channel
    else data.draw(st.integers(0, 16))
  )
  seed = data.draw(st.integers(0, 99))
  codes = np.random.default_rng(seed).integers(0, np.broadcast_to(2**bits, (rows, channels))).astype(np.int32)
  content = bitpack.pack(codes, bits)
  assert len(content) == -(-int(np.broadcast_to(bits, (channels,)).sum()) * rows // 8)
  np.testing.assert_array_equal(bitpack.unpack(content, codes.shape, bits), codes)


def test_bytes_of_a_small_kernel():
  # Channel 0 has the 3-bit codes 5, 1 and channel 1 the 1-bit codes 1, 0: 101, 100, 1, 0 with the lowest bit first.
  codes = np.array([[5, 1], [1, 0]], np.int32)
  assert bitpack.pack(codes, np.array([3, 1])) == bytes([0b01001101])


@pytest.fixture(
  scope='module', params=[('original', 'kernel'), ('modified', 'layer'), ('lsq', 'kernel'), ('balanced', 'kernel')]
)
def written(request, tmp_path_factory):
  source = export_nets.source(*request.param)
  path = tmp_path_factory.mktemp('packed') / 'net.fracbits'
  return source, path, packed.write(source, path)


def test_the_file_holds_the_network(written):
  source, path, _ = written
  found = packed.read(path)
  theirs = [node.params['kernel'] for node in source.graph.nodes if node.op == 'kernel']
  ours = [node.params['kernel'] for node in found.graph.nodes if node.op == 'kernel']
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.bits, b.bits)
    np.testing.assert_allclose(a.value, b.value, atol=2e-7)
  assert found.input_range == (0, 255)
  assert found.size_mb == pytest.approx(source.size_mb)
  assert [layer['name'] for layer in found.layers] == [layer.name for layer in source.layers]
  assert found.layers[2]['kernel'] == ours[2].bits.tolist()
  y, _ = graph.evaluate(found.graph, IMAGES)
  expected, _ = graph.evaluate(packed.fold_affine(source.graph), IMAGES)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_the_size_is_accounted_for(written):
  source, path, said = written
  kernels = [node.params['kernel'] for node in source.graph.nodes if node.op == 'kernel']
  weights = sum(float(np.sum(np.broadcast_to(k.bits, k.codes.shape[-1:]))) * k.codes[..., 0].size for k in kernels) / 8
  assert source.size_mb * 1e6 == pytest.approx(weights + 4 * (12 + 5))
  assert f'{path.stat().st_size:,} bytes = {round(source.size_mb * 1e6):,} of kernels and biases' in said
  ranges = sum(4 * k.codes.shape[-1] for k in kernels if np.ndim(k.alpha))
  assert bool(ranges) == (kernels[0].scheme in ('lsq', 'balanced')) == ('of ranges of channels' in said)
  assert not ranges or f' + {ranges:,} of ranges of channels (' in said


def test_an_offset_that_leaves_0_no_code_is_refused():
  grid = {'bits': 4, 'alpha': 1.0, 'signed': True, 'scheme': 'lsq'}
  assert packed_reader._grid({**grid, 'moved': 8}).zero == 0
  assert packed_reader._grid({**grid, 'moved': -7}).zero == 15
  assert packed_reader._grid(grid) == packed_reader._grid({**grid, 'moved': 0})
  for wrong in ({'moved': 9}, {'moved': -8}, {'moved': 1.0}, {'moved': 1, 'signed': False}, {'moved': 1, 'bits': 1}):
    with pytest.raises(ValueError, match='codes that lie where none can'):
      packed_reader._grid({**grid, **wrong})


def test_it_is_written_the_same_again(written, tmp_path):
  source, path, _ = written
  packed.write(source, tmp_path / 'again')
  assert (tmp_path / 'again').read_bytes() == path.read_bytes()


def test_changed_bytes_are_found(written, tmp_path):
  """Every byte of the head, and a sample of the others, flipped in turn; then pieces cut off."""
  _, path, _ = written
  content, broken = path.read_bytes(), tmp_path / 'broken.fracbits'
  rng = np.random.default_rng(0)
  damaged = [(at, at + 1) for at in (*range(56), *rng.integers(56, len(content), 60))]
  damaged += [(at, at + 97) for at in range(56, len(content), 997)]
  for start, stop in damaged:
    flipped = bytes(b ^ 0xFF for b in content[start:stop])
    broken.write_bytes(content[:start] + flipped + content[stop:])
    _refused(broken)
  for length in (0, 7, 8, 55, 56, 300, len(content) - 1):
    broken.write_bytes(content[:length])
    _refused(broken)
  broken.write_bytes(content + b'x')
  _refused(broken)


def _refused(path):
  with pytest.raises(ValueError, match='is no packed network: ') as caught:
    packed.read(path)
  assert '\n' not in str(caught.value)
  assert str(path) in str(caught.value)


def test_headers_that_lie_are_refused(written, tmp_path):
  """Files whose checksum is right, written by somebody else."""
  _, path, _ = written
  content = path.read_bytes()
  _, _, length, _, _ = struct.unpack_from('<8sIIQ32s', content)
  header, body = json.loads(zlib.decompress(content[56 : 56 + length])), content[56 + length :]

  def with_header(header):
    compressed = zlib.compress(json.dumps(header).encode())
    head = struct.pack('<8sIIQ32s', b'FRACBITS', packed.VERSION, len(compressed), len(body), bytes(32))
    digest = hashlib.sha256(head + compressed + body).digest()
    broken = tmp_path / 'broken.fracbits'
    broken.write_bytes(head[:24] + digest + compressed + body)
    return broken

  assert packed.read(with_header(header)).name == 'network'
  first = header['nodes'][0]
  lies = (
    {**header, 'nodes': [['exec', *first[1:]], *header['nodes'][1:]]},
    {**header, 'nodes': header['nodes'][1:]},
    {**header, 'nodes': [first, *header['nodes']]},
    {**header, 'arrays': [*header['arrays'], ['float32', [2**30, 2**30]]]},
    {**header, 'arrays': [['float32', [-1]], *header['arrays'][1:]]},
    {**header, 'arrays': [[*header['arrays'][0][:2], 99, 1.0], *header['arrays'][1:]]},
    {**header, 'output': 'nothing'},
    {**header, 'input': ['input', [-1, 13, 12, 3], 'float32', None]},
    {**header, 'input': ['input', [-1, 12, 12, 3], 'object', None]},
    {key: value for key, value in header.items() if key != 'layers'},
    [],
  )
  for lie in lies:
    _refused(with_header(lie))


def test_the_command_says_what_is_wrong(tmp_path, capsys):
  cases = (
    (['--format', 'gguf'], 'gguf is unknown: give one of packed, qonnx, onnx, c, litert, qwix, stablehlo'),
    (['--format', 'packed'], 'holds no finished run'),
  )
  for arguments, message in cases:
    assert command.main(['--workdir', str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(command.FORMATS, 'qonnx', ('fracbits_jax_not_there', 'qonnx', '.x'))
  assert command.main(['--workdir', str(tmp_path), '--format', 'qonnx']) == 2
  assert "pip install 'fracbits_jax[qonnx]'" in capsys.readouterr().err
