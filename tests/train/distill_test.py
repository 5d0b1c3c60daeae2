import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fracbits_jax.tasks import classification
from fracbits_jax.train import distill, step

LOGITS = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
TEACHER = jnp.array([[0.2, 0.1, -0.3], [2.0, 2.5, -2.0]])


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_softened_probabilities(temperature):
  gradient = jax.grad(classification.soft_loss)(LOGITS, TEACHER, temperature)
  difference = jax.nn.softmax(LOGITS / temperature) - jax.nn.softmax(TEACHER / temperature)
  np.testing.assert_allclose(gradient, temperature * difference / len(LOGITS), atol=1e-6)


def test_it_is_the_divergence_from_the_teacher_and_zero_for_equal_logits():
  p, q = (np.asarray(jax.nn.softmax(x)) for x in (TEACHER, LOGITS))
  expected = np.mean(np.sum(p * np.log(p / q), -1))
  np.testing.assert_allclose(classification.soft_loss(LOGITS, TEACHER, 1.0), expected, rtol=1e-5)
  np.testing.assert_allclose(classification.soft_loss(TEACHER + 5.0, TEACHER, 2.0), 0, atol=1e-6)


def test_hot_logits_are_matched_in_the_mean_square():
  centred = lambda x: x - x.mean(-1, keepdims=True)
  expected = jnp.mean(jnp.square(centred(LOGITS) - centred(TEACHER))) / 2
  np.testing.assert_allclose(classification.soft_loss(LOGITS, TEACHER, 300.0), expected, rtol=2e-2)


def test_nothing_goes_back_to_the_teacher():
  gradient = jax.grad(classification.soft_loss, argnums=1)(LOGITS, TEACHER, 2.0)
  np.testing.assert_array_equal(gradient, 0)


class Linear(nn.Module):
  """A network whose gradient is known in closed form, in the shape that a training step wants."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(3, use_bias=False)(x) * (1 if train else 2)


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('weight', [0.25, 1.0])
def test_a_step_weighs_the_labels_and_the_teacher_in_evaluation_mode(weight, accumulate):
  model, optimizer = Linear(), optax.sgd(1.0)
  images = jax.random.normal(jax.random.key(0), (8, 5))
  labels = jnp.arange(8) % 3
  student, teacher = (model.init(jax.random.key(i), images) for i in (1, 2))
  learned = {'params': student['params'], 'bits': {}}
  state = step.TrainState(
    step=jnp.int32(0),
    **learned,
    batch_stats={},
    opt_state=optimizer.init(learned),
    multiplier=jnp.float32(0),
  )
  distillation = distill.Distillation(teacher=model, weight=weight, temperature=3.0)
  train_step = step.make_train_step(model, optimizer, accumulate=accumulate, distillation=distillation)
  halves = lambda x: x.reshape(2, 4, *x.shape[1:])  # two devices
  twice = functools.partial(jax.tree.map, lambda x: jnp.stack([x, x]))
  batch = {'image': halves(images), 'label': halves(labels)}
  after, metrics = jax.jit(jax.vmap(train_step, axis_name=step.AXIS))(twice(state), batch, twice(teacher))
  kernel = student['params']['Dense_0']['kernel']
  logits, targets = images @ kernel, 2 * images @ teacher['params']['Dense_0']['kernel']
  hard = jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)
  soft = 3 * (jax.nn.softmax(logits / 3) - jax.nn.softmax(targets / 3))
  expected = kernel - images.T @ ((1 - weight) * hard + weight * soft) / 8
  chex.assert_trees_all_close(after.params['Dense_0']['kernel'], jnp.stack([expected, expected]), atol=1e-5)
  np.testing.assert_allclose(metrics['distill_loss'][0], classification.soft_loss(logits, targets, 3.0), rtol=1e-5)
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  np.testing.assert_allclose(metrics['loss'][0], cross_entropy, rtol=1e-5)
