import dataclasses

import export_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_nets import IMAGES

from fracbits_jax.export import comparison, graph, integer, packed, rescale, values
from fracbits_jax.export.fold import fold_affine
from fracbits_jax.export.grid import Grid


@pytest.mark.parametrize(
  ('scheme', 'granularity', 'mean'),
  [('original', 'layer', 0.0), ('original', 'kernel', 0.0), ('modified', 'kernel', 0.0), ('lsq', 'kernel', 0.0),
   ('original', 'layer', 103.5)],
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
  for name, settings in (('mobilenet_v2', {'relu6': True}), ('resnet8', {}), ('preact_resnet18', {})):
    found = export_nets.shipped(name, width=0.25, small_images=True, **settings)
    assert integer.float_operations(found.graph) == (), name


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
  assert sum(node.output in in_float for node in products) == 2  # within attention, of two activations


def test_rounding_is_half_to_even_and_clipped():
  # scale (integer + 1/2) lies in the middle between two codes.
  grid = Grid(bits=3, alpha=7.0, signed=False, scheme='original')
  with jax.enable_x64(True):
    value = values.value(jnp.arange(-3, 12, dtype=jnp.int32), -3, 11, 1.0, 0.5)
    codes = np.asarray(rescale.codes(value, grid, 'layer'))
  np.testing.assert_array_equal(codes, [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 7, 7, 7, 7, 7])


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
