"""Parameters of JAX's operations as a graph has them: numbers, strings and tuples of them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_OF_JAX = ('update_consts', 'update_jaxpr')  # parameters that say again what the operation is


def size_of(size: Any) -> int:
  """A dimension as an integer; k times the number of examples as -k."""
  if isinstance(size, int | np.integer):
    return int(size)
  once, twice = (int(size._evaluate({'n': count})) for count in (1, 2))
  if twice != 2 * once:
    raise ValueError(f'an array has a side of {size} for n examples: only multiples of n can be exported')
  return -once


def plain_params(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for key, value in params.items():
    if key in _OF_JAX:
      continue
    try:
      plain = _plain(value)
    except TypeError:
      continue  # shardings, precisions and the like: nothing that an exported graph depends on
    if plain is not None:
      yield key, plain


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, bool | float | str):
    return value
  if isinstance(value, jax.lax.GatherScatterMode):
    return value.name.lower()
  if isinstance(value, tuple) and hasattr(value, '_asdict'):
    return {key: _plain(entry) for key, entry in value._asdict().items()}
  if isinstance(value, tuple | list):
    return tuple(_plain(entry) for entry in value)
  if isinstance(value, np.dtype | type) or (hasattr(value, 'dtype') and not hasattr(value, 'shape')):
    return jnp.dtype(value).name
  if isinstance(value, int | np.integer) or type(value).__module__.endswith('shape_poly'):
    return size_of(value)
  if dataclasses.is_dataclass(value):
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  raise TypeError(value)
