"""Convolutions that are fast on every platform.

XLA's CPU backend is slow at 1 x 1 and at depthwise convolutions, gradients above all. There the first become matrix
products and the second shifted multiply-adds, both with hand-written gradients; every other platform, and every other
convolution, gets `lax.conv_general_dilated` itself.
"""

import contextlib
import contextvars
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fracbits_jax.fast.derivatives import with_backward
from fracbits_jax.fast.inlined import inlined
from fracbits_jax.fast.stored import stored
from fracbits_jax.fast.sums import sums

Padding = tuple[tuple[int, int], tuple[int, int]]
_NHWC = ('NHWC', 'HWIO', 'NHWC')
_always_general = contextvars.ContextVar('always_general', default=False)


@contextlib.contextmanager
def always_general() -> Iterator[None]:
  """While this context is open every convolution is traced as `lax.conv_general_dilated`, whatever the platform."""
  token = _always_general.set(True)
  try:
    yield
  finally:
    _always_general.reset(token)


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: Any = None,
) -> jax.Array:
  """`lax.conv_general_dilated`, same arguments and result, by the path that suits shape and platform.

  Args:
    lhs: `[N, H, W, C_in]` for the fast paths; anything that XLA takes otherwise.
    rhs: kernel `[k_h, k_w, C_in / groups, C_out]`.
    window_strides: strides of height and width.
    padding: `SAME`, `VALID` or pairs.
    lhs_dilation: input dilation.
    rhs_dilation: kernel dilation.
    dimension_numbers: layout, channels last for the fast paths.
    feature_group_count: groups.
    precision: as in `lax.conv_general_dilated`.
  """
  general = functools.partial(
    lax.conv_general_dilated,
    window_strides=window_strides,
    padding=padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    precision=precision,
  )
  plain = (
    isinstance(rhs, jax.Array | np.ndarray)  # and not what a library that replaces the general one has in its place
    and lhs.ndim == 4
    and padding != 'SAME_LOWER'
    and dimension_numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
  )
  if not (plain and lhs.size and rhs.size) or _always_general.get():
    return general(lhs, rhs)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
  of_rows, of_columns = ((int(low), int(high)) for low, high in padding)
  strides, pads = tuple(window_strides), (of_rows, of_columns)
  if any(size + sum(pad) < window for size, pad, window in zip(lhs.shape[1:3], pads, rhs.shape[:2], strict=True)):
    return general(lhs, rhs)  # nothing comes out
  if rhs.shape[:2] == (1, 1) and feature_group_count == 1 and not any(map(any, pads)):
    return _convolution(lhs, rhs, _Pointwise(strides, pads, precision))
  if rhs.shape[2] == 1 and rhs.shape[3] == lhs.shape[3] == feature_group_count and min(min(pads)) >= 0:
    return _convolution(lhs, rhs, _Depthwise(strides, pads, precision))
  if feature_group_count == 1:
    return _convolution(lhs, rhs, _Spatial(strides, pads, precision))
  return general(lhs, rhs)


@dataclasses.dataclass(frozen=True)
class _Settings:
  """A convolution over `NHWC` that has a path of its own on the CPU, `product` with its gradient `product_vjp`."""

  strides: tuple[int, ...]
  padding: Padding
  precision: Any

  def plain(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
      x,
      kernel,
      self.strides,
      self.padding,
      dimension_numbers=_NHWC,
      feature_group_count=groups,
      precision=self.precision,
    )


class _Pointwise(_Settings):
  """A 1 x 1 convolution as a matrix product."""

  def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return self._dot(self._seen(x), kernel[0, 0], 3, 0)

  def product_vjp(self, x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    g_seen = self._dot(g, kernel[0, 0], 3, 1)
    gaps = [(0, size - 1 - (out - 1) * stride, stride - 1) for size, out, stride in self._sizes(x, g)]
    g_x = lax.pad(g_seen, jnp.zeros((), g.dtype), ((0, 0, 0), *gaps, (0, 0, 0)))
    # Both operands as they lie: autodiff would transpose one of them first.
    rows = lambda y: y.reshape(-1, y.shape[-1])
    return g_x, self._dot(rows(self._seen(x)), rows(g), 0, 0)[None, None]

  def _seen(self, x: jax.Array) -> jax.Array:
    return x[:, :: self.strides[0], :: self.strides[1]]

  def _sizes(self, x: jax.Array, g: jax.Array) -> Iterable[tuple[int, int, int]]:
    return zip(x.shape[1:3], g.shape[1:3], self.strides, strict=True)

  def _dot(self, a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), precision=self.precision)


class _Depthwise(_Settings):
  """A depthwise convolution as shifted multiply-adds."""

  def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
    # In a loop with what made the kernel, every output would make its part of the kernel again.
    return stored(lambda: _shifted_sum(padded, kernel, self.strides), kernel)

  def product_vjp(self, x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = kernel.shape[:2]
    # The gradient of x is g, spread by the strides, convolved with the kernel turned around.
    gaps = []
    for d in range(2):
      spread = (g.shape[1 + d] - 1) * self.strides[d] + 1
      low = size[d] - 1 - self.padding[d][0]
      gaps.append((low, x.shape[1 + d] + size[d] - 1 - low - spread, self.strides[d] - 1))
    spread_g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *gaps, (0, 0, 0)))
    g_x = stored(lambda: _shifted_sum(spread_g, kernel[::-1, ::-1], (1, 1)), kernel)
    padded = stored(lambda: jnp.pad(x, ((0, 0), *self.padding, (0, 0))), kernel)
    windows = _windows(padded, size, self.strides).values()
    g_kernel = sums([(under * g).astype(jnp.float32) for under in windows], by_channel=True)
    return g_x, jnp.stack(g_kernel).reshape(kernel.shape).astype(kernel.dtype)


class _Spatial(_Settings):
  """Any other convolution: XLA's own, whose gradients are convolutions over `NHWC` as well.

  XLA makes them so itself, but not within a loop, such as that over the parts of a batch: there any other layout takes
  forty times as long.
  """

  product = _Settings.plain

  def product_vjp(self, x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=_NHWC, precision=self.precision)
    # What has to lie around g, spread by the strides, and so around x.
    around_g, around_x = [], []
    for d, stride in enumerate(self.strides):
      last = kernel.shape[d] - 1
      low = last - self.padding[d][0]
      high = x.shape[1 + d] + last - low - ((g.shape[1 + d] - 1) * stride + 1)
      around_g.append((low, high))
      around_x.append((last - low, last - high))
    turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    g_x = conv(g, turned, (1, 1), around_g, lhs_dilation=self.strides)
    # XLA transposes x to [C, H, W, N], in a loop that also computes x again. Stored as [H, W, C, N], which is read and
    # written in order, the rest moves whole rows of N.
    x_last = stored(lambda: jnp.transpose(x, (1, 2, 3, 0)), kernel)
    channels_first, windows = jnp.transpose(x_last, (2, 0, 1, 3)), jnp.transpose(g, (1, 2, 0, 3))
    g_kernel = conv(channels_first, windows, (1, 1), around_x, rhs_dilation=self.strides)
    return g_x, jnp.transpose(g_kernel, (1, 2, 0, 3))


def _windows(padded: jax.Array, size: tuple[int, ...], strides: tuple[int, ...]) -> dict:
  """For each position (i, j) of the kernel, what lies under it in every window: `[N, H_out, W_out, C]`."""
  stops = [padded.shape[1 + d] - size[d] + 1 for d in range(2)]
  return {
    (i, j): padded[:, i : i + stops[0] : strides[0], j : j + stops[1] : strides[1]]
    for i, j in itertools.product(*map(range, size))
  }


def _shifted_sum(padded: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
  """The depthwise convolution of inputs that are already padded."""
  windows = _windows(padded, kernel.shape[:2], strides)
  return functools.reduce(jnp.add, (under * kernel[i, j, 0][None, None, None] for (i, j), under in windows.items()))


@inlined(0)
def _backward(how, arguments, g):
  plain_vjp = lambda x, kernel, g: jax.vjp(how.plain, x, kernel)[1](g)
  return lax.platform_dependent(*arguments, g, cpu=how.product_vjp, default=plain_vjp)


def _forward(how, arguments, tangents):
  (x, kernel), (x_dot, kernel_dot) = arguments, tangents
  parts = [(x_dot, kernel), (x, kernel_dot)]
  return functools.reduce(jnp.add, (_convolution(*pair, how) for pair in parts if all(x is not None for x in pair)))


@with_backward(_backward, static=(2,), forward=_forward)
@inlined(2)
def _convolution(x, kernel, how):
  return lax.platform_dependent(x, kernel, cpu=how.product, default=how.plain)
