"""Classification: cross entropy with the labels, and the share of examples whose largest logit is the right one."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from fracbits_jax.tasks.task import Batch, Metric, Task


def soft_loss(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
  """The distance of a network from its teacher, both softened (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

      T^2 KL(softmax(t / T) || softmax(z / T)),    a mean over the examples

  T^2 keeps the size of the gradient, which is that of the mean of (z - t)^2 / (2 classes) where T is large, for logits
  whose mean over the classes is the same.

  Args:
    logits: z, `[N, classes]`.
    teacher_logits: t, `[N, classes]`; no gradient goes to it.
    temperature: T, above 0.
  """
  teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
  student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  return temperature**2 * jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


class Classification(Task):
  """One label of several an example, `label` int32 `[N]`; the outputs are logits `[N, classes]`."""

  name = 'classification'
  metrics = (
    Metric(
      name='accuracy',
      title='accuracy',
      higher_is_better=True,
      best='is the most accurate',
      better='is more accurate',
      least=0.0,
      most=1.0,
      scale=100.0,
      unit='%',
      digits='.2f',
      few_digits='.1f',
      differences='points',
      same='as many as by',
    ),
  )
  examples = 'images'
  keeps_scale = False
  has_temperature = True

  def width(self, image_shape: Sequence[int], num_classes: int, target_shape: Sequence[int] | None) -> int:
    """A logit for each class."""
    del image_shape, target_shape
    if not num_classes:
      raise ValueError(
        'the data have no labels, and classification needs them: give labels, or a model.name with another task, such '
        'as autoencoder'
      )
    return num_classes

  def terms(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The cross entropy, and whether the answer is right, `[N]`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch['label'])
    return {'loss': losses, 'accuracy': jnp.argmax(outputs, -1) == batch['label']}

  def values(self, means: Mapping[str, float]) -> dict[str, float]:
    """`accuracy`, from 0 to 1."""
    return {'accuracy': means['accuracy']}

  def distance(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """`soft_loss`."""
    return soft_loss(outputs, taught, temperature)

  def curvature(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """With probabilities p and signs u, one a class: c = sqrt(p) u - p (sqrt(p) . u); E[c c^T] = diag(p) - p p^T."""
    p = jax.nn.softmax(outputs)
    signed = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
    return signed - p * jnp.sum(signed, axis=-1, keepdims=True)

  def sentence(self, values: Mapping[str, float]) -> str:
    """Such as `95.00% of the test images are classified correctly`."""
    return f'{self.metric.text(values["accuracy"])} of the test images are classified correctly'


CLASSIFICATION = Classification()
