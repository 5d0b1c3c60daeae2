import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import quantize
from fracbits_jax.fast import conv
from fracbits_jax.quantize import lsq, unit

X = jnp.linspace(-1, 2, 2 * 5 * 5 * 3).reshape(2, 5, 5, 3)


def convolution(kernel_shape, groups=1):
  kernel = jnp.linspace(-1, 1, np.prod(kernel_shape)).reshape(kernel_shape)
  numbers = jax.lax.conv_dimension_numbers(X.shape, kernel_shape, ('NHWC', 'HWIO', 'NHWC'))
  return lambda x: conv.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=groups
  )


LAYERS = {
  'kernel': lambda x: quantize.kernel(x, 2.5),
  'pruned kernel': lambda x: quantize.kernel(x, 2.5, kept=jnp.array([[[[True, False, True]]]])),
  'activation': lambda x: quantize.activation(x, 2.5, 1.5),
  'signed activation': lambda x: quantize.activation(x, 2.5, 1.5, signed=True),
  'drawn bits': lambda x: quantize.fractional(x, 2.5, noise=jnp.float32(0.3)),
  'learned steps': lambda x: lsq.kernel(x, 2.5, 1.5),
  'pointwise': convolution((1, 1, 3, 4)),
  'depthwise': convolution((3, 3, 1, 3), groups=3),
  'spatial': convolution((3, 3, 3, 4)),
}


def slope(layer, times=1):
  """The gradient of a network of so many of these layers beside each other."""
  return jax.grad(lambda x: sum(jnp.sum(jnp.square(layer(x))) for _ in range(times)))


def called(function):
  """The names of the functions that a program calls."""
  return re.findall(r'call @(\w+)', jax.jit(function).lower(X).as_text())


@pytest.mark.parametrize('name', LAYERS)
def test_layers_of_the_same_shapes_are_traced_once_and_leave_their_operations(name, monkeypatch):
  traced = []
  counted = {
    unit: ('interpolate',),
    lsq: ('interpolate',),
    conv: ('_shifted_sum',),
    conv._Pointwise: ('product', 'product_vjp'),
    conv._Spatial: ('product', 'product_vjp'),
  }
  for owner, names in counted.items():
    for inner in names:
      original = getattr(owner, inner)
      count = lambda *args, original=original, **kwargs: traced.append(name) or original(*args, **kwargs)
      monkeypatch.setattr(owner, inner, count)
  jax.clear_caches()
  first = jax.make_jaxpr(slope(lambda x: LAYERS[name](x)))(X)
  assert traced
  traced.clear()
  jax.make_jaxpr(slope(lambda x: LAYERS[name](x), times=2))(X)
  again = jax.make_jaxpr(slope(lambda x: LAYERS[name](x)))(X)
  assert not traced
  assert str(again) == str(first)
  wrapped = ('_kernel', '_activation', '_fractional', '_twos', '_conv')
  assert not [one for one in called(slope(LAYERS[name])) if one.startswith(wrapped)]


@pytest.mark.parametrize('name', LAYERS)
def test_outside_a_program_a_layer_gives_what_it_gives_within(name):
  np.testing.assert_allclose(slope(LAYERS[name])(X), jax.jit(slope(LAYERS[name]))(X), rtol=1e-5, atol=1e-5)
