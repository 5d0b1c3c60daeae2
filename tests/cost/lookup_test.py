import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax.cost import Layer, lookup

# Kernels of 2 and 4 bits; inputs of 1, 2 and 8.
PLAIN = """# An example.
# unit: nJ
# total: J
kernel_bits,input_bits,cost
2,1,1
2,2,2
2,8,4
4,1,3
4,2,5
4,8,11
"""
KINDS = """# unit: cycles
kernel_bits,input_bits,cost,kind
4,4,1,
8,4,2,
4,4,10,depthwise
8,4,30,depthwise
"""


@pytest.fixture
def read(tmp_path):
  def load(content):
    path = tmp_path / 'own.csv'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lookup.load(path)

  return load


@pytest.fixture
def table(read):
  return read(PLAIN)


def test_a_file_says_what_it_holds(table, read):
  assert (table.name, table.unit, table.total) == ('own', 'nJ', 'J')
  assert (table.kernel_bits, table.input_bits) == ((2, 4), (1, 2, 8))
  assert table.costs == (('', ((1.0, 2.0, 4.0), (3.0, 5.0, 11.0))),)
  assert read(KINDS).total == 'Gcycles'


def test_tables_are_equal_by_content(table, read):
  body = PLAIN.splitlines(keepends=True)
  again = read('\ufeff' + ''.join(reversed(body[4:])).join((''.join(body[:4]), '\r\n \n')).replace('\n', '\r\n'))
  assert again == table
  assert hash(again) == hash(table)
  assert read(PLAIN.replace('11', '12')) != table


@pytest.mark.parametrize(
  ('kernel', 'inputs', 'expected'),
  [
    (2, 1, 1),
    (4, 8, 11),
    (2, 5, 3),
    (3, 2, 3.5),
    (3, 5, (2 + 4 + 5 + 11) / 4),
    (0, 5, 0),
    (1, 1, 0.5),
    (0.5, 5, 0.75),
    (2, 0, 1),  # beyond the grid: its edge
    (9, 9, 11),
    ([0, 2, 3, 4], 2, [0, 2, 3.5, 5]),
  ],
)
def test_costs_at_and_between_the_points_of_the_grid(table, kernel, inputs, expected):
  value = table.per_mac('dense', kernel, inputs)
  assert value.dtype == np.float64
  np.testing.assert_array_equal(value, expected)
  kernel = jnp.asarray(kernel)
  for in_jax in (table.per_mac('dense', kernel, inputs), jax.jit(lambda w: table.per_mac('dense', w, inputs))(kernel)):
    assert isinstance(in_jax, jax.Array)
    assert in_jax.dtype == np.float32
    np.testing.assert_array_equal(in_jax, expected)


def test_grid_points_are_exact_whatever_the_costs(read):
  grid = (0, 1, 3, 10, 17, 31)
  costs = {(w, a): (w and 0.1) + w * a / 3 for w in grid for a in grid}
  rows = '\n'.join(f'{w},{a},{cost!r}' for (w, a), cost in costs.items())
  table = read(f'# unit: pJ\nkernel_bits,input_bits,cost\n{rows}')
  in_jax = jax.jit(lambda w, a: table.per_mac('standard', w, a))
  for (w, a), cost in costs.items():
    assert table.per_mac('standard', w, a) == cost
    assert in_jax(jnp.float32(w), jnp.float32(a)) == np.float32(cost)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 8, width=32), min_size=1, max_size=5), st.floats(1, 8, width=32))
def test_jax_equals_numpy(kernel, inputs):
  for name in lookup.names():
    table = lookup.load(name)
    expected = table.per_mac('depthwise', np.asarray(kernel), inputs)
    np.testing.assert_allclose(table.per_mac('depthwise', jnp.asarray(kernel), inputs), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences_off_the_grid(table):
  gradient = jax.jit(jax.grad(lambda w, a: table.per_mac('dense', w, a).sum(), argnums=(0, 1)))
  h = 1e-6
  for w in (0.3, 1.9, 2.2, 3.7):
    for a in (1.25, 1.5, 2.5, 7.75):
      g_w, g_a = gradient(jnp.float32(w), jnp.float32(a))
      at = lambda w, a: table.per_mac('dense', w, a)
      np.testing.assert_allclose(g_w, (at(w + h, a) - at(w - h, a)) / (2 * h), rtol=1e-5)
      np.testing.assert_allclose(g_a, (at(w, a + h) - at(w, a - h)) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize(
  ('kernel', 'inputs', 'expected'),
  [
    (0.0, 1.0, (0.5, 0.0)),
    (2.0, 1.0, (1.0, 1.0)),  # from the right
    (2.0, 2.0, (1.5, 1 / 3)),
    (4.0, 2.0, (1.5, 1.0)),  # the kernel's last point: from the left
    (4.0, 8.0, (3.5, 1.0)),
    (4.5, 8.5, (0.0, 0.0)),  # beyond
  ],
)
def test_the_gradient_on_grid_points_has_a_side(table, kernel, inputs, expected):
  value = jax.grad(lambda w, a: table.per_mac('dense', w, a), argnums=(0, 1))(kernel, inputs)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_each_channel_has_its_own_gradient(table):
  bits = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])
  gradient = jax.grad(lambda w: table.per_mac('dense', w, 2).mean())(bits)
  np.testing.assert_allclose(gradient, np.array([1, 1, 1.5, 1.5, 1.5]) / 5, rtol=1e-6)


def test_kinds_have_their_own_rows_or_the_default(read):
  table = read(KINDS)
  assert [table.per_mac(kind, 6, 4) for kind in lookup.KINDS] == [1.5, 1.5, 20, 1.5]
  assert table.per_mac('dense', 6, jnp.float32(4)) == 1.5  # inputs of one bit-width only
  assert jax.grad(lambda a: table.per_mac('dense', 6, a))(4.0) == 0
  only = read(KINDS.replace(',\n', ',pointwise\n'))
  with pytest.raises(ValueError, match="no costs for layers of kind 'dense': it covers pointwise and depthwise"):
    only.per_mac('dense', 4, 4)
  with pytest.raises(ValueError, match='stem: lookup table own has no costs for layers of kind'):
    only.check([Layer(name='stem', macs=1, weights=1, channels=1, kernel_bits=8, input_bits=4)])


def layer(**changes):
  return Layer(**{'name': 'block1/conv', 'macs': 1, 'weights': 1, 'channels': 1, **changes})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(choices=(1, 2, 4)), 'whose kernel can have 1 to 4 bits'),
    (dict(choices=(2, 5)), 'whose kernel can have 2 to 5 bits'),
    (dict(kernel_bits=8), 'whose kernel can have 8 bits'),
    (dict(choices=(2, 4), input_choices=(0, 2)), 'whose inputs can have 0 to 2 bits'),
    (dict(choices=(2, 4), input_bits=32), 'whose inputs can have 32 bits'),
  ],
)
def test_layers_outside_the_grid_are_named(table, changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    table.check([layer(name='stem', kernel_bits=4, input_bits=8), layer(**changes)])
  assert 'no cost for block1/conv' in str(caught.value)
  assert 'covers kernels of 2 to 4 and inputs of 1 to 8 bits' in str(caught.value)


def test_layers_within_the_grid_pass_and_0_bits_of_a_kernel_are_within(table):
  table.check([layer(choices=(0, 2, 3, 4), input_choices=(1, 8)), layer(kernel_bits=0, input_bits=3)])


def without(line):
  return PLAIN.replace(line, '')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (without('2,8,4\n'), 'no row for kernel_bits=2, input_bits=8: give one for every'),
    (KINDS.replace('8,4,30,depthwise\n', ''), 'no row for kernel_bits=8, input_bits=4, kind=depthwise'),
    (PLAIN + '2,1,1\n', 'line 11: the row for kernel_bits=2, input_bits=1 is there already, in line 5'),
    (PLAIN.replace('2,1,1', '2,1,one'), "line 5: cost 'one' is not a cost: give a number from 0"),
    (PLAIN.replace('2,1,1', '2,1,nan'), "line 5: cost 'nan'"),
    (PLAIN.replace('2,8,4', '2,8,1_0'), "line 7: cost '1_0'"),
    (PLAIN.replace('2,8,4', '2,8,٤'), "line 7: cost '٤'"),
    (PLAIN.replace('4,8,11', '4,8,inf'), "line 10: cost 'inf'"),
    (PLAIN.replace('4,8,11', '4,8,1e39'), "line 10: cost '1e39'"),
    (PLAIN.replace('2,1,1', '2,1,-1'), "line 5: cost '-1'"),
    (PLAIN.replace('2,1,1', '2.5,1,1'), "line 5: kernel_bits '2.5' is not a bit-width: give an integer from 0 to 32"),
    (PLAIN.replace('2,1,1', '2,33,1'), "line 5: input_bits '33'"),
    (PLAIN.replace('2,1,1', '2,-1,1'), "line 5: input_bits '-1'"),
    (PLAIN.replace('2,1,1', '2,1'), "line 5: '2,1' has 2 fields: give 3"),
    (PLAIN.replace('4,1,3', '4,1,0.5'), 'line 8: the cost 0.5 for kernel_bits=4, input_bits=1 is below the 1'),
    (PLAIN.replace('2,2,2', '2,2,0.5'), 'line 6: the cost 0.5 .* is below the 1 for fewer input_bits'),
    (KINDS.replace('depthwise', 'grouped'), "line 5: kind 'grouped' is unknown: give dense, pointwise"),
    (without('# unit: nJ\n'), 'does not name its unit'),
    (PLAIN + '# unit: J', 'line 11: the unit is given a second time'),
    (PLAIN.replace('nJ', '<b>'), "line 2: unit '<b>' is no unit"),
    (PLAIN.replace('# total: J', '# total:'), "line 3: total '' is no unit"),
    (
      PLAIN.replace('input_bits', 'activation_bits'),
      "line 4: the header 'kernel_bits,activation_bits,cost' is unknown",
    ),
    (PLAIN.replace(',', ';'), 'line 4: the header'),
    (without('kernel_bits,input_bits,cost\n'), "line 4: the header '2,1,1' is unknown"),
    ('# unit: s\nkernel_bits,input_bits,cost\n0,1,1\n', 'line 3: .* a kernel without bits costs nothing'),
    ('# unit: s\nkernel_bits,input_bits,cost\n0,1,0\n', 'no row with kernel_bits above 0'),
    ('# unit: s\nkernel_bits,input_bits,cost\n', 'it has no rows'),
    ('', 'it has no rows'),
    (b'\xff\xfe\x00\x01', 'not text in UTF-8'),
    (PLAIN.encode() + b'\0', 'not text in UTF-8'),
    (PLAIN + '#' * 10**6, 'larger than 1,000,000 bytes'),
  ],
)
def test_broken_tables_are_refused_in_a_sentence(read, content, message):
  with pytest.raises(ValueError, match=message) as caught:
    read(content)
  assert str(caught.value).startswith('lookup table ')
  assert 'own.csv: ' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_missing_files_and_folders_are_refused_with_the_names_that_there_are(tmp_path):
  for given_path in ('bit_parallel', tmp_path / 'none.csv', tmp_path, 'a' * 5000, 'nul\0'):
    with pytest.raises(ValueError, match=r'^lookup table ') as caught:
      lookup.load(given_path)
    assert '\n' not in str(caught.value)
  with pytest.raises(ValueError, match=r'bit_parallel: there is no such file, .* are bit_fusion, bit_serial'):
    lookup.load('bit_parallel')


def loads_or_refuses(path: pathlib.Path, content: bytes):
  path.write_bytes(content)
  problem = None
  try:
    table = lookup.load(path)
  except ValueError as error:
    problem = str(error)
  if problem is not None:
    assert len(problem.splitlines()) == 1
    assert len(problem) < len(str(path)) + 300
    return
  for kind, _ in table.costs:
    value = table.per_mac(kind or 'dense', np.arange(33.0), table.input_bits[0])
    assert np.isfinite(value).all()
    assert (np.diff(value) >= 0).all()


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode('utf-8', 'replace')))
def test_any_bytes_load_or_are_refused(tmp_path_factory, content):
  loads_or_refuses(tmp_path_factory.getbasetemp() / 'fuzz.csv', content)


_PIECES = st.sampled_from([b'', b',', b'\n', b'0', b'9', b'-', b'e9', b'#', b'\xe2\x80\xa8']) | st.binary(max_size=4)
_EDITS = st.tuples(st.integers(0, 200), st.integers(0, 8), _PIECES)


@settings(deadline=None, max_examples=300)
@given(base=st.sampled_from([PLAIN, KINDS]), edits=st.lists(_EDITS, min_size=1, max_size=4))
def test_any_mutation_of_a_table_loads_or_is_refused(tmp_path_factory, base, edits):
  content = base.encode()
  for position, length, replacement in edits:
    content = content[:position] + replacement + content[position + length :]
  loads_or_refuses(tmp_path_factory.getbasetemp() / 'fuzz.csv', content)


def fused(bits):
  return 2 if bits <= 2 else 4 if bits <= 4 else 8


FORMULAS = {
  'bit_fusion': lambda w, a: fused(w) / 2 * fused(a) / 2,
  'bit_serial': lambda w, a: w * a,
  # Cycles for a bit: double the product, take the bit, branch, add half of the time, an eighth of a load; for a
  # product: the input, the accumulator, an eighth of the loop.
  'microcontroller': lambda w, a: w * (2 + 1 + (1 + 2) / 2 + 2 / 2 + 3 / 8) + 2 + 4 + 3 / 8,
  'tensor_core': lambda w, a: 624 / 1248 if max(w, a) <= 4 else 1,
}


def test_the_formulas_cover_the_tables_that_come_along():
  assert lookup.names() == tuple(FORMULAS)


@pytest.mark.parametrize('name', FORMULAS)
def test_the_tables_that_come_along_hold_what_their_headers_derive(name):
  table = lookup.load(name)
  assert table.name == name
  assert table.kernel_bits == table.input_bits == tuple(range(1, 9))
  for w in range(1, 9):
    for a in range(1, 9):
      assert table.per_mac('pointwise', w, a) == FORMULAS[name](w, a)
  table.check([layer(choices=range(9), input_choices=range(1, 9))])
