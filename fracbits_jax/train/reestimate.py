"""Batch norm statistics computed anew: those of many batches taken together, with weights that no longer change.

What training leaves is a moving average over its last steps, of networks that were each a little different. With few
bits the difference matters, since a kernel's quantized values jump.

The mean is that of the means of all batches. The variance is by the law of total variance the mean of their variances
and the variance of their means, as if all had been one batch. Without the second, 1/n of it is missing where each batch
has n values of a channel.

A few hundred images have statistics of their own, which cost more than few bits shift them. Where there are no more,
those of the float network are kept, and changed by what quantization alone does to the same images: `corrected`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import lax

from fracbits_jax import tasks
from fracbits_jax.models.common import NORM_MOMENTUM
from fracbits_jax.train.step import Batch

_NO_VARIANCE = 1e-12  # of a channel that is the same everywhere


def make_statistics_step(
  model: nn.Module, accumulate: int = 1, task: tasks.Task = tasks.CLASSIFICATION
) -> Callable[[Any, Batch], Any]:
  """The step `statistics_step(variables, batch) -> batch_stats`, to be mapped over the axis `batch`.

  It gives the mean and the variance of what each batch norm sees in a batch, over all devices. With `accumulate` each
  part of a batch is normalised by its own statistics, as in the training step, and then the parts are taken together.

  Args:
    model: a network of `models.create` that is called as `model(inputs, train=True)`.
    accumulate: as for `step.make_train_step`.
    task: what the network is trained for.
  """

  def of_part(variables: Any, batch: Batch) -> Any:
    # From 0 the moving average takes one step towards the batch, and dividing by its length leaves the batch's own.
    nothing = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
    inputs = task.inputs(batch)
    _, updated = model.apply({**variables, 'batch_stats': nothing}, inputs, train=True, mutable=['batch_stats'])
    return jax.tree.map(lambda x: x / (1 - NORM_MOMENTUM), updated['batch_stats'])

  def statistics_step(variables: Any, batch: Batch) -> Any:
    if accumulate == 1:
      return of_part(variables, batch)
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    return _together(lax.map(lambda part: of_part(variables, part), parts))

  return statistics_step


def _by_norm(function: Callable[..., tuple[jax.Array, jax.Array]], *trees: Any) -> Any:
  """`function` of the means and variances of each batch norm, which gives a mean and a variance."""
  flat = [traverse_util.flatten_dict(tree) for tree in trees]
  found: dict[tuple[str, ...], Any] = {}
  for *path, which in flat[0]:
    if which == 'mean':
      names = (*path, 'mean'), (*path, 'var')
      found |= zip(names, function(*(tree[name] for tree in flat for name in names)), strict=True)
  return traverse_util.unflatten_dict(found)


def _together(parts: Any) -> Any:
  """The statistics of equal parts, given along a leading axis, as if they had been one."""
  return _by_norm(lambda mean, var: (jnp.mean(mean, axis=0), jnp.mean(var, axis=0) + jnp.var(mean, axis=0)), parts)


@jax.jit
def _merged(total: Any, batch: Any, count: jax.Array) -> Any:
  """The statistics of `count` batches and those of one more of the same size, taken together (Chan et al. 1983)."""

  def merge(mean, var, batch_mean, batch_var):
    share, distance = 1 / (count + 1), batch_mean - mean
    return mean + share * distance, (1 - share) * (var + share * jnp.square(distance)) + share * batch_var

  return _by_norm(merge, total, batch)


def statistics(step: Callable[[Any, Batch], Any], variables: Any, batches: Iterable[Batch]) -> Any:
  """The collection `batch_stats` of all batches together, each counted alike.

  Args:
    step: a mapped `statistics_step`.
    variables: of the network, replicated; their own statistics do not matter.
    batches: on the devices; at least one.
  """
  total = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
  for count, batch in enumerate(batches):
    total = _merged(total, step(variables, batch), jnp.float32(count))
  return total


def corrected(trained: Any, before: Any, after: Any) -> Any:
  """The statistics of a float network, moved as quantization moves those of a few batches.

      mean = trained mean + s (after - before),    var = s^2 after var,    s^2 = trained var / before var

  Args:
    trained: the collection `batch_stats` that the float network was trained to.
    before: its `statistics` over some batches.
    after: those of the quantized network over the same batches.
  """

  def correct(mean, var, before_mean, before_var, after_mean, after_var):
    ratio = jnp.where(before_var > _NO_VARIANCE, var / jnp.maximum(before_var, _NO_VARIANCE), 1)
    return mean + jnp.sqrt(ratio) * (after_mean - before_mean), ratio * after_var

  return _by_norm(correct, trained, before, after)
