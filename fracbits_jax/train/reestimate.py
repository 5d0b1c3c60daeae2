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
from fracbits_jax.layers.examples import arguments_of
from fracbits_jax.train.step import Batch

_NO_VARIANCE = 1e-12  # of a channel that is the same everywhere


def make_statistics_step(
  model: nn.Module,
  accumulate: int = 1,
  task: tasks.Task = tasks.CLASSIFICATION,
  *,
  inputs_of: Callable[[Batch], Any] | None = None,
  **kwargs: Any,
) -> Callable[[Any, Batch], Any]:
  """The step `statistics_step(variables, batch) -> batch_stats`, to be mapped over the axis `batch`.

  It gives the mean and the variance of what each batch norm sees in a batch, over all devices. With `accumulate` each
  part of a batch is normalised by its own statistics, as in the training step, and then the parts are taken together.
  What is not of flax's batch norm, or of one that keeps its statistics in training as well, stays as it is.

  Args:
    model: a network that is called as `model(inputs, train=True)`.
    accumulate: as for `step.make_train_step`.
    task: what the network is trained for.
    inputs_of: what a batch gives the network, an array or a tuple of several; that of the task where it is `None`.
    **kwargs: further ones for the call.
  """
  inputs_of = task.inputs if inputs_of is None else inputs_of
  settings = {**kwargs, 'train': True, 'mutable': ['batch_stats']}

  def of_part(variables: Any, batch: Batch) -> Any:
    own, arguments = traverse_util.flatten_dict(variables['batch_stats']), arguments_of(inputs_of(batch))

    def updated(flat: Any) -> Any:
      given = {**variables, 'batch_stats': traverse_util.unflatten_dict(flat)}
      with nn.intercept_methods(_without_dropout):
        return traverse_util.flatten_dict(model.apply(given, *arguments, **settings)[1].get('batch_stats', {}))

    steps = _steps(lambda: updated(own))
    # From 0 the moving average takes one step towards the batch, and dividing by its length leaves the batch's own.
    found = updated({name: jnp.zeros_like(x) if name[:-1] in steps else x for name, x in own.items()})
    found = {name: found[name] / steps[name[:-1]] if name[:-1] in steps else x for name, x in own.items()}
    return traverse_util.unflatten_dict(found)

  def statistics_step(variables: Any, batch: Batch) -> Any:
    if accumulate == 1:
      return of_part(variables, batch)
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    return _together(lax.map(lambda part: of_part(variables, part), parts))

  return statistics_step


def _without_dropout(call: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
  """Intercepts modules: what is dropped in training is there in evaluation, for which statistics are."""
  is_dropout = isinstance(context.module, nn.Dropout) and context.method_name == '__call__'
  return (args[0] if args else kwargs['inputs']) if is_dropout else call(*args, **kwargs)


def _steps(apply: Callable[[], Any]) -> dict[tuple[str, ...], float]:
  """By path, the part of the way that each batch norm's running statistics go towards those of a batch.

  Those that keep theirs are absent.

  Args:
    apply: calls the network; its shapes alone are traced.
  """
  found: dict[tuple[str, ...], float] = {}

  def see(call, args, kwargs, context):
    norm = context.module
    if isinstance(norm, nn.BatchNorm) and context.method_name == '__call__':
      given = kwargs.get('use_running_average', args[1] if len(args) > 1 else None)
      if not (norm.use_running_average if given is None else given) and norm.momentum != 1:
        found[norm.path] = 1 - norm.momentum
    return call(*args, **kwargs)

  with nn.intercept_methods(see):
    jax.eval_shape(apply)
  return found


def _by_norm(function: Callable[..., tuple[jax.Array, jax.Array]], *trees: Any) -> Any:
  """`function` of the means and variances of each batch norm, which gives a mean and a variance.

  What else there is, such as a norm of spectra, stays as the first tree has it.
  """
  flat = [traverse_util.flatten_dict(tree) for tree in trees]
  found = dict(flat[0])
  for *path, which in flat[0]:
    names = (*path, 'mean'), (*path, 'var')
    if which == 'mean' and names[1] in found:
      found |= zip(names, function(*(tree[name] for tree in flat for name in names)), strict=True)
  return traverse_util.unflatten_dict(found)


def _together(parts: Any) -> Any:
  """The statistics of equal parts, given along a leading axis, as if they had been one."""

  def together(_mean, _var, mean, var):
    return jnp.mean(mean, axis=0), jnp.mean(var, axis=0) + jnp.var(mean, axis=0)

  return _by_norm(together, jax.tree.map(lambda x: x[0], parts), parts)


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
  total = None
  for count, batch in enumerate(batches):
    found = step(variables, batch)
    total = found if total is None else _merged(total, found, jnp.float32(count))
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
