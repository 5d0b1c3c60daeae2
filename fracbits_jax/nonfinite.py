"""Where values stop being finite: the step is made once more, layer by layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import layers, train
from fracbits_jax.step import AXIS, TrainState


class NotFinite(FloatingPointError):
  """A value of a step is not finite; `step` says of which."""

  def __init__(self, text: str, step: int):
    super().__init__(text)
    self.step = step


def first_values(model: nn.Module, state: TrainState, batch: dict[str, np.ndarray]) -> str:
  """The first values that are not finite when a step is made from a state, in words.

  Args:
    model: the network of the step.
    state: before the step, in host memory.
    batch: of the step, as this process has it.
  """
  variables = {name: value for name, value in state.variables.items() if value}
  if name := first_variable(variables):
    return name
  names: list[str] = []

  def forward(images: jax.Array) -> list[jax.Array]:
    names.clear()
    finite = []

    def see(module: nn.Module, x: jax.Array, y: jax.Array) -> None:
      path = '/'.join(module.path)
      names.extend((f'the inputs of layer {path}', f'the outputs of layer {path}'))
      finite.extend(jnp.isfinite(z).all() for z in (x, y))

    with layers.watch_layers(see):
      model.apply(variables, images, train=True, mutable=['batch_stats'])
    return finite

  images = train.shard(batch)['image'].astype(np.float32)
  finite = jax.jit(jax.vmap(forward, axis_name=AXIS))(images)
  broken = [name for name, ok in zip(names, finite, strict=True) if not np.all(ok)]
  return broken[0] if broken else 'the gradients'


def first_variable(variables: dict[str, Any]) -> str | None:
  """The name of the first array with values that are not finite."""
  for name, value in traverse_util.flatten_dict(variables, sep='/').items():
    if not np.isfinite(value).all():
      return name
  return None
