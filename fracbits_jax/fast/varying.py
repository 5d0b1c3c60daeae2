"""Values within `jax.shard_map` that differ from device to device, beside values that are the same on all of them.

JAX keeps book of the mesh axes along which a value varies. A product of weights that do not vary with inputs that do
varies, and the gradient of the weights is summed over the devices: by the transposition of the cast that comes first.
Library functions cast for themselves; functions with a derivative of their own do it with `alike`.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

_Value = TypeVar('_Value', jax.Array, jax.Array | None)


def axes(like: Any) -> frozenset[str]:
  """The mesh axes along which an array, or what describes one, varies; none outside `shard_map`."""
  kind = getattr(like, 'manual_axis_type', None)
  return frozenset(kind.varying) if kind else frozenset()


def alike(*values: _Value) -> tuple[_Value, ...]:
  """The values, each of them varying along all axes along which any of them does; `None` stays `None`."""
  types = [jax.typeof(value) for value in values if value is not None]
  everywhere = frozenset().union(*map(axes, types))
  if not everywhere:
    return values
  return tuple(value if value is None else _cast(value, everywhere - axes(jax.typeof(value))) for value in values)


def full(like: Any, value: float) -> jax.Array:
  """An array of one value that varies as `like` does, with its shape and dtype."""
  return _cast(jnp.full(like.shape, value, like.dtype), axes(like))


def _cast(value: jax.Array, missing: frozenset[str]) -> jax.Array:
  return lax.pcast(value, tuple(sorted(missing)), to='varying') if missing else value
