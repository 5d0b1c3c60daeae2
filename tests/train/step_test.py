"""What a step compiles to, and for which platforms."""

import functools
import gc

import chex
import fewer_blocks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from fracbits_jax import models, quantize
from fracbits_jax.fast import platforms, sums
from fracbits_jax.layers import QuantConfig, QuantDense
from fracbits_jax.models.resnet import ResNet
from fracbits_jax.quantize import lsq
from fracbits_jax.train import step

CHOICES = tuple(range(2, 9))


def small(name='mobilenet_v2', **kwargs):
  quant = QuantConfig(choices=CHOICES, init_bits=3.5)
  return models.create(name, num_classes=4, quant=quant, width=0.1, small_images=True, **kwargs)


def starting_state(model, optimizer, size=16):
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  learned = {'params': variables['params'], 'bits': variables.get('bits', {})}
  return step.TrainState(
    step=jnp.int32(0),
    **learned,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(learned),
    multiplier=jnp.float32(0),
  )


def batch(size=16, count=8):
  images = jax.random.randint(jax.random.key(1), (count, size, size, 3), 0, 256).astype(jnp.float32)
  return {'image': images, 'label': jnp.arange(count) % 4}


@functools.cache
def lowered(name, platform, **settings):
  """The search step as a platform's compiler gets it, and how many convolutions the network has."""
  quant = QuantConfig(choices=CHOICES, init_bits=3.5)
  two_stages = functools.partial(ResNet, num_classes=4, quant=quant, width=0.1, small_images=True, stages=(1, 1))
  model = two_stages() if name == 'resnet' else small(name)
  optimizer = optax.sgd(0.1)
  one = jax.vmap(step.make_train_step(model, optimizer, **settings), axis_name=step.AXIS)
  add_axis = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype))
  state = jax.eval_shape(lambda: starting_state(model, optimizer))
  text = jax.export.export(jax.jit(one), platforms=[platform])(add_axis(state), add_axis(batch())).mlir_module()
  return text, sum(x.ndim == 4 for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(('name', 'platform'), [('mobilenet_v2', 'cuda'), ('resnet', 'tpu')])
def test_a_search_step_lowers_for_other_platforms_with_plain_convolutions(platform, name):
  with fewer_blocks.mobilenets():
    text, kernels = lowered(name, platform)
  # Forward, gradient of the inputs except the images, gradient of the kernel.
  assert kernels > 5
  assert text.count('stablehlo.convolution') == 3 * kernels - 1


def test_rematerialisation_computes_quantized_inputs_again_but_no_convolution():
  (kept, kernels), (again, _) = (lowered('resnet', 'cuda', **settings) for settings in ({}, {'remat': True}))
  assert again.count('stablehlo.convolution') == kept.count('stablehlo.convolution') == 3 * kernels - 1
  assert again.count('call @round') > kept.count('call @round') > 2 * kernels  # at the lower and the upper bits


def test_rematerialisation_changes_no_result():
  model, optimizer = (
    tiny.smallest(num_classes=4, quant=QuantConfig(init_bits=3.5), width=0.125),
    optax.sgd(0.1),
  )
  add_axis = functools.partial(jax.tree.map, lambda x: x[None])
  results = [
    jax.jit(jax.vmap(step.make_train_step(model, optimizer, remat=remat), axis_name=step.AXIS))(
      add_axis(starting_state(model, optimizer)), add_axis(batch())
    )
    for remat in (False, True)
  ]
  chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of the CPU')
@pytest.mark.parametrize('signed', [False, True])
def test_the_gradient_of_a_clipped_input_stores_nothing_of_its_size(signed):
  shape = (16, 16, 16, 32)
  x, g = (jax.ShapeDtypeStruct(shape, jnp.float32) for _ in range(2))
  scalar = jax.ShapeDtypeStruct((), jnp.float32)

  def backward(x, g, bits, alpha):
    function = functools.partial(quantize.activation, signed=signed, choices=CHOICES)
    return jax.vjp(function, x, bits, alpha)[1](g)

  options = platforms.compiler_options()
  compiled = jax.jit(backward, compiler_options=options).lower(x, g, scalar, scalar).compile()
  # An eighth of the inputs for each of the two sums, and small change.
  assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * 4 * np.prod(shape)


@pytest.mark.parametrize('shape', [(16, 3, 3, 5), (7, 3, 5), (9,), (4,), ()])
@pytest.mark.parametrize('by_channel', [False, True])
def test_sums_are_sums(shape, by_channel):
  if by_channel and not shape:
    pytest.skip('no channels')
  terms = [jax.random.normal(jax.random.key(i), shape) for i in range(3)]
  for term, total in zip(terms, jax.jit(lambda *t: sums.sums(t, by_channel=by_channel))(*terms), strict=True):
    axes = tuple(range(len(shape) - by_channel))
    np.testing.assert_allclose(total, np.sum(term, axis=axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scheme', ['original', 'lsq'])
def test_fixed_integers_give_what_learned_bits_give_at_integers(scheme):
  quant = QuantConfig(choices=CHOICES, init_bits=3, scheme=scheme)
  create = functools.partial(tiny.smallest, num_classes=4, width=0.125)
  learned, fixed = (
    create(quant=quant),
    create(quant=QuantConfig(choices=CHOICES, init_bits=3, scheme=scheme, learned=False)),
  )
  images = batch()['image']
  variables = jax.jit(learned.init)(jax.random.key(0), images)

  def run(model, variables):
    loss = lambda params: jnp.sum(jnp.square(model.apply({**variables, 'params': params}, images)))
    return model.apply(variables, images), jax.grad(loss)(variables['params'])

  results = [jax.jit(functools.partial(run, model))(variables) for model in (learned, fixed)]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)


def test_bfloat16_computes_near_float32_and_keeps_what_is_learned_in_float32():
  optimizer = optax.sgd(0.1)
  states = {}
  for dtype in (None, jnp.bfloat16):
    model = small('smallest', dtype=dtype)
    state = starting_state(model, optimizer)
    train_step = jax.jit(jax.vmap(step.make_train_step(model, optimizer), axis_name=step.AXIS))
    add_axis = functools.partial(jax.tree.map, lambda x: x[None])
    states[dtype], metrics = train_step(add_axis(state), add_axis(batch()))
    assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves(states[dtype]))
    assert metrics['loss'].dtype == jnp.float32
  assert (
    'bf16' in jax.jit(small('smallest', dtype=jnp.bfloat16).apply).lower(state.variables, batch()['image']).as_text()
  )
  exact, near = (jax.tree.leaves(states[dtype].bits) for dtype in (None, jnp.bfloat16))
  for a, b in zip(exact, near, strict=True):
    np.testing.assert_allclose(a, b, atol=0.05)


def test_options_that_a_compiler_does_not_know_are_left_out(monkeypatch):
  monkeypatch.setattr(platforms, '_CPU_OPTIONS', {'xla_of_another_version': '1'})
  platforms._known_options.cache_clear()
  try:
    assert platforms.compiler_options('cpu') == {}
  finally:
    platforms._known_options.cache_clear()
  assert platforms.compiler_options('gpu') == {}


def test_a_given_folder_of_compiled_programs_is_left_alone(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    platforms.cache_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == before  # set by the tests' configuration
    jax.config.update('jax_compilation_cache_dir', None)
    platforms.cache_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_a_program_looks_for_garbage_rarely_but_does():
  before = gc.get_threshold()
  try:
    platforms.collect_garbage_rarely()
    assert gc.isenabled()
    assert gc.get_threshold() > before
    assert gc.get_freeze_count() > 0
  finally:
    gc.unfreeze()
    gc.set_threshold(*before)


class TwoLayers(nn.Module):
  """Dense layers with and without a range for each channel, by `lsq` at 2 bits."""

  @nn.compact
  def __call__(self, inputs, train=False):
    del train
    how = dict(scheme='lsq', kernel_bits=2, input_bits=8)
    hidden = nn.relu(QuantDense(6, quant=QuantConfig(**how), name='first')(inputs.reshape(len(inputs), -1) / 255))
    return QuantDense(4, quant=QuantConfig(**how, kernel_ranges='channel'), name='second')(hidden)


@pytest.mark.parametrize('frozen_norm', [False, True])
def test_dampening_adds_what_draws_each_weight_to_its_level(frozen_norm):
  optimizer, start = optax.sgd(1.0), starting_state(TwoLayers(), optax.sgd(1.0), size=8)
  narrow = lambda path, x: x / 4 if path[-1].key == 'kernel_alpha' else x  # so that some weights are clipped
  start = start.replace(params=jax.tree_util.tree_map_with_path(narrow, start.params))
  how = {'dampening': lambda step: 0.01 * (step + 1), 'frozen_norm': frozen_norm}
  after = {}
  for name, settings in (('plain', {'frozen_norm': frozen_norm}), ('dampened', how)):
    one = jax.jit(jax.vmap(step.make_train_step(TwoLayers(), optimizer, **settings), axis_name=step.AXIS))
    state, _ = one(*jax.tree.map(lambda x: jnp.asarray(x)[None], (start, batch(size=8))))
    after[name] = jax.tree.map(lambda x: x[0], state.params)
  for name in ('first', 'second'):
    params = start.params[name]
    level = lsq.kernel(params['kernel'], 2, params['kernel_alpha'], learned=False)
    limit = jnp.abs(params['kernel_alpha']).reshape(1, -1)
    # Of the levels -1, -1/2, 0 and 1/2 the last is the largest value that is not clipped.
    inside = (params['kernel'] >= -limit) & (params['kernel'] <= limit / 2)
    expected = -0.01 * 2 * jnp.where(inside, params['kernel'] - level, 0)
    moved = after['dampened'][name]['kernel'] - after['plain'][name]['kernel']
    np.testing.assert_allclose(moved, expected, atol=2e-6)
    assert jnp.abs(expected).max() > 1e-4
    assert (jnp.abs(params['kernel']) > limit).any()
    np.testing.assert_array_equal(*(after[how][name]['kernel_alpha'] for how in ('plain', 'dampened')))
