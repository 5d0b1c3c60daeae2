import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from fracbits_jax import models
from fracbits_jax.run import begin
from fracbits_jax.train import nonfinite

MODEL = models.create('resnet8', num_classes=4, width=0.25, axis_name='batch')


@pytest.mark.parametrize(('layer', 'found'), [('stage2_block1_conv1', 'outputs'), (None, None)])
def test_the_first_layer_that_overflows_is_named(layer, found):
  variables = jax.vmap(MODEL.init, axis_name='batch', in_axes=(None, 0), out_axes=None)
  variables = variables(jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  if layer is not None:
    params[f'{layer}/kernel'] = jnp.full_like(params[f'{layer}/kernel'], 1e38)
  variables = {**variables, 'params': traverse_util.unflatten_dict(params, sep='/'), 'bits': {}}
  state = jax.tree.map(np.asarray, begin.state(variables, optax.sgd(0.1)))
  batch = {'image': np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)}
  expected = layer and f'the {found} of layer {layer}'
  assert nonfinite.first_variable(state.variables) is None
  assert nonfinite.first_layer(MODEL, state, batch) == expected
