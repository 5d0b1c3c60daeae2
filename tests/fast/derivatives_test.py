import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fracbits_jax import quantize
from fracbits_jax.fast import conv, pool
from fracbits_jax.fast.stored import stored_on_cpu
from fracbits_jax.fast.sums import sums
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense
from fracbits_jax.quantize import bitwidths, lsq

CHOICES = (1, 2, 4)
fixed = lax.stop_gradient


def straight(x, quantized):
  return x + fixed(quantized - x)


def between(quantizer, bits, noise=None):
  """The formula of fractional bits, with whatever derivative `quantizer` has."""
  bits = bits[None] if bits.ndim else bits  # one for each channel
  low, high, f = (fixed(b) for b in bitwidths.neighbours(bits, CHOICES))
  f = f + jnp.where((bits >= CHOICES[0]) & (bits <= CHOICES[-1]), bits - fixed(bits), 0) / (high - low)
  if noise is not None:
    f = straight(f, (f > jax.nn.sigmoid(-noise)).astype(jnp.float32))
  return (1 - f) * quantizer(low) + f * quantizer(high)


def on_unit(x, bits, noise=None, scheme='original'):
  plain = lambda b: fixed(quantize.uniform(x, b, scheme=scheme, zero_point=0.5))
  return between(lambda b: straight(x, plain(b)), bits, noise)


def dorefa(w, bits, noise=None, scheme='original', kept=1.0):
  t = jnp.tanh(w) * kept
  return 2 * on_unit((t / jnp.max(jnp.abs(t)) + 1) / 2, bits, noise, scheme) - 1


def rescaled(kernel):
  return kernel * fixed(quantize.rescale_factor(kernel, KEPT))


def pact(x, bits, alpha, signed=False):
  a = jnp.abs(alpha)
  clipped = jnp.where(x > a, a, jnp.where(x < (-a if signed else 0), -a if signed else 0.0, x))
  return a * (2 * on_unit((clipped / a + 1) / 2, bits) - 1) if signed else a * on_unit(clipped / a, bits)


def learned_steps(x, bits, alpha, count):
  scale = lsq.gradient_scale(fixed(bits), count, signed=True)
  a = jnp.abs(fixed(alpha) + scale * (alpha - fixed(alpha)))

  def level(b):
    half = 2.0 ** (b - 1)
    clipped = lambda v: jnp.where(v > half - 1, half - 1, jnp.where(v < -half, -half, v))
    many = straight(clipped(x / a * half), jnp.round(clipped(x / a * half))) / half
    one = straight(jnp.clip(x / a, -1, 1), jnp.where(x < 0, -0.5, 0.5))
    return a * jnp.where(b == 1, one, many)

  return between(level, bits)


def windows(x):
  return jnp.max(jnp.stack([x[:, i : i + 3 : 2, j : j + 3 : 2] for i in range(2) for j in range(2)]), axis=0)


def convolution(function, stride, groups, padding):
  numbers = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
  how = {'window_strides': (stride, stride), 'padding': padding, 'dimension_numbers': numbers}
  return functools.partial(function, feature_group_count=groups, **how)


def convolutions(kernel_shape, stride=1, groups=1, padding='SAME', x_shape=(1, 3, 4, 2)):
  pair = conv.conv_general_dilated, lax.conv_general_dilated
  pair = [convolution(function, stride, groups, padding) for function in pair]
  return *pair, (normal(0, *x_shape), normal(1, *kernel_shape))


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


W, UNIT, BITS, ALPHA = normal(0, 3, 4), jnp.linspace(0.03, 0.97, 8), jnp.float32(2.3), jnp.float32(1.3)
EACH = jnp.array([1.2, 2.0, 3.1, 4.0])
KEPT = (jnp.arange(12) != 5).reshape(3, 4)
NOISE = jnp.float32(0.4)
q = functools.partial
FUNCTIONS = {
  'uniform': (lambda x: quantize.uniform(x, 3), lambda x: straight(x, quantize.uniform(x, 3)), (UNIT,)),
  'fractional, modified, at the end': (
    q(quantize.fractional, choices=CHOICES, scheme='modified'), q(on_unit, scheme='modified'), (UNIT, jnp.float32(4)),
  ),
  'drawn': (q(quantize.fractional, choices=CHOICES, noise=NOISE), q(on_unit, noise=NOISE), (UNIT, BITS)),
  'kernel by channel, rescaled': (
    lambda w, b: quantize.rescale(quantize.kernel(w, b, choices=CHOICES, kept=KEPT), KEPT),
    lambda w, b: rescaled(dorefa(w, b, kept=KEPT)), (W, EACH),
  ),
  'activation': (q(quantize.activation, choices=CHOICES), pact, (W, BITS, ALPHA)),
  'signed activation': (q(quantize.activation, choices=CHOICES, signed=True), q(pact, signed=True), (W, BITS, -ALPHA)),
  'lsq kernel by channel': (q(lsq.kernel, choices=CHOICES), q(learned_steps, count=12), (W, EACH, ALPHA)),
  'lsq activation': (q(lsq.activation, choices=CHOICES, signed=True), q(learned_steps, count=4), (W, BITS, ALPHA)),
  'pointwise': convolutions((1, 1, 2, 3), stride=2),
  'depthwise': convolutions((3, 3, 1, 2), stride=2, groups=2),
  'spatial': convolutions((3, 3, 2, 2), stride=2),
  'max pool': (q(pool.max_pool, size=2, stride=2, padding=0), windows, (normal(2, 1, 4, 4, 2),)),
  'sums': (
    lambda a, b: jnp.stack(sums((a, b))), lambda a, b: jnp.stack([jnp.sum(a), jnp.sum(b)]), (W, normal(3, 3, 4)),
  ),
  'stored': (
    lambda a, b: stored_on_cpu(lambda tree: jnp.sin(tree['a']) * tree['b'], {'a': a, 'b': b}),
    lambda a, b: jnp.sin(a) * b, (W, ALPHA),
  ),
}  # fmt: skip


def loss_of(function):
  def loss(*arguments):
    y = function(*arguments)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)) + jnp.sum(y**2) / 3

  return loss


def everything(function, arguments, tangents, *, twice=False):
  """Forward mode, reverse mode, second derivatives, `twice` for both kinds, and all of it over an axis of examples."""
  every, loss = tuple(range(len(arguments))), loss_of(function)
  rest = arguments[1:]
  several = [jnp.stack([x, x + 0.01 * t]) for x, t in zip(arguments, tangents, strict=True)]
  over_examples = lambda *rest: jnp.sum(jax.vmap(lambda x: function(x, *rest))(several[0]))
  return {
    'jvp': jax.jvp(function, arguments, tangents),
    'gradient': jax.grad(loss, every)(*arguments),
    'of the first alone': jax.linearize(lambda x: function(x, *arguments[1:]), arguments[0])[1](tangents[0]),
    'hessian': jax.jacfwd(jax.jacrev(loss, every), every)(*arguments),
    **({'hessian the other way': jax.jacrev(jax.jacfwd(loss, every), every)(*arguments)} if twice else {}),
    'gradient over examples': jax.grad(over_examples, range(len(rest)))(*rest) if rest else (),
  }


@pytest.mark.parametrize('name', FUNCTIONS)
def test_all_derivatives_are_those_of_the_formula(name):
  ours, formula, arguments = FUNCTIONS[name]
  tangents = tuple(normal(7 + i, *x.shape) for i, x in enumerate(arguments))
  given = jax.jit(functools.partial(everything, ours, twice=True))(arguments, tangents)
  expected = jax.jit(functools.partial(everything, formula))(arguments, tangents)
  expected['hessian the other way'] = expected['hessian']
  for kind in expected:
    close(given[kind], expected[kind], kind)


def close(given, expected, kind):
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4, err_msg=kind), given, expected)


def on_devices(function, arguments, which, check_vma):
  """Gradients within `shard_map`; the arguments in `which` have an axis of devices, the others are the same on all."""
  mesh = jax.make_mesh((4,), ('b',), axis_types=(jax.sharding.AxisType.Auto,))
  specs = tuple(jax.sharding.PartitionSpec(*['b'] * (i in which)) for i in range(len(arguments)))

  def one_device(*arguments):
    arguments = [x[0] if i in which else x for i, x in enumerate(arguments)]
    gradients = jax.grad(loss_of(function), range(len(arguments)))(*arguments)
    if not check_vma and which:  # JAX does not know then which gradients to sum
      gradients = [g if i in which else lax.psum(g, 'b') for i, g in enumerate(gradients)]
    return tuple(g[None] if i in which else g for i, g in enumerate(gradients))

  mapped = jax.shard_map(one_device, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma)
  return mapped(*arguments)


def on_one_device(function, arguments, which):
  each = jax.vmap(loss_of(function), [0 if i in which else None for i in range(len(arguments))], axis_size=4)
  total = lambda *arguments: jnp.sum(each(*arguments)) / (1 if which else 4)
  return jax.grad(total, range(len(arguments)))(*arguments)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_gradients_within_shard_map_are_those_of_one_device(name):
  ours, formula, arguments = FUNCTIONS[name]
  last = len(arguments) - 1

  @jax.jit
  def run():
    kinds = {}
    for which, check_vma in (((), True), ((0,), True), ((last,), True), ((0,), False)):
      several = [jnp.stack([x, x * 0.99, x * 0.98, x * 0.97]) if i in which else x for i, x in enumerate(arguments)]
      given, expected = on_devices(ours, several, which, check_vma), on_one_device(formula, several, which)
      kinds[f'{which}, check_vma={check_vma}'] = given, expected
    return kinds

  for kind, (given, expected) in run().items():
    close(given, expected, kind)


def test_networks_are_differentiated_in_both_directions_and_within_shard_map():
  quant = functools.partial(QuantConfig, choices=CHOICES, init_bits=2.3)
  net = nn.Sequential([
    QuantConv(4, (3, 3), feature_group_count=4, quant=quant(scheme='lsq', signed_input=True)),
    nn.relu,
    QuantConv(3, (1, 1), quant=quant(granularity='kernel')),
    lambda x: pool.max_pool(x, size=2, stride=2, padding=0).reshape(len(x), -1),
    QuantDense(2, quant=quant(signed_input=True, sat=True)),
  ])  # fmt: skip
  x = normal(0, 4, 4, 4, 4)
  variables = net.init(jax.random.key(1), x)
  tangents = jax.tree.map(lambda a: 0.1 * normal(2, *a.shape), variables)
  loss = lambda variables, x: jnp.sum(jnp.sin(net.apply(variables, x)))

  def one_device(variables, x):
    gradient = jax.grad(loss)
    along = lambda variables: jax.jvp(lambda v: loss(v, x), [variables], [tangents])[1]
    forward_last = jax.jvp(lambda v: gradient(v, x), [variables], [tangents])[1]
    return gradient(variables, x), lax.psum(along(variables), 'b'), forward_last, jax.grad(along)(variables)

  mesh = jax.make_mesh((4,), ('b',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec
  mapped = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=(spec(), spec('b')), out_specs=spec()))
  gradient, change, forward_last, reverse_last = mapped(variables, x)
  close(gradient, jax.jit(jax.grad(loss))(variables, x), 'gradient')
  products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, tangents)
  close(change, sum(jax.tree.leaves(products)), 'change')
  close(forward_last, reverse_last, 'second derivatives')
