"""Steps of a Keras network on JAX, in float and trained with HGQ2."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared.hgq_network import keras, resnet8
from benchmarks.speed.peer_jax import compiled_step
from benchmarks.speed.peers_measure import Step

METHODS = {
  'float': 'Keras on JAX',
  'layer': 'HGQ2, bits by layer',
  'weight': 'HGQ2, bits by weight',
}
BETA = 1e-9


def versions() -> dict[str, str]:
  return {'hgq2': importlib.metadata.version('hgq2'), 'keras': keras.__version__, 'jax': jax.__version__}


def make(method: str, batch: int) -> Step:
  keras.utils.set_random_seed(0)
  model = resnet8(None if method == 'float' else method, beta=BETA)
  optimizer = keras.optimizers.SGD(0.01, 0.9, nesterov=True)
  optimizer.build(model.trainable_variables)

  def loss_function(trained, held, images, labels):
    logits, held, losses = model.stateless_call(trained, held, images, training=True, return_losses=True)
    task = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return jnp.mean(task) + sum(losses), held  # the losses are EBOPs and HGQ2's weak regularizers of the bits

  def step(state, images, labels):
    trained, held, opt_state = state
    (loss, held), gradients = jax.value_and_grad(loss_function, has_aux=True)(trained, held, images, labels)
    trained, opt_state = optimizer.stateless_apply(opt_state, gradients, trained)
    return (trained, held, opt_state), loss

  images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 32, 3)), jnp.float32)
  labels = jnp.arange(batch) % 10
  parts = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
  state = tuple([jnp.copy(variable.value) for variable in part] for part in parts)
  return compiled_step(step, state, images, labels)
