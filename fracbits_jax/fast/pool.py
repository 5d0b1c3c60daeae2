"""Max pooling that is fast on every platform."""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from fracbits_jax.fast.derivatives import with_backward

Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool(x: jax.Array, *, size: int, stride: int, padding: int) -> jax.Array:
  """The maxima of square windows; the gradient goes to the first of equal maxima.

  XLA's CPU backend scatters that gradient element by element, with arrays of indices several times the size of the
  inputs. There it is gathered instead, by shifted comparisons; other platforms get `flax.linen.max_pool` itself.

  Args:
    x: `[N, H, W, C]`.
    size: height and width of a window.
    stride: of height and width.
    padding: on each side, less than `size`, with what no maximum comes from.
  """
  return _max_pool(x, size, stride, padding)


def _plain(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
  return nn.max_pool(x, (size, size), (stride, stride), ((padding, padding),) * 2)


def _positions(x: jax.Array, g_shape: tuple[int, ...], size: int, stride: int, padding: int) -> Iterator:
  """For each position in a window, `(i, j)` and what lies there in every window."""
  around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(x, around, constant_values=-jnp.inf)
  rows, columns = ((n - 1) * stride + 1 for n in g_shape[1:3])
  for i, j in itertools.product(range(size), repeat=2):
    yield i, j, padded[:, i : i + rows : stride, j : j + columns : stride]


def _gathered_vjp(x: jax.Array, g: jax.Array, *, size: int, stride: int, padding: int) -> jax.Array:
  # Backwards, so that the first of equal maxima has the last word.
  (i, j, best), *others = reversed(list(_positions(x, g.shape, size, stride, padding)))
  where = jnp.full(g.shape, i * size + j, jnp.int8)
  for i, j, value in others:
    best, where = jnp.maximum(best, value), jnp.where(value >= best, i * size + j, where).astype(jnp.int8)
  zero = jnp.zeros((), g.dtype)
  parts = []
  for i, j in itertools.product(range(size), repeat=2):
    gaps = [
      (start - padding, length - ((count - 1) * stride + 1) - start + padding, stride - 1)
      for start, length, count in zip((i, j), x.shape[1:3], g.shape[1:3], strict=True)
    ]
    there = jnp.where(where == i * size + j, g, zero)
    parts.append(lax.pad(there, zero, ((0, 0, 0), *gaps, (0, 0, 0))))
  return functools.reduce(jnp.add, parts)


def _backward(size, stride, padding, arguments, g):
  (x,) = arguments
  window = {'size': size, 'stride': stride, 'padding': padding}
  plain = lambda x, g: jax.vjp(functools.partial(_plain, **window), x)[1](g)[0]
  return (lax.platform_dependent(x, g, cpu=functools.partial(_gathered_vjp, **window), default=plain),)


_max_pool = with_backward(_backward, static=(1, 2, 3))(_plain)
