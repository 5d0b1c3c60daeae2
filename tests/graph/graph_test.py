import dataclasses

import export_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_nets import IMAGES
from flax import linen as nn

from fracbits_jax.export.source import source_of
from fracbits_jax.graph import graph
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.layers import QuantConfig, QuantDense


@pytest.mark.parametrize('scheme', ['original', 'modified', 'lsq', 'balanced'])
@pytest.mark.parametrize('granularity', ['layer', 'kernel'])
def test_the_graph_computes_what_the_network_computes(scheme, granularity):
  model, variables = export_nets.network(scheme, granularity)
  captured = export_nets.source(scheme, granularity).graph
  # Where weights are rounded down, one that lies on a step goes either way with the order that a compiler chooses.
  compiled = (lambda function: function) if scheme == 'modified' else jax.jit
  y = compiled(lambda x: graph.evaluate(captured, x)[0])(IMAGES)
  np.testing.assert_allclose(y, compiled(model.apply)(variables, IMAGES), rtol=1e-5, atol=1e-5)


def test_it_takes_any_number_of_images():
  captured = export_nets.source().graph
  whole, _ = graph.evaluate(captured, IMAGES)
  np.testing.assert_allclose(graph.evaluate(captured, IMAGES[:3])[0], whole[:3], rtol=1e-5)
  assert captured.input_shape == (-1, 12, 12, 3)


@pytest.mark.parametrize('granularity', ['layer', 'kernel'])
def test_codes_stand_for_the_values(granularity):
  for scheme in ('original', 'modified', 'lsq', 'balanced'):
    kernels = [n.params['kernel'] for n in export_nets.source(scheme, granularity).graph.nodes if n.op == 'kernel']
    assert len(kernels) == 6
    for kernel in kernels:
      assert kernel.codes.min() >= 0
      assert (kernel.codes < 2**kernel.bits).all()
      np.testing.assert_allclose(kernel.scale * (kernel.codes - kernel.zero), kernel.exact, atol=1e-6)
      np.testing.assert_allclose(dataclasses.replace(kernel, exact=None).value, kernel.exact, atol=2e-7)


def test_a_batch_norm_becomes_one_scale_and_one_offset():
  source = export_nets.source()
  folded = fold_affine(source.graph)
  assert sum(node.op == 'affine' for node in folded.nodes) == 6  # five batch norms, and the division of a mean
  assert len(folded.nodes) < len(source.graph.nodes)
  expected, _ = graph.evaluate(source.graph, IMAGES)
  y, _ = graph.evaluate(folded, IMAGES)
  assert np.abs(y - expected).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize(
  ('function', 'shapes'),
  [
    (lambda x, c: (x * c) * c, [(1, 1, 4), ()]),  # a norm without an offset
    (lambda x, c: x * c + 2.0, [(1, 1, 4), ()]),
    (lambda x, c: (x + c) + c, [(), (1, 1, 4)]),
    (lambda x, c: 3.0 * x + c, [(), (1, 1, 4)]),
    (lambda x, c: x * c + c, [(1, 1, 4), (1, 1, 4)]),
    (lambda x, c: x[..., :1] * c + 1.0, [(1, 1, 4), ()]),  # the scale gives the shape
    (lambda x, c: x * 2.0 + 1.0, [(), ()]),
    (lambda x, c: x * jnp.full((1, 1, 4), 2.0) + jnp.full((1, 1, 4), 1.0), [(1, 1, 4), ()]),
  ],
)
def test_scales_and_offsets_that_are_one_number_are_stored_as_one(function, shapes):
  x, c = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32), jnp.arange(1.0, 5.0)[None, None]

  class Chain(nn.Module):
    @nn.compact
    def __call__(self, x):
      return function(x, self.param('c', lambda key: c))

  source = source_of(Chain(), {'params': {'c': c}}, x)
  folded = fold_affine(source.graph)
  (node,) = (node for node in folded.nodes if node.op == 'affine')
  assert [np.shape(constant) for constant in node.inputs[1:]] == shapes
  np.testing.assert_allclose(graph.evaluate(folded, x)[0], function(x, c), rtol=1e-6)


def test_a_transformer_is_captured():
  source, x = export_nets.transformer()
  expected = source.model.apply(source.variables, x)
  np.testing.assert_allclose(graph.evaluate(source.graph, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_fractional_bits_are_refused():
  model, variables = export_nets.network()
  bits = jax.tree.map(lambda b: b + 0.5, variables['bits'])
  with pytest.raises(ValueError, match='fractional bits: export after policy'):
    source_of(model, {**variables, 'bits': bits}, IMAGES)


def test_pruned_channels_are_refused():
  layer = QuantDense(3, quant=QuantConfig(granularity='kernel', choices=range(3)))
  variables = layer.init(jax.random.key(0), jnp.ones((1, 4)))
  source = source_of(layer, variables, jnp.ones((1, 4)))
  with pytest.raises(ValueError, match=r'can be pruned: take them away with compact\.compact'):
    _ = source.graph


def test_what_cannot_be_exported_is_named():
  class Shifts(nn.Module):
    @nn.compact
    def __call__(self, x):
      return QuantDense(3, quant=QuantConfig(), name='dense')(jnp.cbrt(x))

  class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Shifts(name='shifts')(x)

  model = Outer()
  source = source_of(model, model.init(jax.random.key(0), jnp.ones((1, 4))), jnp.ones((1, 4)))
  with pytest.raises(ValueError, match=r"operation 'cbrt' in Outer/shifts cannot .* export with --format stablehlo"):
    _ = source.graph
