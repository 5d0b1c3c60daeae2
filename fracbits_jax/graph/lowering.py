"""Operations that are others put together: what a graph has in place of them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Function = Callable[..., Any]


def simpler(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  """A function that gives what an equation gives by simpler operations, `None` where there is none.

  Args:
    equation: of a jaxpr.
    values: its operands, arrays where they are known and names where they are not.
    most_passes: of a loop, to be unrolled.
  """
  rule = _RULES.get(equation.primitive.name)
  return None if rule is None else rule(equation, values, most_passes)


def _split(equation: Any, values: Sequence[Any], most_passes: int) -> _Function:
  axis, sizes = int(equation.params['axis']), [int(size) for size in equation.params['sizes']]
  ends = np.cumsum([0, *sizes]).tolist()
  return lambda x: [lax.slice_in_dim(x, a, b, axis=axis) for a, b in itertools.pairwise(ends)]


def _stack(equation: Any, values: Sequence[Any], most_passes: int) -> _Function:
  axis = int(equation.params['axis'])
  return lambda *xs: lax.concatenate([lax.expand_dims(x, (axis,)) for x in xs], axis)


def _tile(equation: Any, values: Sequence[Any], most_passes: int) -> _Function:
  reps = equation.params['reps']

  def tiled(x: jax.Array) -> jax.Array:
    sides = [side for pair in zip(reps, x.shape, strict=True) for side in pair]
    repeated = lax.broadcast_in_dim(x, sides, tuple(range(1, 2 * x.ndim, 2)))
    return lax.reshape(repeated, [times * side for times, side in zip(reps, x.shape, strict=True)])

  return tiled


def _dynamic_slice(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  starts = _starts(values[1:], equation.invars[0].aval.shape, equation.params['slice_sizes'])
  if starts is None:
    return None
  ends = [start + size for start, size in zip(starts, equation.params['slice_sizes'], strict=True)]
  return lambda x, *_: lax.slice(x, starts, ends)


def _dynamic_update_slice(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  starts = _starts(values[2:], equation.invars[0].aval.shape, equation.invars[1].aval.shape)
  return None if starts is None else lambda x, update, *_: _updated(x, update, starts)


def _starts(known: Sequence[Any], shape: Sequence[Any], sizes: Sequence[Any]) -> list[int] | None:
  """Where a window begins, within the array as XLA moves it there; `None` where that is not known."""
  if any(isinstance(start, str) for start in known):
    return None
  starts = []
  for start, side, size in zip(known, shape, sizes, strict=True):
    if not isinstance(side, int) and int(start) and side is not size:
      return None
    starts.append(int(np.clip(int(start), 0, side - size)) if isinstance(side, int) else 0)
  return starts


def _updated(x: jax.Array, update: jax.Array, starts: Sequence[int], axis: int = 0) -> jax.Array:
  """An array with a window of other values."""
  while axis < x.ndim and x.shape[axis] == update.shape[axis]:
    axis += 1
  if axis == x.ndim:
    return update
  start, end = starts[axis], starts[axis] + update.shape[axis]
  within = _updated(lax.slice_in_dim(x, start, end, axis=axis), update, starts, axis + 1)
  parts = [lax.slice_in_dim(x, 0, start, axis=axis), within, lax.slice_in_dim(x, end, x.shape[axis], axis=axis)]
  return lax.concatenate([part for part in parts if part.shape[axis] != 0], axis)


def _gather(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  """A look-up that is mapped, such as `jax.vmap(lambda i: table[i])`, without places of axes that it takes whole."""
  p, numbers, shape = equation.params, equation.params['dimension_numbers'], equation.invars[0].aval.shape
  sizes, places = p['slice_sizes'], numbers.start_index_map
  limited = (lax.GatherScatterMode.CLIP, lax.GatherScatterMode.PROMISE_IN_BOUNDS)
  if p['mode'] not in limited or numbers.operand_batching_dims:
    return None
  whole = {axis for axis in places if sizes[axis] == shape[axis]}
  thin = {axis for axis in places if sizes[axis] == 1 and axis not in (*whole, *numbers.collapsed_slice_dims)}
  kept = [i for i, axis in enumerate(places) if axis not in whole]
  if not kept or not (whole or thin):
    return None
  slices = [axis for axis in range(len(shape)) if axis not in numbers.collapsed_slice_dims]
  gone = [to for to, axis in zip(numbers.offset_dims, slices, strict=True) if axis in thin]
  fewer = lax.GatherDimensionNumbers(
    offset_dims=tuple(to - sum(g < to for g in gone) for to in numbers.offset_dims if to not in gone),
    collapsed_slice_dims=tuple(sorted({*numbers.collapsed_slice_dims, *thin})),
    start_index_map=tuple(places[i] for i in kept),
  )

  def gathered(x: jax.Array, at: jax.Array) -> jax.Array:
    at = lax.concatenate([lax.slice_in_dim(at, i, i + 1, axis=at.ndim - 1) for i in kept], at.ndim - 1)
    return lax.expand_dims(lax.gather(x, at, fewer, sizes, mode=p['mode']), gone)

  return gathered


def _scatter(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  """One window at a known place, such as `x.at[:, 0].set(y)`."""
  numbers, shape = equation.params['dimension_numbers'], equation.invars[0].aval.shape
  if isinstance(values[1], str) or np.ndim(values[1]) != 1:
    return None
  at = dict(zip(numbers.scatter_dims_to_operand_dims, np.asarray(values[1]).tolist(), strict=True))
  inserted = tuple(numbers.inserted_window_dims)
  of_window = iter(equation.invars[2].aval.shape)
  sizes = [1 if axis in inserted else next(of_window) for axis in range(len(shape))]
  starts = [at.get(axis, 0) for axis in range(len(shape))]
  for start, size, side in zip(starts, sizes, shape, strict=True):
    if start and (not isinstance(side, int) or not 0 <= start <= side - size):
      return None
  return lambda x, _, update: _updated(x, lax.expand_dims(update, inserted), starts)


def _cond(equation: Any, values: Sequence[Any], most_passes: int) -> _Function:
  """Both branches, and the results of one of them."""
  branches = equation.params['branches']

  def chosen(index: jax.Array, *operands: jax.Array) -> list[jax.Array]:
    results = [jax.core.eval_jaxpr(b.jaxpr, b.consts, *operands) for b in branches]
    found = results[0]
    for i, others in enumerate(results[1:], start=1):
      found = [
        lax.select_n(lax.ge(index, jnp.asarray(i, index.dtype)), a, b) for a, b in zip(found, others, strict=True)
      ]
    return found

  return chosen


def _scan(equation: Any, values: Sequence[Any], most_passes: int) -> _Function | None:
  """The passes one behind the other."""
  p = equation.params
  if p['length'] > most_passes:
    return None
  n_consts, n_carry, closed = p['num_consts'], p['num_carry'], p['jaxpr']

  def unrolled(*operands: jax.Array) -> list[jax.Array]:
    consts, carry, xs = (
      operands[:n_consts],
      list(operands[n_consts : n_consts + n_carry]),
      operands[n_consts + n_carry :],
    )
    rows: dict[int, list[jax.Array]] = {}
    for i in reversed(range(p['length'])) if p['reverse'] else range(p['length']):
      of_pass = [lax.index_in_dim(x, i, keepdims=False) for x in xs]
      results = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *consts, *carry, *of_pass)
      carry, rows[i] = results[:n_carry], results[n_carry:]
    columns = zip(*(rows[i] for i in range(p['length'])), strict=True)
    return [*carry, *(jnp.stack(column) for column in columns)]

  return None if p['length'] == 0 else unrolled


_RULES: dict[str, Callable[[Any, Sequence[Any], int], _Function | None]] = {
  'add_any': lambda *_: lax.add,
  'cond': _cond,
  'dynamic_slice': _dynamic_slice,
  'dynamic_update_slice': _dynamic_update_slice,
  'gather': _gather,
  'scan': _scan,
  'scatter': _scatter,
  'split': _split,
  'stack': _stack,
  'tile': _tile,
}
