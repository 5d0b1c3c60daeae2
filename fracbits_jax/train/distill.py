"""Distillation: the quantized network also learns from what the float network says about the same images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """The loss (1 - weight) x cross entropy + weight x `soft_loss`.

  Attributes:
    teacher: the float network, called in evaluation mode.
    weight: the share of the teacher, from 0 to 1.
    temperature: of `soft_loss`.
  """

  teacher: nn.Module
  weight: float
  temperature: float

  def __call__(
    self, variables: Any, images: jax.Array, logits: jax.Array, loss: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The loss with the teacher's share, and the teacher's part of it, `soft_loss`, by itself.

    Args:
      variables: the teacher's.
      images: of the batch, as the student has them.
      logits: the student's.
      loss: the student's cross entropy with the labels, `()`.
    """
    taught: Any = self.teacher.apply(variables, images)
    soft = soft_loss(logits, taught, self.temperature)
    return (1 - self.weight) * loss + self.weight * soft, soft
