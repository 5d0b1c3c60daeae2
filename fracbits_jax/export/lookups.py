"""Rows of a table of integers, such as the words of an embedding."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fracbits_jax.export import arithmetic, rescale
from fracbits_jax.export.values import Value, value
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Node

_DIGITS = 30  # of a row's multiplier behind the point, beside those of the fixed-point numbers


def looked_up(node: Node, table: Value, indices: Any) -> Value | None:
  """What a `gather` takes from a table; `None` where scales belong to other things than its rows.

  Where all rows have one scale, these are their codes. Where each has its own, code and multiplier of a row are looked
  up and give fixed-point numbers, rounded half to even. Places beyond the table are its last row.
  """
  numbers, params = node.params['dimension_numbers'], {**node.params, 'mode': 'clip', 'fill_value': None}
  take = lambda array, params: ops.apply('gather', params, [jnp.asarray(array), jnp.asarray(indices)], 1)
  codes = take(table.integers, params)
  if table.scale.size == 1:
    return value(codes, table.least, table.most, table.scale.reshape(()))
  rows = tuple(numbers['collapsed_slice_dims'])
  if any(side > 1 and axis not in rows for axis, side in enumerate(table.scale.shape)):
    return None
  digits = rescale.digits(table.largest().max())
  multipliers = np.round(np.ldexp(table.scale, digits + _DIGITS)).astype(np.int64)
  of_rows = {**params, 'slice_sizes': (1,) * len(params['slice_sizes'])}
  scaled = codes.astype(jnp.int64) * take(multipliers, of_rows)
  error = np.ldexp(table.bound.max() * 2.0**-_DIGITS / 2 + 0.5, -digits)
  least, most = (np.round(np.ldexp(limit, digits)) for limit in table.interval())
  integers = arithmetic.shifted(scaled, _DIGITS).astype(jnp.int32)
  return value(integers, least.min(), most.max(), np.ldexp(1.0, -digits), error=error)
