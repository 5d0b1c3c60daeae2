"""Which operations give no negative number, by what is known of their operands."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fracbits_jax.program.stored import Value

_ALWAYS = {
  'abs', 'exp', 'exp2', 'logistic', 'sqrt', 'square', 'iota', 'argmax', 'argmin', 'population_count', 'erfc', 'cosh',
  'acos',
}  # fmt: skip
_IF_ALL = {
  'add', 'mul', 'div', 'min', 'rem', 'concatenate', 'pad', 'reduce_prod', 'cumprod', 'pow', 'add_any', 'atan2',
  'reduce_window_sum', 'dot_general', 'conv_general_dilated',
}  # fmt: skip
_IF_FIRST = {
  'reshape', 'transpose', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'convert_element_type', 'copy', 'copy_p', 'rev',
  'slice', 'dynamic_slice', 'gather', 'reduce_sum', 'reduce_max', 'reduce_min', 'cumsum', 'cummax', 'cummin', 'sort',
  'reduce_window_max', 'reduce_window_min', 'tanh', 'erf', 'log1p', 'expm1', 'floor', 'ceil', 'round', 'sign', 'rsqrt',
  'cbrt', 'asinh', 'sinh', 'atan', 'stop_gradient', 'name', 'sharding_constraint', 'optimization_barrier',
  'reduce_precision', 'psum', 'pmax', 'pmin', 'all_gather', 'ppermute', 'all_to_all', 'pbroadcast', 'pvary', 'tile',
  'top_k', 'split', 'psum_invariant',
}  # fmt: skip
# Functions of JAX whose results are never negative, by the names under which they are traced.
FUNCTIONS = {'softplus', 'relu', 'relu6', 'sigmoid', 'softmax', 'hard_sigmoid', 'one_hot', '_one_hot', 'squareplus'}


def result(equation: Any, operands: Sequence[Value]) -> bool:
  """Whether no entry of what an equation gives is negative."""
  op, params = equation.primitive.name, equation.params
  dtype = getattr(equation.outvars[0].aval, 'dtype', None)
  kind = getattr(dtype, 'kind', '')
  positive = [value.positive for value in operands]
  if kind in ('b', 'u') or op in _ALWAYS:
    return True
  if op == 'max':
    return any(positive)
  if op == 'mul' and len(equation.invars) == 2 and equation.invars[0] is equation.invars[1]:
    return True
  if op == 'integer_pow':
    return params['y'] % 2 == 0 or positive[0]
  if op == 'clamp':
    return positive[0] or (positive[1] and positive[2])
  if op == 'select_n':
    return all(positive[1:])
  if op in _IF_ALL:
    return all(positive)
  if op in ('scatter', 'scatter-add', 'dynamic_update_slice'):
    return positive[0] and positive[1 if op == 'dynamic_update_slice' else 2]
  if op in _IF_FIRST:
    return positive[0]
  return False


def known(value: Any) -> bool:
  """Whether a number or an array of numbers has no negative one."""
  array = np.asarray(value)
  return bool(array.dtype.kind in 'fiub' and (array >= 0).all())
