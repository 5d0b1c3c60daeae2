import jax
import numpy as np
import pytest
from flax import linen as nn

from fracbits_jax import cost, tasks
from fracbits_jax.layers import QuantConfig, QuantDense, wrap
from fracbits_jax.train.imitation import Imitation, Rates
from fracbits_jax.train.penalty import Penalty

QUANT = QuantConfig(scheme='lsq', choices=(2, 4, 8), init_bits=4, signed_input=True)


class Net(nn.Module):
  """Two layers, and parameters of its own that have names like those of ranges."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x):
    own = [self.param(name, nn.initializers.ones, (1, 1)) for name in ('alpha', 'my_alpha')]
    x = nn.relu(QuantDense(6, quant=self.quant, name='first')(own[0] * x))
    return QuantDense(3, quant=self.quant, name='second')(own[1] * x)


@pytest.fixture(scope='module')
def made():
  x = jax.random.normal(jax.random.key(0), (2, 8, 5))
  variables = Net().init(jax.random.key(1), x[0])
  start = wrap.from_float(Net(quant=QUANT), variables, x[0])
  net, table = Net(quant=QUANT), cost.trace(Net(quant=QUANT), x[0])

  def imitation(rates):
    how = dict(task=tasks.CLASSIFICATION, table=table, rates=rates, steps=3, gain=4.0, damping=40.0, seed=0)
    batches, taught = [(x[0],), (x[1],)], [3 * Net().apply(variables, batch) for batch in x]
    return Imitation(lambda variables, arguments: net.apply(variables, *arguments), batches, taught, **how)

  return imitation, start, table


def moved(before, after):
  """The names of the variables that have moved."""
  flat = zip(*(jax.tree_util.tree_leaves_with_path(tree) for tree in (before, after)), strict=True)
  return {'/'.join(key.key for key in path) for (path, x), (_, y) in flat if np.any(x != y)}


RANGES = {f'params/{layer}/{which}' for layer in ('first', 'second') for which in ('alpha', 'kernel_alpha')}
WEIGHTS = {f'params/{layer}/{which}' for layer in ('first', 'second') for which in ('kernel', 'bias')}
BITS = {f'bits/{layer}/{which}' for layer in ('first', 'second') for which in ('kernel', 'input')}
OWN = {'params/alpha', 'params/my_alpha'}


def test_a_search_moves_bits_and_ranges_and_no_parameter_of_ones_own_that_has_such_a_name(made):
  imitation, start, table = made
  budget = cost.budget('bitops', table, equivalent_bits=3)
  searched = imitation(Rates(bits=0.03, ranges=0.01))(start, budget)
  assert moved(start, searched) == RANGES | BITS


def test_tuning_moves_these_as_the_weights_that_they_are(made):
  imitation, start, _ = made
  tuned = imitation(Rates(ranges=0.01, weights=0.5))(start)
  assert moved(start, tuned) == RANGES | WEIGHTS | OWN
  # In parts of the root mean square, which is 1: far more than a hundredth of it.
  assert all(abs(float(tuned['params'][name][0, 0]) - 1) > 0.1 for name in ('alpha', 'my_alpha'))


def test_budgets_of_a_metric_are_compiled_once_and_held_each(made, monkeypatch):
  imitation, start, table = made
  traced = []
  update = Penalty.update
  monkeypatch.setattr(Penalty, 'update', lambda *args: traced.append(args) or update(*args))
  search = imitation(Rates(bits=0.3, ranges=0.01))
  found = [
    search(start, cost.budget('bitops', table, equivalent_bits=bits))['bits']['first']['kernel'] for bits in (2.5, 7)
  ]
  assert found[0] < 4 < found[1]
  assert len(traced) == 1
  both = cost.budget('bitops', table, equivalent_bits=3, also=[cost.budget('size', table, equivalent_bits=3)])
  assert search(start, both)['bits']['first']['kernel'] < 4
  assert len(traced) == 2


def test_bits_stay_in_their_range(made):
  imitation, start, table = made
  budget = cost.budget('bitops', table, equivalent_bits=7)
  found = imitation(Rates(bits=100.0))(start, budget)['bits']
  assert {float(x) for x in jax.tree.leaves(found)} <= {2, 8}
