"""What a search adds to the task loss so that the cost ends at its budget."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fracbits_jax.cost import Budget, Layer
from fracbits_jax.fast.stored import stored_on_cpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
  """A multiplier that rises while the cost is over the budget and falls while it is under: dual ascent.

      penalty = mu (r - 1) + rho (r - 1)^2 / 2,    mu <- max(0, mu + gain rate(t) (r - 1)),    r = C(bits) / C_target

  That is the augmented Lagrangian of the budget (Hestenes 1969, Powell 1969). mu settles where it balances what the
  task would pay for more bits, so its strength need not be known; the quadratic term damps the way there. Both move in
  the time of the bits' own learning rate, so that one setting serves any number of steps, batch size and schedule.

  Attributes:
    gain: how fast the multiplier moves.
    damping: rho.
    rate: the bits' learning rate by step.
  """

  gain: float
  damping: float
  rate: optax.Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
  """The cost term of the loss: kappa |C(bits) / C_target - 1| (FracBits, section 3.3), or a controlled one.

  Attributes:
    budget: what has to hold.
    layers: the network's layer table.
    kappa: the strength of the fixed penalty.
    controller: takes the place of the fixed penalty where it is given.
  """

  budget: Budget
  layers: tuple[Layer, ...]
  kappa: float = 0.0
  controller: Controller | None = None

  def __call__(
    self, bits: Any, multiplier: jax.Array, targets: Sequence[Any] | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """The term, and the ratio r of cost to target.

    Args:
      bits: the collection `bits`.
      multiplier: mu, `()`; without a controller it plays no part.
      targets: in place of the budget's, as for `Budget.ratio`.
    """
    # A sum over all layers, of which the gradient of each bit-width would have a copy.
    ratio = stored_on_cpu(lambda bits: jnp.asarray(self.budget.ratio(bits, self.layers, targets)), bits)
    if self.controller is None:
      return self.kappa * jnp.abs(ratio - 1), ratio
    return multiplier * (ratio - 1) + self.controller.damping / 2 * (ratio - 1) ** 2, ratio

  def update(self, multiplier: jax.Array, ratio: jax.Array, step: jax.Array) -> jax.Array:
    """The multiplier after step number `step`, in which the ratio was `ratio`."""
    if self.controller is None:
      return multiplier
    return jnp.maximum(multiplier + self.controller.gain * self.controller.rate(step) * (ratio - 1), 0)
