"""Where values stop being finite: the steps are made once more, and the one that fails layer by layer."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import layers, tasks
from fracbits_jax.layers import stacks
from fracbits_jax.train import placement
from fracbits_jax.train.step import AXIS, Batch, TrainState


class NotFinite(FloatingPointError):
  """A value of a step is not finite; `step` says of which."""

  def __init__(self, text: str, step: int):
    super().__init__(text)
    self.step = step


def first_variable(variables: dict[str, Any]) -> str | None:
  """The name of the first array with values that are not finite."""
  for name, value in traverse_util.flatten_dict(variables, sep='/').items():
    if not np.isfinite(value).all():
      return name
  return None


def first_layer(
  model: nn.Module, state: TrainState, batch: dict[str, np.ndarray], task: tasks.Task = tasks.CLASSIFICATION
) -> str | None:
  """The layer whose inputs or outputs are the first that are not finite in a forward pass, in words.

  Layers within a scan are passed over.

  Args:
    model: the network of a training step.
    state: before the step, in host memory, with finite values.
    batch: of the step, as this process has it.
    task: what the network is trained for.
  """
  names: list[str] = []

  def forward(inputs: jax.Array) -> list[jax.Array]:
    names.clear()
    finite: list[jax.Array] = []

    def see(module: nn.Module, x: jax.Array, y: jax.Array) -> None:
      if stacks.stack_of_module(module, state.params):
        return  # what is within the loop is not to be had out of it
      path = '/'.join(module.path)
      names.extend((f'the inputs of layer {path}', f'the outputs of layer {path}'))
      finite.extend(jnp.isfinite(z).all() for z in (x, y))

    with layers.watch_layers(see):
      model.apply(state.variables, inputs, train=True, mutable=['batch_stats'])
    return finite

  inputs = jax.vmap(task.inputs)(placement.shard(batch))
  finite = jax.jit(jax.vmap(forward, axis_name=AXIS))(inputs)
  broken = [name for name, ok in zip(names, finite, strict=True) if not np.all(ok)]
  return broken[0] if broken else None


def origin(
  model: nn.Module,
  train_step: Callable[[TrainState, Batch], tuple[TrainState, Any]],
  state: TrainState,
  batches: Iterator[dict[str, np.ndarray]],
  steps: range,
  task: tasks.Task = tasks.CLASSIFICATION,
) -> str:
  """Where values stop being finite for the first time, in words: steps are made once more, each looked at.

  Args:
    model: the network of the steps.
    train_step: as for `loop.run_phase`.
    state: before the first of the steps, in host memory.
    batches: of the steps.
    steps: the numbers of the steps, the last one that which is known to have failed.
    task: what the network is trained for.
  """
  for step in steps:
    if name := first_variable(state.variables):
      return f'{name} before step {step}'
    batch = next(batches)
    after, metrics = train_step(placement.replicate(state), placement.to_devices(batch))
    after, metrics = placement.unreplicate((after, metrics))
    broken = first_variable(after.variables)
    if broken or first_variable(metrics):
      return f'{first_layer(model, state, batch, task) or broken or first_variable(metrics)} at step {step}'
    state = after
  return 'none, when the steps are made again'
