"""Batch norm statistics computed anew: plain means over batches, with weights that no longer change.

What training leaves is a moving average over its last steps, of networks that were each a little different. With few
bits the difference matters, since a kernel's quantized values jump.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fracbits_jax.models.common import NORM_MOMENTUM
from fracbits_jax.step import Batch


def make_statistics_step(model: nn.Module, accumulate: int = 1) -> Callable[[Any, Any, Batch], Any]:
  """The step `statistics_step(variables, total, batch) -> total`, to be mapped over the axis `batch`.

  It adds the means and variances of a batch to `total`, a tree like `batch_stats`. They are those that the training
  step normalises by: over all devices, and with `accumulate` means over the parts of a batch.

  Args:
    model: a network of `models.create` that is called as `model(images, train=True)`.
    accumulate: as for `step.make_train_step`.
  """

  def of_part(variables: Any, images: jax.Array) -> Any:
    # From 0 the moving average takes one step towards the batch, and dividing by its length leaves the batch's own.
    nothing = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
    images = images.astype(jnp.float32)
    _, updated = model.apply({**variables, 'batch_stats': nothing}, images, train=True, mutable=['batch_stats'])
    return jax.tree.map(lambda x: x / (1 - NORM_MOMENTUM), updated['batch_stats'])

  def statistics_step(variables: Any, total: Any, batch: Batch) -> Any:
    images = batch['image']
    if accumulate == 1:
      return jax.tree.map(jnp.add, total, of_part(variables, images))
    parts = images.reshape(-1, accumulate, *images.shape[1:]).swapaxes(0, 1)
    found = lax.map(lambda part: of_part(variables, part), parts)
    return jax.tree.map(lambda x, y: x + jnp.mean(y, axis=0), total, found)

  return statistics_step


def statistics(step: Callable[[Any, Any, Batch], Any], variables: Any, batches: Iterable[Batch]) -> Any:
  """The collection `batch_stats` as means over batches, each counted alike.

  Args:
    step: a mapped `statistics_step`.
    variables: of the network, replicated; their own statistics do not matter.
    batches: on the devices; at least one.
  """
  total, count = jax.tree.map(jnp.zeros_like, variables['batch_stats']), 0
  for count, batch in enumerate(batches, start=1):  # noqa: B007
    total = step(variables, total, batch)
  return jax.tree.map(lambda x: x / count, total)
