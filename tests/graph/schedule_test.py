import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax.graph import arena, capture
from fracbits_jax.graph.fold import fold_affine
from fracbits_jax.graph.schedule import codes_before_pools, schedule
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

IMAGE = QuantConfig(kernel_bits=8, input_bits=8, weight_only=True)


def _schedule(make):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return make(x)

  model, x = Net(), jnp.zeros((1, 8, 8, 3))
  variables = model.init(jax.random.key(0), x)
  return schedule(codes_before_pools(fold_affine(capture.capture(model, variables, x))))


def _conv(features, size=3, **how):
  return QuantConv(features, (size, size), quant=QuantConfig(), use_bias=False, **how)


def test_accumulators_of_a_chain_are_not_stored():
  def net(x):
    x = nn.relu(QuantConv(4, (3, 3), quant=IMAGE, name='stem')(x))
    x = nn.relu(_conv(6, name='conv')(x))
    return QuantDense(5, quant=QuantConfig(), name='dense')(x.mean((1, 2)))

  found = _schedule(net)
  kinds = [(b.kind, b.elements, b.bits, b.first, b.last) for b in found.buffers]
  assert kinds == [
    ('input', 192, 8, 0, 0),
    ('codes', 256, 'conv', 0, 1),
    ('sums', 6, 64, 1, 2),
    ('codes', 6, 'dense', 2, 3),
    ('output', 5, 32, 3, 3),
  ]
  assert found.place({'conv': 3, 'dense': 4})[1] == 192 + 256 * 3 // 8
  assert found.place({'conv': 8, 'dense': 4})[1] == 192 + 256


def test_a_shortcut_is_stored_while_it_is_needed_and_products_that_are_added_run_together():
  def net(x):
    x = nn.relu(QuantConv(4, (3, 3), quant=IMAGE, name='stem')(x))
    x = x + _conv(4, name='inner')(nn.relu(_conv(4, name='outer')(x)))
    return (_conv(8, name='last')(nn.relu(x)) + _conv(8, 1, name='shortcut')(nn.relu(x))).mean((1, 2))

  found = _schedule(net)
  assert [len(step.roots) for step in found.steps] == [1, 1, 1, 2, 1]
  raw = [(b.first, b.last, b.elements) for b in found.buffers if b.kind == 'raw']
  assert raw == [(0, 2, 256)]  # of the identity alone
  assert [b.bits for b in found.buffers if b.kind == 'codes'] == ['outer', 'inner', 'last', 'shortcut']


def test_a_max_pool_takes_codes():
  def net(x):
    x = nn.max_pool(nn.relu(QuantConv(4, (3, 3), quant=IMAGE)(x)), (2, 2), strides=(2, 2))
    return _conv(2, name='conv')(x)

  found = _schedule(net)
  assert [(b.kind, b.bits, b.elements) for b in found.buffers[1:3]] == [('codes', 'conv', 256), ('codes', 'conv', 64)]


def test_what_is_refused_is_named():
  with pytest.raises(ValueError, match=r'mul.* has no meaning in integers'):
    _schedule(lambda x: _conv(3, name='a')(x) * _conv(3, name='b')(x))


def test_tensors_that_are_live_at_once_never_overlap():
  rng = np.random.default_rng(0)
  reached = 0
  for _ in range(200):
    n = int(rng.integers(1, 14))
    first = rng.integers(0, 12, n).tolist()
    last = [f + int(rng.integers(0, 5)) for f in first]
    sizes = rng.integers(0, 50, n).tolist()
    offsets, total = arena.place(sizes, first, last)
    least = arena.peak(sizes, first, last)
    for i in range(n):
      assert offsets[i] + sizes[i] <= total
      for j in range(i):
        if first[i] <= last[j] and first[j] <= last[i]:
          assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
    assert least <= total <= 2 * least
    reached += total == least
  assert reached > 150
  assert arena.place([], [], []) == ([], 0)
