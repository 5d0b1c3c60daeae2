"""From a network with pruned channels to a smaller one without them, which gives the same logits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from flax.core import FrozenDict

from fracbits_jax.cost import layer_table, tracing
from fracbits_jax.layers import GatedBatchNorm


def compact(model: nn.Module, variables: Any, image_shape: Sequence[int]) -> tuple[nn.Module, dict[str, Any]]:
  """Takes away the channels whose kernels have 0 bits.

  Batch norm, clips and bit-widths of what stays are untouched. Pruned channels do not count for the maxima and the
  deviations by which kernels are normalised, so nothing that stays changes its value.

  Args:
    model: a network of `models.create` that prunes: granularity `kernel`, 0 among the allowed bit-widths.
    variables: its variables with integer bit-widths, those of a finished run or of `Policy.bits`.
    image_shape: `[H, W, C]`.

  Returns:
    The smaller network, whose `kept` says how many channels each layer kept, and its variables. Its batch norm averages
    over no mapped axis.

  Raises:
    ValueError: a network that cannot prune; bits that are not integers; a layer without any channel left.
  """
  if model.quant is None or not model.quant.prunes:
    raise ValueError(
      'this network cannot prune: it needs quant with granularity="kernel" and 0 among its choices, as in '
      'QuantConfig(granularity="kernel", choices=range(9))'
    )
  layers = tracing.trace(model, image_shape)
  kept = _kept_channels(variables['bits'], layers)
  smaller = model.clone(
    quant=dataclasses.replace(model.quant, choices=model.quant.allowed_kernel_bits[1:]),
    axis_name=None,
    kept=FrozenDict({name: len(channels) for name, channels in kept.items()}),
  )
  flat = {tuple(k): np.asarray(v) for k, v in traverse_util.flatten_dict(dict(variables)).items()}
  for path, axis, source in _cuts(model, layers, image_shape, flat):
    flat[path] = np.take(flat[path], kept[source], axis=axis)
  return smaller, jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat))


def _kept_channels(bits: Any, layers: Sequence[layer_table.Layer]) -> dict[str, np.ndarray]:
  """The channels that stay, by prunable layer."""
  kept = {}
  for layer in layers:
    if layer.prunes:
      widths = np.asarray(layer_table.bits_of(bits, layer, 'kernel'))
      if (widths != np.round(widths)).any():
        raise ValueError(f'{layer.name} has fractional bits: discretize them before taking channels away')
      kept[layer.name] = np.flatnonzero(widths > 0)
      if not kept[layer.name].size:
        raise ValueError(f'{layer.name} has no channel left: give at least one of its kernels more than 0 bits')
  return kept


def _cuts(
  model: nn.Module, layers: Sequence[layer_table.Layer], image_shape: Sequence[int], flat: dict
) -> list[tuple[tuple[str, ...], int, str]]:
  """Every array that loses channels: its path among the variables, the axis, and the layer that prunes them."""
  cuts = []
  for layer in layers:
    path = tuple(layer.name.split('/'))
    outputs = layer.name if layer.prunes else layer.source if layer.kind == 'depthwise' else None
    if outputs is not None:
      cuts += [(('params', *path, 'kernel'), -1, outputs)]
      ranges = ('params', *path, 'kernel_alpha')
      if ranges in flat and flat[ranges].ndim:
        cuts += [(ranges, -1, outputs)]
      if layer.per_channel and layer.kernel_bits is None:
        cuts += [(('bits', *path, 'kernel'), -1, outputs)]
    if layer.source is not None and layer.kind != 'depthwise':
      cuts += [(('params', *path, 'kernel'), -2, layer.source)]
  norms = _norm_sources(model, image_shape)
  cuts += [(path, -1, norms[path[1:-1]]) for path in flat if path[1:-1] in norms]
  return cuts


def _norm_sources(model: nn.Module, image_shape: Sequence[int]) -> dict[tuple[str, ...], str]:
  """The layer that made its channels, for every norm whose channels can be pruned; shapes alone are traced."""
  sources = {}

  def intercept(call, args, kwargs, context):
    norm = context.module
    if isinstance(norm, GatedBatchNorm) and norm.source is not None:
      sources[norm.path] = '/'.join((*norm.path[:-1], norm.source))
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
  return sources
