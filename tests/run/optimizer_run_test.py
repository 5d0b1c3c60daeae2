import jax
import numpy as np
import pytest
from tiny import tiny

from fracbits_jax.run import begin, experiment
from fracbits_jax.train import optim


def moved(phase, **changes):
  """The experiment, and the updates of a phase's first step where every gradient is 1."""
  prepared = experiment.prepare(tiny(**changes))
  optimizer = begin.optimizer(prepared, phase, lambda step: 0.1)
  learned = {name: begin.shapes(prepared, phase)[name] for name in ('params', 'bits')}
  learned = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), learned)
  return prepared, optimizer.update(learned, optimizer.init(learned), learned)[0]


@pytest.mark.parametrize('phase', ['search', 'finetune'])
def test_balanced_bits_move_by_their_gradient_for_each_unit_of_the_budget(phase):
  prepared, found = moved(phase, **{'optimizer.bits_balance': 1.0})
  _, plain = moved(phase)
  jax.tree.map(np.testing.assert_array_equal, found['params'], plain['params'])
  scale = optim.bits_scale(prepared.budget, prepared.layers, begin.initial_bits(prepared), 1.0)
  assert len({float(factor) for factor in jax.tree.leaves(scale)}) > 1
  expected = jax.tree.map(lambda update, factor: update * factor, plain['bits'], scale)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found['bits'], expected)
  assert any(np.any(x) for x in jax.tree.leaves(found['bits'])) == (phase == 'search')


@pytest.mark.parametrize('phase', ['pretrain', 'search', 'finetune'])
def test_the_norm_of_the_weights_gradient_is_limited_in_every_phase(phase):
  common = {'optimizer.momentum': 0.0, 'optimizer.weight_decay': 0.0}
  _, plain = moved(phase, **common)
  _, found = moved(phase, **common, **{'optimizer.clip_norm': 2.0})
  norm = lambda tree: np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))
  assert norm(plain['params']) > 10 * 0.1 * 2
  np.testing.assert_allclose(norm(found['params']), 0.1 * 2, rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, found['bits'], plain['bits'])


@pytest.mark.parametrize('phase', ['search', 'finetune'])
def test_bits_of_channels_move_at_a_rate_of_their_own(phase):
  prepared, found = moved(phase, **{'quant.granularity': 'kernel', 'optimizer.channel_bits_rate': 8.0})
  _, plain = moved(phase, **{'quant.granularity': 'kernel'})
  learned = {layer.path: found['bits'][layer.path] for layer in prepared.layers if layer.kernel_bits is None}
  assert learned
  for path, widths in learned.items():
    before = plain['bits'][path]
    np.testing.assert_allclose(widths['kernel'], 8 * before['kernel'], rtol=1e-6)
    if 'input' in widths:
      np.testing.assert_array_equal(widths['input'], before['input'])
  assert any(np.any(x) for x in jax.tree.leaves(found['bits'])) == (phase == 'search')
