"""Hardening: towards the end of a search every bit-width is drawn to the allowed one that is nearest.

Two neighbours interpolated have a smaller error than either of them (docs/method.md), so that a search by itself
ends between integers, with an accuracy that discretization takes away. Here a bit-width b moves after each update by

    b <- b + p(t) (nearest(b) - b),    p(t) = u^3,    u from 0 at `start` to 1 at `steps`

That is a step down the slope of f (1 - f), growing, and apart from the loss, as weight decay is in AdamW (Loshchilov
and Hutter 2019, arXiv 1711.05101). A bit-width that the loss draws across the middle still goes over to its other
neighbour; the weights meanwhile adapt to what they will have, and at the end all bit-widths are allowed ones.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from fracbits_jax import cost
from fracbits_jax.quantize import bitwidths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardening:
  """What draws the bit-widths of a network to allowed ones.

  Attributes:
    layers: its layer table.
    start: the step from which on it does.
    steps: the step at which all of them are allowed ones.
  """

  layers: Sequence[cost.Layer]
  start: int
  steps: int

  def strength(self, step: jax.Array) -> jax.Array:
    """p(t), the part of the way that is left which step number `step`, counted from 0, goes."""
    return jnp.clip((step + 1 - self.start) / max(self.steps - self.start, 1), 0, 1) ** 3

  def __call__(self, bits: Any, step: jax.Array) -> Any:
    """The collection `bits` after step number `step`."""
    strength = self.strength(step)
    slots = ((layer, which, spec[1]) for layer in self.layers for which, spec in cost.learned(layer).items())
    allowed = {(*layer.path.split('/'), which): choices for layer, which, choices in slots}

    def drawn(name: tuple[str, ...], value: jax.Array) -> jax.Array:
      low, high, fraction = bitwidths.neighbours(value, allowed[name])
      return value + strength * (jnp.where(fraction > 0.5, high, low) - value)

    flat = traverse_util.flatten_dict(bits)
    return traverse_util.unflatten_dict({name: drawn(name, value) for name, value in flat.items()})
