"""Post-training mixed precision on a network that was never trained: what its float outputs are is all that counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fracbits_jax import cost, from_float, policy, quantize_model
from fracbits_jax.layers import GatedBatchNorm, QuantConfig, QuantConv, QuantDense, wrap
from fracbits_jax.train.post_training import PostTraining, Settings

QUANT = QuantConfig(scheme='lsq', kernel_ranges='channel', choices=(2, 3, 4, 8))


class Net(nn.Module):
  """Two layers with batch norm behind the first."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x, train=False):
    x = QuantConv(8, (3, 3), strides=2, use_bias=False, quant=self.quant, name='conv')(x / 255)
    x = nn.relu(GatedBatchNorm(use_running_average=not train, momentum=0.9, name='norm')(x))
    return QuantDense(5, quant=self.quant, name='dense')(x.reshape(len(x), -1))


class Plain(nn.Module):
  """The same by a stranger, without batch norm."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(5)(nn.relu(nn.Conv(8, (3, 3), strides=2)(x / 255)).reshape(len(x), -1))


class Tokens(nn.Module):
  """A classifier of tokens that are not masked; it has to be told whether it is trained."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, tokens, mask, train):
    x = nn.Embed(11, 6)(tokens) * mask[:, :, None]  # takes integers alone
    x = QuantDense(8, quant=self.quant, name='first')(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5, name='norm')(x))
    return QuantDense(5, quant=self.quant, name='second')(x.mean(1))


class Scanned(nn.Module):
  """Two layers in a scan, by a stranger."""

  @nn.compact
  def __call__(self, tokens, train):
    del train
    layers = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
    x, _ = layers(name='layers')(nn.Embed(11, 8, name='embed')(tokens), None)
    return nn.Dense(5, name='head')(x.mean(1))


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.relu(nn.Dense(8, name='dense')(x)), None


def sentences():
  rng = np.random.default_rng(0)
  return [(rng.integers(11, size=(8, 4)), np.float32(rng.integers(2, size=(8, 4)))) for _ in range(2)]


def batches():
  rng = np.random.default_rng(0)
  return [rng.integers(256, size=(16, 8, 8, 3)).astype(np.uint8) for _ in range(3)]


def confident(variables):
  """Logits that tell the examples apart."""
  return jax.tree.map(lambda x: 3 * x if x.ndim == 2 else x, variables)


@pytest.fixture(scope='module')
def found():
  variables = confident(Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
  settings = Settings(search_steps=12, tune_steps=60, calibration=32, ranges_rate=3e-3, weights_rate=1e-3)
  return PostTraining(Net(quant=QUANT), variables, batches(), settings=settings), variables


@pytest.fixture(scope='module')
def searched(found):
  net, _ = found
  budget = cost.budget('bitops', net.table, equivalent_bits=3)
  return net.search(budget), budget


def test_the_policy_holds_its_budget_and_is_no_farther_than_where_it_started(found, searched):
  (net, _), (chosen, budget) = found, searched
  assert budget.holds(chosen.bits(), net.table)
  start = net.first_policy(budget)
  distances = [net.distance(net.variables_at(each, tuned=False)) for each in (chosen, start)]
  assert distances[0] <= distances[1]


def test_tuning_comes_nearer_to_the_float_network(found, searched):
  (net, variables), (chosen, _) = found, searched
  calibrated, tuned = (net.variables_at(chosen, tuned=tuned) for tuned in (False, True))
  np.testing.assert_array_equal(calibrated['params']['conv']['kernel'], variables['params']['conv']['kernel'])
  assert net.distance(tuned) < net.distance(calibrated)
  moved = np.abs(tuned['params']['dense']['kernel'] - variables['params']['dense']['kernel'])
  assert 0 < moved.max() < 0.1 * np.std(variables['params']['dense']['kernel'])


def test_what_does_not_quantize_changes_no_statistics(found):
  """At 8 bits little happens, and the statistics of a batch are far from those of the float network, 0 and 1."""
  net, variables = found
  eight = cost.uniform_bits(net.table, 8)
  fine = policy.from_bits(eight, net.table, cost.Budget(metric='bitops', target=1.0))
  norm = net.variables_at(fine, tuned=False)['batch_stats']['norm']
  trained = variables['batch_stats']['norm']
  np.testing.assert_allclose(norm['mean'], trained['mean'], atol=0.02)
  np.testing.assert_allclose(norm['var'], trained['var'], rtol=0.05)


def test_bits_are_learned_from_where_the_integer_program_puts_them(found, searched):
  (net, _), (_, budget) = found, searched
  start = net.first_policy(budget)
  assert budget.holds(net._learned_policy(budget, start).bits(), net.table)
  scores = net.scores()
  for by_bits in scores.values():  # fewer bits are worse
    assert by_bits[2] > by_bits[4] > by_bits[8] >= 0


def test_a_network_of_ones_own_is_quantized_as_well():
  variables = confident(Plain().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
  images = [np.float32(batch) for batch in batches()]
  net = quantize_model(Plain(), images[0], default=QUANT, edge_bits=None)
  found = PostTraining(net, variables, images, settings=Settings(search_steps=6, tune_steps=12))
  budget = cost.budget('bitops', found.table, equivalent_bits=4)
  chosen = found.search(budget)
  assert budget.holds(chosen.bits(), found.table)
  quantized = found.variables_at(chosen)
  outputs = wrap.with_fixed_bits(net).apply(quantized, images[0])
  taught = Plain().apply(variables, images[0])
  assert np.corrcoef(outputs.reshape(-1), taught.reshape(-1))[0, 1] > 0.9


def test_a_network_of_several_inputs_of_any_dtype_is_called_as_it_has_to_be():
  """Tokens and a mask; statistics are those that quantization moves, whatever momentum the norm has."""
  quant = dataclasses.replace(QUANT, signed_input=True)
  variables = Tokens().init(jax.random.key(0), *sentences()[0], train=False)
  settings = Settings(search_steps=2, tune_steps=2, draws=1)
  found = PostTraining(Tokens(quant=quant), variables, sentences(), settings=settings, train=False)
  chosen = found.search(cost.budget('bitops', found.table, equivalent_bits=4))
  quantized = found.variables_at(chosen)
  assert wrap.with_fixed_bits(Tokens(quant=quant)).apply(quantized, *sentences()[0], train=False).shape == (8, 5)
  eight = policy.from_bits(cost.uniform_bits(found.table, 8), found.table, cost.Budget(metric='bitops', target=1.0))
  norm = found.variables_at(eight, tuned=False)['batch_stats']['norm']
  np.testing.assert_allclose(norm['mean'], 0, atol=0.02)
  np.testing.assert_allclose(norm['var'], 1, rtol=0.05)


def test_ranges_of_a_strangers_network_are_those_of_the_policys_bits():
  """Each layer of a scan at its own bits, and a search from there."""
  tokens = [tokens for tokens, _ in sentences()]
  variables = Scanned().init(jax.random.key(0), tokens[0], train=False)
  make = lambda bits: quantize_model(
    Scanned(), tokens[0], default=dataclasses.replace(QUANT, init_bits=bits), edge_bits=None, train=False
  )
  settings = Settings(search_steps=2, tune_steps=0, calibration=8)
  found = PostTraining(make(8), variables, tokens, settings=settings, train=False)
  bits = cost.fill_bits(found.table, lambda layer, *_: 2 if layer.index == (1,) else 3)
  mixed = policy.from_bits(bits, found.table, cost.Budget(metric='bitops', target=1.0))
  params = found.variables_at(mixed)['params']
  expected = {b: from_float(make(b), variables, tokens[0], train=False)['params'] for b in (2, 3)}
  for which in ('alpha', 'kernel_alpha'):
    of_layers = params['layers']['dense'][which]
    # The first layer of all: what the second one is calibrated on does not depend on bits.
    np.testing.assert_allclose(of_layers[0], expected[3]['layers']['dense'][which][0], rtol=1e-6)
    np.testing.assert_allclose(of_layers[1], expected[2]['layers']['dense'][which][1], rtol=1e-6)
    np.testing.assert_allclose(params['head'][which], expected[3]['head'][which], rtol=1e-6)
  budget = cost.budget('bitops', found.table, equivalent_bits=4)
  assert budget.holds(found.search(budget).bits(), found.table)


def test_what_cannot_be_called_is_refused():
  with pytest.raises(ValueError, match=r'Linear has no variables apart from itself.*give a linen network'):
    PostTraining(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), {}, batches())
  with pytest.raises(ValueError, match=r'Net is a float network: give it with quant=QuantConfig'):
    PostTraining(Net(), {}, batches())
  with pytest.raises(ValueError, match=r'batches are one array of shape \(16, 8, 8, 3\): give a list of arrays'):
    PostTraining(Net(quant=QUANT), {}, batches()[0])


def test_nothing_to_learn_from_is_refused():
  with pytest.raises(ValueError, match='there are no batches to learn from: give at least one'):
    PostTraining(Net(quant=QUANT), {}, [])
