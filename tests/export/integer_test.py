import dataclasses
import functools
from fractions import Fraction

import export_nets
import fewer_blocks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_nets import IMAGES

from benchmarks.robustness import integer as study
from fracbits_jax import models
from fracbits_jax.export import comparison, integer, packed, rescale, values
from fracbits_jax.graph import capture, graph
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.grid import Grid
from fracbits_jax.layers import QuantConfig
from fracbits_jax.models.resnet import ResNet


@pytest.mark.parametrize(
  ('scheme', 'granularity', 'mean'),
  [('original', 'layer', 0.0), ('original', 'kernel', 0.0), ('modified', 'kernel', 0.0), ('lsq', 'kernel', 0.0),
   ('balanced', 'kernel', 0.0), ('original', 'layer', 103.5)],
)  # fmt: skip
def test_the_integers_are_those_of_the_network(scheme, granularity, mean):
  captured = export_nets.source(scheme, granularity, mean).graph
  found = comparison.compare(fold_affine(captured), IMAGES, reference=captured)
  assert found.codes == 8 * (6 * 6 * 8 * 3 + 3 * 3 * 12 + 12)
  assert found.different <= 2
  assert found.farthest_from_tie < 255 * 2**-22  # of a code of 8 bits, the rounding of its sum in float32
  if not found.different:
    assert found.predictions == 0
    assert found.largest_difference < 1e-4 * found.largest_output


def test_a_reference_that_is_another_network_is_refused():
  captured = export_nets.source().graph
  fewer = dataclasses.replace(captured, nodes=tuple(node for node in captured.nodes if node.op != 'quantize'))
  with pytest.raises(
    ValueError, match=r'^the reference has other quantized inputs than the graph: give the graph that'
  ):
    comparison.compare(captured, IMAGES, reference=fewer)


def test_a_wrong_weight_is_noticed():
  """The comparison can fail: one code of one kernel is another one."""
  source = export_nets.source()
  nodes = list(source.graph.nodes)
  at = [i for i, node in enumerate(nodes) if node.op == 'kernel'][3]
  kernel = nodes[at].params['kernel']
  codes = kernel.codes.copy()
  codes.flat[0] ^= 1 << (int(kernel.bits) - 1)
  changed = dataclasses.replace(kernel, codes=codes)
  nodes[at] = dataclasses.replace(nodes[at], params={**nodes[at].params, 'kernel': changed})
  found = comparison.compare(dataclasses.replace(source.graph, nodes=tuple(nodes)), IMAGES)
  assert found.different > 0
  assert found.farthest_from_tie > 1e-3


def test_nothing_is_computed_in_floating_point():
  assert integer.float_operations(export_nets.source().graph) == ()
  quant = QuantConfig(init_bits=3, alpha_init=2.0)
  create = functools.partial(models.create, num_classes=5, quant=quant, width=0.25, small_images=True)
  preact = ResNet(stages=(1, 1), preact=True, num_classes=5, quant=quant, width=0.25, small_images=True)
  with fewer_blocks.mobilenets():
    for model in (create('mobilenet_v2', relu6=True), create('resnet8'), preact):
      assert integer.float_operations(export_nets.with_one_value(model).graph) == (), model


def test_products_are_integers_in_32_bits():
  captured = export_nets.source('lsq', 'kernel').graph
  interpreter = integer.Interpreter(captured, integer_inputs=True)
  with jax.enable_x64(True):
    jaxpr = jax.make_jaxpr(lambda x: interpreter(x, (), {})[0])(IMAGES)
  products = [e for e in jaxpr.eqns if e.primitive.name in ('conv_general_dilated', 'dot_general')]
  assert len(products) == 6
  for equation in products:
    assert {v.aval.dtype for v in (*equation.invars, *equation.outvars)} == {jnp.dtype('int32')}


def test_a_transformer_multiplies_integers_between_its_float_operations():
  source, x = export_nets.transformer()
  found = comparison.compare(source.graph, x, integer_inputs=False)
  assert found.different <= 2
  assert found.farthest_from_tie < 1e-4
  in_float = integer.float_operations(source.graph, integer_inputs=False)
  assert {name.rsplit('_', 1)[0] for name in in_float} >= {'exp', 'rsqrt', 'tanh'}
  products = [node for node in source.graph.nodes if node.op in ('conv_general_dilated', 'dot_general')]
  assert sum(node.output in in_float for node in products) == 1  # of attention and values; that of scores has no bias


def test_rounding_is_half_to_even_and_clipped():
  # scale (integer + 1/2) lies in the middle between two codes.
  grid = Grid(bits=3, alpha=7.0, signed=False, scheme='original')
  with jax.enable_x64(True):
    value = values.value(jnp.arange(-3, 12, dtype=jnp.int32), -3, 11, 1.0, 0.5)
    codes = np.asarray(rescale.codes(value, grid, 'layer'))
  np.testing.assert_array_equal(codes, [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 7, 7, 7, 7, 7])


def _exact_code(integer, scale, offset, low, high, grid):
  """A code by fractions, and the distance from a tie."""
  real = Fraction(int(integer)) * Fraction(float(scale)) + Fraction(float(offset))
  real = min(max(real, Fraction(float(low))), Fraction(float(high)))
  position = real / Fraction(grid.step) + Fraction(grid.zero)
  return min(max(round(position), 0), 2**grid.bits - 1), abs(position % 1 - Fraction(1, 2))


@pytest.mark.parametrize(('bits', 'signed'), [(8, False), (3, True), (16, False)])
def test_any_scale_and_offset_gives_the_exact_code(bits, signed):
  """Scales of any size and either sign, and offsets that leave the integers on the grid or far from it."""
  rng, channels = np.random.default_rng(bits), 400
  grid = Grid(bits=bits, alpha=float(np.float32(0.7)), signed=signed, scheme='original')
  bound = np.floor(2.0 ** rng.uniform(0, 31, channels))
  scale = rng.choice([-1, 1], channels) * 10.0 ** rng.uniform(-30, 11, channels) * grid.step / bound
  scale[::2] = rng.choice([-1, 1], channels // 2) * grid.step * 2.0 ** rng.uniform(-20, 2, channels // 2)
  middle = np.round(rng.uniform(-1, 1, channels) * bound)
  offset = rng.uniform(-1, 1, channels) - scale * middle
  offset[::9], offset[::13], scale[::31] = 0.0, rng.choice([-1e30, 1e30]), 0.0
  near = middle + rng.integers(-9, 10, (5, channels))
  anywhere = rng.uniform(-1, 1, (3, channels)) * bound
  integers = np.clip([*near, -bound, bound, *anywhere], -bound, bound).astype(np.int32)
  low, high = (np.where(rng.random(channels) < 0.3, limit, end) for limit, end in ((0.1, -np.inf), (0.3, np.inf)))
  channel = lambda array: array[None]
  with jax.enable_x64(True):
    x = values.value(jnp.asarray(integers), *map(channel, (-bound, bound, scale, offset, low, high)))
    found = np.asarray(rescale.codes(x, grid, 'layer'))
  ends = np.clip(low, -1e300, 1e300), np.clip(high, -1e300, 1e300)
  for (row, c), code in np.ndenumerate(found):
    expected, distance = _exact_code(integers[row, c], scale[c], offset[c], ends[0][c], ends[1][c], grid)
    assert code == expected or distance < rescale.TOLERANCE, (row, c)
  assert len(np.unique(found)) > 7


def _compared(seed, blocks, exponent=12.0, **how):
  net = study.Net(blocks, **how)
  captured = capture.capture(net, study.random_variables(net, seed, exponent), study.images(seed))
  return study.compared(study.with_clips(captured, study.images(seed), seed), study.images(seed), compiled=False)


def test_batch_norms_of_any_variance_give_the_codes_of_float64():
  """Variances from 1e-12 to 1e12, gammas of either sign and 0, twice in a row, before a max pool and a mean."""
  found = [_compared(seed, ('norm', 'max_pool', 'same')) for seed in range(4)]
  assert [each.refusal for each in found] == [''] * 4
  assert sum(each.codes for each in found) == 4 * 2 * (4 * 4 * 4 + 4)
  assert sum(each.wrong + each.in_float for each in found) == 0


def test_sums_give_the_codes_of_float64():
  found = [_compared(seed, ('max_pool', 'residual', 'avg_pool'), exponent=3.0) for seed in range(4)]
  assert [each.refusal for each in found] == [''] * 4
  assert sum(each.wrong + each.in_float for each in found) == 0


@pytest.mark.parametrize('blocks', [('circular', 'reflect'), ('twice', 'sliced', 'concatenated', 'shuffled')])
def test_codes_are_moved_as_codes(blocks):
  found = _compared(1, blocks, head='max')
  assert not found.refusal
  assert found.codes > 500
  assert found.wrong == found.in_float == 0


def test_sums_that_are_too_coarse_for_the_next_codes_are_refused():
  """28 bits hold numbers of a hundred million, but not the codes of a sum of two. Beside a small one all is well."""
  big, bigger = (values.value(jnp.asarray([999, -999], jnp.int32), -999, 999, scale) for scale in (1e6 / 3, -1e6 / 7))
  grid, everything = Grid(bits=8, alpha=1.0, signed=True, scheme='lsq'), (-np.inf, np.inf)
  with jax.enable_x64(True):
    total = rescale.added(big, bigger, [everything] * 2)
    with pytest.raises(ValueError, match=r'the inputs of conv are known to .* of a step of their 8 bits'):
      rescale.codes(total, grid, 'conv')
    small = values.value(jnp.asarray([1, 2], jnp.int32), -3, 3, 0.1)
    ends = [(-1.31, 1.31), everything]
    codes = rescale.codes(rescale.added(big, small, ends), grid, 'conv')
  np.testing.assert_array_equal(codes, [255, 0])


def test_wide_accumulators_are_refused():
  source = export_nets.source()
  nodes = []
  for node in source.graph.nodes:
    if node.op == 'kernel':
      kernel = node.params['kernel']
      wide = dataclasses.replace(kernel, bits=np.int32(16), codes=np.full_like(kernel.codes, 2**16 - 1), exact=None)
      node = dataclasses.replace(node, params={**node.params, 'kernel': wide})
    if node.op == 'quantize':
      grid = dataclasses.replace(node.params['grid'], bits=16)
      node = dataclasses.replace(node, params={**node.params, 'grid': grid})
    nodes.append(node)
  with pytest.raises(ValueError, match='accumulators of more than 32 bits'):
    integer.inference(dataclasses.replace(source.graph, nodes=tuple(nodes)))(IMAGES)


def test_inputs_that_are_no_images_are_refused():
  run = integer.inference(export_nets.source().graph)
  for wrong in (IMAGES / 255, -IMAGES, IMAGES + 1):
    with pytest.raises(ValueError, match='not integers from 0 to 255'):
      run(wrong)


def test_a_packed_network_runs_without_its_code(tmp_path):
  source = export_nets.source('original', 'kernel')
  packed.write(source, tmp_path / 'net')
  found = packed.read(tmp_path / 'net')
  y, _ = integer.inference(found.graph)(IMAGES)
  expected, _ = graph.evaluate(found.graph, IMAGES)
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)
