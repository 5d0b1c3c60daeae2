import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import cost
from fracbits_jax.fast.stored import stored_on_cpu
from fracbits_jax.layers import QuantConfig, QuantConv
from fracbits_jax.train import optim
from fracbits_jax.train.penalty import Controller, Penalty


@pytest.mark.parametrize('tree', [jnp.float32(3), jnp.int32(3), {'a': jnp.arange(3.0), 'b': jnp.float32(2)}])
def test_value_and_derivative_are_those_of_the_function(tree):
  function = lambda tree: sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(tree))
  stored = jax.jit(lambda tree: stored_on_cpu(function, tree))
  assert stored(tree) == function(tree)
  if not isinstance(tree, jax.Array) or tree.dtype == jnp.float32:
    given, expected = (jax.jit(jax.grad(lambda tree, f=f: f(tree) ** 2))(tree) for f in (stored, function))
    jax.tree.map(np.testing.assert_array_equal, given, expected)


def test_what_the_function_closes_over_has_its_derivative():
  given = jax.grad(lambda a, x: stored_on_cpu(lambda x: a * x**2, x))(jnp.float32(3), jnp.float32(2))
  compiled = jax.jit(jax.grad(lambda a, x: stored_on_cpu(lambda x: a * x**2, x)))(jnp.float32(3), jnp.float32(2))
  assert given == compiled == 4


@pytest.mark.parametrize('tree', [{}, {'a': jnp.zeros(0)}, {'a': 3.0}, {'a': np.float64(0.1)}])
def test_trees_without_anything_traced_are_left_to_the_function(tree):
  function = lambda tree: jnp.float32(2) + sum(np.sum(x) for x in jax.tree.leaves(tree))
  assert stored_on_cpu(function, tree) == function(tree)
  assert jax.jit(lambda tree: stored_on_cpu(function, tree))({}) == 2


def test_the_learning_rate_is_computed_once_for_all_parameters():
  learned = {'params': {str(i): jnp.ones(3) for i in range(12)}, 'bits': {}}
  mask = dict.fromkeys(learned['params'], True)
  optimizer = optim.optimizer(
    'sgd', optim.cosine_part(0.1, 100), momentum=0.9, weight_decay=0.1, mask=mask, bits_rate=None
  )
  update = jax.jit(optimizer.update)
  text = update.lower(learned, optimizer.init(learned), learned).compile().as_text()
  assert 1 <= len(re.findall(r' cosine\(', text)) <= 2


def test_a_depthwise_convolution_runs_under_shard_map():
  mesh = jax.make_mesh((4,), ('b',), axis_types=(jax.sharding.AxisType.Auto,))
  layer = QuantConv(8, (3, 3), feature_group_count=8, use_bias=False, quant=QuantConfig(scheme='lsq'))
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 8))
  variables = layer.init(jax.random.key(1), x)
  spec = jax.sharding.PartitionSpec
  mapped = jax.shard_map(layer.apply, mesh=mesh, in_specs=(spec(), spec('b')), out_specs=spec('b'))
  np.testing.assert_allclose(jax.jit(mapped)(variables, x), layer.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_the_program_of_a_search_grows_with_its_layers_and_not_with_their_square():
  def length(count):
    layers = tuple(
      cost.Layer(name=f'layer{i}', macs=10**6 + i, weights=10**4, channels=8, choices=(2, 4), input_choices=(2, 4))
      for i in range(count)
    )
    bits = cost.uniform_bits(layers, 3.0)
    controller = Controller(gain=1.0, damping=1.0, rate=lambda step: 0.1)
    penalty = Penalty(budget=cost.budget('bitops', layers, equivalent_bits=2.5), layers=layers, controller=controller)
    optimizer = optim.optimizer(
      'sgd', optim.cosine_part(0.1, 100), momentum=0.9, weight_decay=0.0, mask={}, bits_rate=10.0
    )

    def step(bits, state, multiplier):
      gradient = jax.grad(lambda bits: penalty(bits, multiplier)[0])(bits)
      return optimizer.update({'params': {}, 'bits': gradient}, state, {'params': {}, 'bits': bits})

    bits = jax.tree.map(jnp.float32, bits)
    state = optimizer.init({'params': {}, 'bits': bits})
    return jax.jit(step).lower(bits, state, jnp.float32(1)).compile().as_text().count('\n')

  assert length(40) < 2.5 * length(20)  # 3.6 with a copy of the sum in each gradient


def test_a_depthwise_kernel_is_not_quantized_again_for_every_output():
  layer = QuantConv(8, (3, 3), feature_group_count=8, use_bias=False, quant=QuantConfig(scheme='lsq'))
  x = jax.random.normal(jax.random.key(0), (2, 16, 16, 8))
  variables = layer.init(jax.random.key(1), x)
  text = jax.jit(layer.apply).lower(variables, x).compile().as_text()
  computations = re.split(r'\n(?=\S)', text)
  rounds_the_kernel = [c for c in computations if re.search(r'f32\[3,3,1,8\]\S* round', c)]
  assert rounds_the_kernel
  assert not [c for c in rounds_the_kernel if 'f32[2,16,16,8]' in c and not c.startswith('ENTRY')]
