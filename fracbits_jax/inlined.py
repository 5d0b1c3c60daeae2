"""Functions that are traced once for all arguments of the same shapes."""

import functools
from collections.abc import Callable

import jax


def inlined(*static: int) -> Callable[[Callable], Callable]:
  """Keeps the trace of a function, for layers of the same shapes and for the next time the network is traced.

  Tracing is what takes the time before the first step of a large network, and most of it repeats. The operations stand
  in the caller's program as if the function had not been wrapped.

  Args:
    *static: the positions of hashable arguments that are no arrays.
  """
  return functools.partial(jax.jit, static_argnums=static, inline=True)
