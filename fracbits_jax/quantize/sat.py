"""The scale of a quantized kernel that has no batch norm behind it: SAT (Jin et al. 2019, arXiv 1912.10207)."""

import math

import jax
import jax.numpy as jnp


def rescale(quantized: jax.Array, kept: jax.Array | None = None) -> jax.Array:
  """Scales a quantized kernel as SAT does for a layer without a batch norm behind it (Jin et al. 2019).

      kernel / (sqrt(fan) std(kernel)),    fan = C_out k_h k_w

  The standard deviation is the unbiased one over all entries; no gradient flows through the factor.

  Args:
    quantized: kernel `[C_in, C_out]` or `[k_h, k_w, C_in, C_out]`.
    kept: booleans that broadcast against it, false where a channel has been pruned: such entries do not count.

  Returns:
    The scaled kernel, same shape and dtype; unchanged where the kernel is constant.
  """
  return quantized * jax.lax.stop_gradient(rescale_factor(quantized, kept)).astype(quantized.dtype)


def rescale_factor(quantized: jax.Array, kept: jax.Array | None = None) -> jax.Array:
  """What `rescale` multiplies a kernel by, `()`; 1 where the kernel is constant. Arguments as there."""
  fan = math.prod(quantized.shape[:-2]) * quantized.shape[-1]
  if not quantized.size:
    return jnp.float32(1)
  q = quantized.astype(jnp.float32)
  where = None if kept is None else jnp.broadcast_to(kept, q.shape)
  # The deviation of equal values need not be 0, as their mean is rounded.
  std = jnp.std(q, ddof=1, where=where)
  varies = jnp.max(q, initial=-jnp.inf, where=where) > jnp.min(q, initial=jnp.inf, where=where)
  varies &= std > 0
  return jnp.where(varies, 1 / (jnp.sqrt(jnp.float32(fan)) * jnp.where(varies, std, 1)), 1)
