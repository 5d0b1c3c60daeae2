"""Functions that are traced once for all arguments of the same shapes."""

import functools
from collections.abc import Callable

import jax


def inlined(*static: int) -> Callable[[Callable], Callable]:
  """Keeps the trace of a function, for layers of the same shapes and for the next time the network is traced.

  Tracing takes much of the time before the first step of a large network, and most of it repeats. The operations stand
  in the caller's program as if the function had not been wrapped. Outside a program the function is compiled as one.

  Besides its arguments the function may depend on JAX's configuration alone: anything else, such as a context variable,
  would be that of the first trace.

  Args:
    *static: the positions of hashable arguments that are no arrays.
  """
  return functools.partial(jax.jit, static_argnums=static, inline=True)
