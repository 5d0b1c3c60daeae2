"""Steps of a plain Flax network, in float and trained with Qwix."""

import functools
from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import linen as nn

from benchmarks.speed.peer_jax import compiled_step
from benchmarks.speed.peers_measure import Step

METHODS = {
  'float': 'Flax',
  'qt': 'Qwix, `QtProvider`, 8 bits',
  'odml': 'Qwix, `OdmlQatProvider`, 8 bits',
}


def versions() -> dict[str, str]:
  return {'qwix': qwix.__version__, 'flax': flax.__version__, 'jax': jax.__version__}


class ResNet8(nn.Module):
  """The network of `peers.py`, as one writes it in Flax."""

  widths: Sequence[int] = (16, 32, 64)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    conv = functools.partial(nn.Conv, use_bias=False)
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    pad = ((1, 1), (1, 1))
    x = nn.relu(norm()(conv(self.widths[0], (3, 3), padding=pad)(x)))
    for i, width in enumerate(self.widths):
      stride = 1 if i == 0 else 2
      y = nn.relu(norm()(conv(width, (3, 3), stride, padding=pad)(x)))
      y = norm()(conv(width, (3, 3), padding=pad)(y))
      if i > 0:
        x = conv(width, (1, 1), stride, padding='VALID')(x)
      x = nn.relu(x + y)
    return nn.Dense(10)(x.mean((1, 2)))


def quantized(model: nn.Module, method: str) -> nn.Module:
  """The model as Qwix has it trained, each kernel and each input of one in the same type; `float` as it is."""
  if method == 'float':
    return model
  rules = [qwix.QuantizationRule(module_path='.*', weight_qtype='int8', act_qtype='int8')]
  provider = qwix.QtProvider if method == 'qt' else qwix.OdmlQatProvider
  return qwix.quantize_model(model, provider(rules))


def make(method: str, batch: int) -> Step:
  model = quantized(ResNet8(), method)
  optimizer = optax.sgd(0.01, 0.9, nesterov=True)

  def step(state, images, labels):
    def loss_function(params):
      variables = {**state['other'], 'params': params}
      logits, other = model.apply(variables, images, train=True, mutable=list(state['other']))
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), other

    (loss, other), gradients = jax.value_and_grad(loss_function, has_aux=True)(state['params'])
    updates, opt_state = optimizer.update(gradients, state['opt_state'], state['params'])
    return {'params': optax.apply_updates(state['params'], updates), 'other': other, 'opt_state': opt_state}, loss

  images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 32, 3)), jnp.float32)
  labels = jnp.arange(batch) % 10
  other = dict(jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), images))
  params = other.pop('params')
  state = {'params': params, 'other': other, 'opt_state': optimizer.init(params)}
  return compiled_step(step, state, images, labels)
