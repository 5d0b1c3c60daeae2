"""Distillation: the quantized network also learns from what the float network says about the same examples."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from fracbits_jax import tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """The loss (1 - weight) x the task's loss + weight x the distance from the teacher's outputs, `Task.distance`.

  Attributes:
    teacher: the float network, called in evaluation mode.
    weight: the share of the teacher, from 0 to 1.
    temperature: of the distance; for classification that of `soft_loss`.
    task: what both are trained for.
  """

  teacher: nn.Module
  weight: float
  temperature: float = 1.0
  task: tasks.Task = tasks.CLASSIFICATION

  def __call__(
    self, variables: Any, inputs: jax.Array, outputs: jax.Array, loss: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The loss with the teacher's share, and the teacher's part of it, the distance, by itself.

    Args:
      variables: the teacher's.
      inputs: of the batch, as the student has them.
      outputs: the student's.
      loss: the student's own, of the task, `()`.
    """
    taught: Any = self.teacher.apply(variables, inputs)
    distance = self.task.distance(outputs, taught, self.temperature)
    return (1 - self.weight) * loss + self.weight * distance, distance
