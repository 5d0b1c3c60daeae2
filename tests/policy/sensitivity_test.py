import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import tiny

from fracbits_jax import cost, layers, policy, tasks
from fracbits_jax.commands import sensitivity as sensitivity_command
from fracbits_jax.fast import conv
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense
from fracbits_jax.policy import assignment, sensitivity
from fracbits_jax.run import experiment, runner

CHOICES = (1, 2, 4, 8)


class Net(nn.Module):
  """Two layers, small enough for a whole Hessian."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(QuantConv(2, (2, 2), strides=2, quant=self.quant, name='conv')(x / 255))
    return QuantDense(3, quant=self.quant, name='dense')(x.reshape(len(x), -1))


def cross_entropy(logits, batch):
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()


def squared_error(outputs, batch):
  return jnp.mean((outputs - batch['target']) ** 2)


class Last(nn.Module):
  """Kernels whose output channels are the last axis; with the others below the same networks."""

  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x, scale=1.0):
    x = nn.relu(QuantConv(4, (1, 1), quant=self.quant, name='first')(scale * x)).reshape(len(x), -1)
    x = nn.relu(QuantDense(6, quant=self.quant, name='second')(x))
    return QuantDense(3, quant=self.quant, name='third')(x)


class Elsewhere(nn.Module):
  quant: QuantConfig | None = None

  @nn.compact
  def __call__(self, x, scale):
    layer = lambda kind, *args, **how: layers.quantized_class(kind)(*args, quant=self.quant, **how)
    transposed = layer(nn.ConvTranspose, 4, (1, 1), transpose_kernel=True, name='first')
    x = nn.relu(transposed(scale * x)).reshape(len(x), -1)
    x = nn.relu(layer(nn.DenseGeneral, (2, 3), name='second')(x))
    return layer(nn.Einsum, (3, 2, 3), 'nab,cab->nc', name='third')(x)


# A task, a scheme and its ranges -> the loss, for which Hessian and rise are found in full.
CASES = {
  (tasks.CLASSIFICATION, 'original', 'layer'): cross_entropy,
  (tasks.REGRESSION, 'lsq', 'layer'): squared_error,
  (tasks.REGRESSION, 'lsq', 'channel'): squared_error,
}


@pytest.fixture(scope='module', params=CASES, ids=lambda case: f'{case[0].name}-{case[1]}-{case[2]}')
def measured(request):
  rng = np.random.default_rng(0)
  batch = {'image': rng.integers(0, 256, (4, 4, 4, 1)).astype(np.uint8), 'label': np.arange(4) % 3}
  batch['target'] = np.float32(rng.normal(size=(4, 3)))
  variables = Net().init(jax.random.key(1), jnp.zeros((1, 4, 4, 1)))
  variables = jax.tree.map(lambda x: 2 * x, variables)
  task, scheme, ranges = request.param
  of_inputs = dict(signed_input=scheme == 'lsq', input_offset=scheme == 'lsq')
  quant = QuantConfig(choices=CHOICES, scheme=scheme, kernel_ranges=ranges, **of_inputs)
  found = sensitivity.Sensitivity(Net(quant=quant), variables, (4, 4, 1), [batch], task)
  return found, variables, batch, CASES[request.param]


def test_the_estimate_comes_to_the_trace_of_the_exact_hessian(measured):
  found, variables, batch, loss = measured
  images, params = jnp.float32(batch['image']), variables['params']

  def by_kernel(kernel, name):
    changed = {**params, name: {**params[name], 'kernel': kernel}}
    return loss(Net().apply({'params': changed}, images), batch)

  def by_hidden(x):
    return loss(x @ params['dense']['kernel'] + params['dense']['bias'][None], batch)

  trace = lambda hessian, x: np.trace(np.reshape(hessian, (x.size, x.size)))
  first = nn.Conv(2, (2, 2), strides=2).apply({'params': params['conv']}, images / 255)
  hidden = nn.relu(first).reshape(4, -1)
  kernels = {name: params[name]['kernel'] for name in ('conv', 'dense')}
  with conv.always_general():
    expected = {(n, 'kernel'): trace(jax.hessian(by_kernel)(k, n), k) for n, k in kernels.items()}
  expected['dense', 'input'] = trace(jax.hessian(by_hidden)(hidden), hidden)
  estimated = found.traces(draws=1000)
  assert estimated.keys() == found.slots.keys()
  for slot, value in expected.items():
    assert value > 0
    np.testing.assert_allclose(estimated[slot], value, rtol=0.1, err_msg=str(slot))


def test_quantizers_that_change_nothing_leave_the_float_network(measured):
  found, variables, batch, _ = measured
  images = jnp.float32(batch['image'])
  expected = Net().apply(variables, images)
  np.testing.assert_allclose(found.outputs(found.variables, images, lambda slot, x: x), expected, rtol=1e-6)


def test_errors_fall_with_the_bits_and_scores_make_a_policy_within_its_budget(measured):
  found, _, _, _ = measured
  errors = found.errors()
  for by_bits in errors.values():
    assert list(by_bits) == list(CHOICES)
    assert all(a > b for a, b in zip(list(by_bits.values())[:-1], list(by_bits.values())[1:], strict=True))
  scores, traces = found.hessian_scores(draws=8), found.traces(draws=8)
  slot = ('dense', 'kernel')
  np.testing.assert_allclose(scores[slot][2], traces[slot] / 2 * errors[slot][2], rtol=1e-5)
  budget = cost.budget('bitops', found.table, equivalent_bits=4)
  assert assignment.solve(scores, found.table, budget).cost <= budget.target


def test_a_loss_score_is_what_quantizing_that_tensor_alone_does(measured):
  found, variables, batch, loss = measured
  scores = found.loss_scores()
  images, params = jnp.float32(batch['image']), variables['params']
  plain = loss(Net().apply(variables, images), batch)
  kernel, quant = params['dense']['kernel'], found._model.quant
  alpha = next(a for slot, _, bits, a in found._quantizations() if (slot, bits) == (('dense', 'kernel'), 2))
  changed = {**params, 'dense': {**params['dense'], 'kernel': sensitivity.quantized_kernel(quant, kernel, 2, alpha)}}
  rise = loss(Net().apply({'params': changed}, images), batch) - plain
  np.testing.assert_allclose(scores['dense', 'kernel'][2], rise, rtol=1e-3, atol=1e-6)
  assert abs(scores['dense', 'input'][8]) < 0.01 < abs(scores['dense', 'input'][1])


def test_an_error_score_is_the_second_order_rise_by_that_very_error(measured):
  found, variables, batch, loss = measured
  images, params = jnp.float32(batch['image']), variables['params']
  hidden = nn.relu(nn.Conv(2, (2, 2), strides=2).apply({'params': params['conv']}, images / 255)).reshape(4, -1)
  outputs = lambda x, kernel: loss(x @ kernel + params['dense']['bias'][None], batch)
  quant = found._model.quant
  scores = found.error_scores(draws=2000)
  assert scores.keys() == found.slots.keys()
  alphas = {(slot, bits): alpha for slot, _, bits, alpha in found._quantizations()}
  for bits in (1, 2, 4):
    kernel, alpha = params['dense']['kernel'], alphas[('dense', 'kernel'), bits]
    d = sensitivity.quantized_kernel(quant, kernel, bits, alpha) - kernel
    gradient = jax.grad(lambda kernel: outputs(hidden, kernel))
    expected = jnp.vdot(d, jax.jvp(gradient, (kernel,), (d,))[1]) / 2
    np.testing.assert_allclose(scores['dense', 'kernel'][bits], expected, rtol=0.2)
    d = layers.quantize_input(quant, hidden, bits, alphas[('dense', 'input'), bits]) - hidden
    gradient = jax.grad(lambda x: outputs(x, params['dense']['kernel']))
    expected = jnp.vdot(d, jax.jvp(gradient, (hidden,), (d,))[1]) / 2
    np.testing.assert_allclose(scores['dense', 'input'][bits], expected, rtol=0.2)


@pytest.mark.parametrize('ranges', ['layer', 'channel'])
def test_scores_are_the_same_wherever_a_kernel_has_its_output_channels(ranges):
  x = jax.random.normal(jax.random.key(0), (4, 2, 2, 5))
  quant = QuantConfig(choices=(2, 4), scheme='lsq', kernel_ranges=ranges, signed_input=True)
  params = Last().init(jax.random.key(1), x)['params']
  axes = {'first': lambda k: jnp.swapaxes(k, 2, 3), 'second': lambda k: k.reshape(-1, 2, 3)}
  axes['third'] = lambda k: jnp.moveaxis(k.reshape(2, 3, 3), -1, 0)
  biases = {'second': lambda b: b.reshape(2, 3)}
  moved = {
    name: {'kernel': axes[name](p['kernel']), 'bias': biases.get(name, jnp.asarray)(p['bias'])}
    for name, p in params.items()
  }
  how = dict(inputs_of=lambda batch: batch['x'], scale=2.0)
  batch = {'x': x, 'label': np.arange(4) % 3}
  found, expected = (
    sensitivity.Sensitivity(net(quant=quant), {'params': p}, x, [batch], **how)
    for net, p in ((Elsewhere, moved), (Last, params))
  )
  for scores in ('error_scores', 'loss_scores', 'errors'):
    of_each, of_last = getattr(found, scores)(), getattr(expected, scores)()
    assert of_each.keys() == of_last.keys()
    for slot, by_bits in of_last.items():
      got = [of_each[slot][bits] for bits in by_bits]
      np.testing.assert_allclose(got, list(by_bits.values()), rtol=1e-3, atol=1e-6, err_msg=f'{scores} of {slot}')


def test_a_quantized_kernel_has_the_scale_at_which_it_is_nearest():
  kernel = jax.random.normal(jax.random.key(0), (5, 7))
  q = sensitivity.quantized_kernel(QuantConfig(), kernel, 3)
  for factor in (0.99, 1.01):
    assert jnp.sum((factor * q - kernel) ** 2) > jnp.sum((q - kernel) ** 2)


def test_the_command_makes_a_policy_for_the_float_network_of_a_run(tmp_path, capsys):
  config = tiny(**{'pretrain.epochs': 1.0, 'phases': ('pretrain',)})
  runner.run(config, tmp_path / 'run')
  capsys.readouterr()
  out = tmp_path / 'policy.json'
  arguments = ['--workdir', str(tmp_path / 'run'), '--bits', '2.5', '--out', str(out)]
  assert sensitivity_command.main(arguments) == 0
  found = policy.load(out, experiment.prepare(config).layers)
  assert 0.95 * found.target < found.cost <= found.target
  assert capsys.readouterr().out == f'{out}: {found.cost:.6g} of {found.target:.6g} GBitOPs\n'
  assert sensitivity_command.main([*arguments, '--scores', 'guess']) == 2
  assert "scores='guess' are unknown: choose one of hessian, loss" in capsys.readouterr().err
  assert sensitivity_command.main(['--workdir', str(tmp_path), '--out', str(out)]) == 2
  assert 'holds no finished run' in capsys.readouterr().err
