import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import conv, lsq, quantize

X, KERNEL = jnp.linspace(-1, 2, 2 * 5 * 5 * 3).reshape(2, 5, 5, 3), jnp.linspace(-1, 1, 12).reshape(1, 1, 3, 4)

LAYERS = {
  'kernel': lambda x: quantize.kernel(x, 2.5),
  'activation': lambda x: quantize.activation(x, 2.5, 1.5),
  'fractional': lambda x: quantize.fractional(x, 2.5),
  'learned steps': lambda x: lsq.kernel(x, 2.5, 1.5),
  'convolution': lambda x: conv.conv_general_dilated(
    x, KERNEL, (1, 1), 'SAME', dimension_numbers=jax.lax.conv_dimension_numbers(x.shape, KERNEL.shape, conv._NHWC)
  ),
}


def slope(layer):
  return jax.grad(lambda x: jnp.sum(jnp.square(layer(x))))


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_is_traced_once_and_stands_in_the_program_as_if_it_were_not_wrapped(name, monkeypatch):
  fresh = lambda: slope(lambda x: LAYERS[name](x))
  traced = []
  for module, inner in ((quantize, 'interpolate'), (conv._Pointwise, 'product'), (conv._Pointwise, 'product_vjp')):
    original = getattr(module, inner)
    counted = lambda *args, original=original, **kwargs: traced.append(name) or original(*args, **kwargs)
    monkeypatch.setattr(module, inner, counted)
  jax.clear_caches()
  first = jax.make_jaxpr(fresh())(X)
  assert traced
  traced.clear()
  again = jax.make_jaxpr(fresh())(X)
  assert not traced
  assert str(again) == str(first)
  called = {eqn.params['name'] for eqn in first.jaxpr.eqns if eqn.primitive.name in ('jit', 'pjit')}
  assert not [name for name in called if name.startswith(('_kernel', '_activation', '_fractional', '_twos', '_conv'))]


@pytest.mark.parametrize('name', LAYERS)
def test_outside_a_program_a_layer_gives_what_it_gives_within(name):
  np.testing.assert_allclose(slope(LAYERS[name])(X), jax.jit(slope(LAYERS[name]))(X), rtol=1e-6, atol=1e-6)
