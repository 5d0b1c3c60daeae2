"""Convolutions that are fast on every platform.

XLA's CPU backend is slow at 1 x 1 and at depthwise convolutions, gradients above all. There the first become matrix
products and the second shifted multiply-adds with a hand-written gradient; every other platform, and every other
convolution, gets `lax.conv_general_dilated` itself.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
_NHWC = ('NHWC', 'HWIO', 'NHWC')


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
    padding: `SAME`, `VALID` or pairs; the fast paths take pairs.
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
    lhs.ndim == 4
    and not isinstance(padding, str)
    and dimension_numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
  )
  if not plain:
    return general(lhs, rhs)
  strides, pads = tuple(window_strides), tuple((int(low), int(high)) for low, high in padding)
  if rhs.shape[:2] == (1, 1) and feature_group_count == 1 and not any(map(any, pads)):
    product = functools.partial(_pointwise, strides=strides, precision=precision)
    return lax.platform_dependent(lhs, rhs, cpu=product, default=general)
  if rhs.shape[2] == 1 and rhs.shape[3] == lhs.shape[3] == feature_group_count and min(min(pads)) >= 0:
    return _depthwise(lhs, rhs, strides, pads, precision)
  return general(lhs, rhs)


def _pointwise(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, ...], precision: Any) -> jax.Array:
  """A 1 x 1 convolution as a matrix product."""
  x = x[:, :: strides[0], :: strides[1]]
  return jnp.dot(x, kernel[0, 0], precision=precision)


def _plain_depthwise(
  x: jax.Array, kernel: jax.Array, *, strides: tuple[int, ...], padding: Padding, precision: Any
) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=_NHWC, feature_group_count=x.shape[-1], precision=precision
  )


def _windows(x: jax.Array, size: tuple[int, ...], strides: tuple[int, ...], padding: Padding) -> dict:
  """For each position (i, j) of the kernel, what lies under it in every window: `[N, H_out, W_out, C]`."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  stops = [x.shape[1 + d] - size[d] + 1 for d in range(2)]
  return {
    (i, j): x[:, i : i + stops[0] : strides[0], j : j + stops[1] : strides[1]]
    for i in range(size[0])
    for j in range(size[1])
  }


def _shifted_depthwise(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, ...], padding: Padding) -> jax.Array:
  windows = _windows(x, kernel.shape[:2], strides, padding)
  return functools.reduce(jnp.add, (under * kernel[i, j, 0][None, None, None] for (i, j), under in windows.items()))


def _shifted_depthwise_vjp(
  x: jax.Array, kernel: jax.Array, g: jax.Array, *, strides: tuple[int, ...], padding: Padding
) -> tuple[jax.Array, jax.Array]:
  size = kernel.shape[:2]
  # The gradient of x is g, spread by the strides, convolved with the kernel turned around.
  config = [(0, 0, 0)]
  for d in range(2):
    spread = (g.shape[1 + d] - 1) * strides[d] + 1
    low = size[d] - 1 - padding[d][0]
    config.append((low, x.shape[1 + d] + size[d] - 1 - low - spread, strides[d] - 1))
  spread_g = lax.pad(g, jnp.zeros((), g.dtype), (*config, (0, 0, 0)))
  g_x = _shifted_depthwise(spread_g, kernel[::-1, ::-1], strides=(1, 1), padding=((0, 0), (0, 0)))
  windows = _windows(x, size, strides, padding)
  g_kernel = jnp.stack([jnp.sum(under * g, axis=(0, 1, 2)) for under in windows.values()])
  return g_x, g_kernel.reshape(kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, strides, padding, precision):
  shifted = functools.partial(_shifted_depthwise, strides=strides, padding=padding)
  plain = functools.partial(_plain_depthwise, strides=strides, padding=padding, precision=precision)
  return lax.platform_dependent(x, kernel, cpu=shifted, default=plain)


def _depthwise_fwd(x, kernel, strides, padding, precision):
  return _depthwise(x, kernel, strides, padding, precision), (x, kernel)


def _depthwise_bwd(strides, padding, precision, residuals, g):
  x, kernel = residuals
  shifted = functools.partial(_shifted_depthwise_vjp, strides=strides, padding=padding)

  def plain(x, kernel, g):
    forward = functools.partial(_plain_depthwise, strides=strides, padding=padding, precision=precision)
    return jax.vjp(forward, x, kernel)[1](g)

  return lax.platform_dependent(x, kernel, g, cpu=shifted, default=plain)


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)
