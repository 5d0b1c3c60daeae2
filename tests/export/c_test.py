import pathlib
import re
import shutil
import subprocess

import export_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from benchmarks.device import cortex_m
from benchmarks.robustness import c_networks
from fracbits_jax.export import c_format, c_program, c_tables, c_vectors, integer, recording
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

COMPILERS = [name for name in ('gcc', 'clang') if shutil.which(name)]
needs_gcc = pytest.mark.skipif(shutil.which('gcc') is None, reason='gcc is not installed')
needs_board = pytest.mark.skipif(bool(cortex_m.missing()), reason=f'not installed: {cortex_m.missing()}')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The network of the exports' tests as C, at bits of each channel, with its test vectors."""
  folder = tmp_path_factory.mktemp('c')
  source = export_nets.source('lsq', 'kernel')
  print(c_format.write(source, folder, examples=export_nets.IMAGES))
  return folder, source


@needs_gcc
@pytest.mark.parametrize('compiler', COMPILERS)
def test_the_answers_are_those_of_integer_inference(written, compiler, tmp_path):
  folder, _ = written
  for flags in (['-O2'], ['-O1', *c_networks.SANITIZERS]):
    command = [compiler, *c_networks.FLAGS, *flags, '-o', str(tmp_path / 'program'), *map(str, folder.glob('*.c'))]
    subprocess.run(command, check=True)
    run = subprocess.run([str(tmp_path / 'program')], capture_output=True, text=True)
    assert run.stdout == '8 of 8 test vectors are answered as by integer inference\n', run.stderr


@needs_gcc
def test_a_wrong_weight_is_noticed(written, tmp_path):
  """The comparison can fail: one byte of one kernel is another one."""
  folder, _ = written
  for file in folder.iterdir():
    text = file.read_text()
    if file.suffix == '.c' and 'weights0' in text:
      head, tail = text.split('s0_weights0[] = {\n  ', 1)
      first, rest = tail.split(',', 1)
      text = f'{head}s0_weights0[] = {{\n  {int(first) ^ 1},{rest}'
    (tmp_path / file.name).write_text(text)
  made = subprocess.run(['make', '-C', str(tmp_path), 'test', 'CFLAGS=-O1'], capture_output=True, text=True)
  assert made.returncode != 0
  assert ' of 8 test vectors' in made.stdout
  assert '8 of 8' not in made.stdout


@needs_gcc
def test_the_code_needs_neither_floating_point_nor_a_heap(written, tmp_path):
  folder, _ = written
  for file in ('network.c', 'fracbits.c'):
    text = (folder / file).read_text()
    assert not {'float', 'double', 'malloc'} & set(text.replace('(', ' ').split())
    subprocess.run(['gcc', *c_networks.FLAGS, '-O2', '-c', str(folder / file), '-o', str(tmp_path / 'x.o')], check=True)
    symbols = subprocess.run(['nm', '-u', str(tmp_path / 'x.o')], check=True, capture_output=True, text=True).stdout
    assert {name for name in symbols.split() if name != 'U' and not name.startswith('fb_')} <= {'memcpy', 'memset'}


def test_outputs_are_the_real_numbers_in_fixed_point(written):
  _, source = written
  graph = c_program.integer_graph(source.graph)
  (digits,) = recording.record(graph).digits.values()
  fixed, _ = integer.inference(graph, fixed_outputs=True)(export_nets.IMAGES)
  real, _ = integer.inference(graph)(export_nets.IMAGES)
  assert fixed.dtype == np.int32
  np.testing.assert_allclose(fixed / 2.0**digits, real, atol=2.0**-digits + 1e-6 * np.abs(real).max())


def test_the_header_declares_what_the_schedule_places(written):
  folder, source = written
  program = c_program.program_of(c_program.integer_graph(source.graph))
  assert f'#define NETWORK_ARENA_BYTES {program.arena}u' in (folder / 'network.h').read_text()
  ends = [t.offset + -(-t.bits * int(name.split()[-2]) // 8) for t, name in program.named_tensors()]
  assert max(ends) == program.arena


@needs_gcc
@pytest.mark.parametrize('seed', [1, 6])
def test_random_networks_give_the_same_integers(seed, tmp_path):
  problem = c_networks.differs(c_networks.network(seed), tmp_path, seed, flags=('-O1', *c_networks.SANITIZERS))
  assert not problem


@needs_board
def test_a_cortex_m_gives_the_same_integers(written):
  found = cortex_m.measure(written[0])
  assert (found.vectors, found.right) == (8, 8)
  assert found.flash > 5000
  assert found.ram == pytest.approx(c_program.program_of(c_program.integer_graph(written[1].graph)).arena, abs=8)
  assert 1000 < found.stack < 8192
  assert found.instructions > 100_000


@pytest.mark.parametrize('doubled', [False, True])
def test_rows_are_packed_at_the_bits_that_hold_them(doubled):
  rng = np.random.default_rng(0)
  for bits in range(1, 9):
    codes = rng.integers(0, 2**bits, (1, 21))
    codes[0, :2] = 0, 2**bits - 1
    row = 2 * codes - (2**bits - 1) if doubled else codes - 2 ** (bits - 1)
    forms, packed = c_tables.packed_rows(row, [bits], 'layer')
    assert forms == [bits | (32 if doubled else 0)]
    assert len(packed) == -(-21 * bits // 8)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda x: nn.softmax(x), r'exp.* has no meaning in integers'),
    (lambda x: jnp.max(x, -1), r'takes other axes than height and width'),
    (lambda x: QuantConv(2, (3, 3, 3), quant=QuantConfig())(x[:, :, :, :, None]), r'no convolution of'),
    (
      lambda x: QuantDense(4, quant=QuantConfig(signed_input=True))(x) * nn.relu(x),
      r'mul.* has no meaning in integers',
    ),
  ],
)
def test_what_has_no_meaning_in_integers_is_refused_by_name(make, words):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(QuantConv(4, (3, 3), quant=QuantConfig(kernel_bits=8, input_bits=8, weight_only=True))(x))
      return make(x)

  model, x = Net(), jnp.zeros((1, 6, 6, 3))
  source = source_of(model, model.init(jax.random.key(0), x), x)
  with pytest.raises(ValueError, match=words):
    c_format.write(source, pathlib.Path('never'))
  assert not pathlib.Path('never').exists()


def test_the_loops_have_what_the_tables_are_made_for():
  header = (pathlib.Path(c_format.__file__).parent / 'c' / 'fracbits.h').read_text()
  defined = {name: int(number) for name, number in re.findall(r'#define FB_(\w+) (\d+)', header)}
  assert (defined['TAPS'], defined['REGISTERS']) == (c_program.TAPS, c_vectors.REGISTERS)
  assert defined['BLOCK'] == c_format.BLOCK
