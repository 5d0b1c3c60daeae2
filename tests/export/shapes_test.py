import collections
import random

import jax
import pytest
import shape_cases

from fracbits_jax.export import shapes
from fracbits_jax.export.shape_values import Value
from fracbits_jax.graph import ops

# Where the rules are stricter than JAX: an operation that JAX takes for another, or what no capture gives.
_MOST_REFUSED = 0.05


def test_every_operation_has_a_rule():
  assert set(shapes.RULES) == set(ops.OPS)


def test_what_the_rules_accept_is_what_jax_gives():
  """Operations with random parameters and inputs, a third of them with something changed."""
  rng, counts = random.Random(0), collections.Counter()
  for _ in range(1500):
    op, params, inputs = shape_cases.draw(rng)
    ours, theirs = _ours(op, params, inputs), _of_jax(op, params, inputs)
    if ours is not None:
      assert ours == theirs, (op, params, inputs)
      counts[op] += 1
    counts['refused here alone'] += ours is None and theirs is not None
  assert counts['refused here alone'] < 1500 * _MOST_REFUSED
  assert set(shapes.RULES) - set(counts) == {'kernel', 'quantize'}


def _ours(op, params, inputs):
  try:
    return shapes.result(op, params, inputs)
  except (ValueError, TypeError, KeyError, IndexError):
    return None


def _of_jax(op, params, inputs):
  examples = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]
  try:
    found = jax.eval_shape(lambda *xs: ops.OPS[op](params, *xs), *examples)
  except Exception:  # whatever JAX says of shapes and parameters that do not fit
    return None
  return Value(found.shape, found.dtype.name)


@pytest.mark.parametrize(
  ('op', 'params', 'inputs'),
  [
    ('iota', {'shape': (2**31,), 'dimension': 0, 'dtype': 'float32'}, []),
    ('pad', {'padding_config': ((2**31, 0, 0),)}, [((1,), 'float32'), ((), 'float32')]),
    ('pad', {'padding_config': ((0, 0, 2**30),)}, [((5,), 'float32'), ((), 'float32')]),
    ('broadcast_in_dim', {'shape': (1,) * 17, 'broadcast_dimensions': ()}, [((), 'float32')]),
    ('broadcast_in_dim', {'shape': (True,), 'broadcast_dimensions': ()}, [((), 'float32')]),
    ('integer_pow', {'y': 2.0}, [((), 'float32')]),
  ],
)
def test_sizes_beyond_all_bounds_are_refused(op, params, inputs):
  with pytest.raises(ValueError, match=r'(it would give|a parameter is)'):
    shapes.result(op, params, [Value(*value) for value in inputs])
