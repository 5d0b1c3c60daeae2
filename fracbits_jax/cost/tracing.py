"""From a network to its layer table: the shapes of one call are traced, nothing is computed."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from fracbits_jax.cost.layer_table import Layer, add_row, checked_rows, row
from fracbits_jax.layers import Quantized, watch_layers
from fracbits_jax.layers.examples import example_of, examples_in


def trace(model: Any, inputs: Any, **kwargs: Any) -> tuple[Layer, ...]:
  """The layer table of a network, in the order in which the layers run.

  Shapes alone are traced (`jax.eval_shape`); nothing is computed. Layers without quantization count 32 bits.

  Args:
    model: a linen module, or an NNX module that `quantize_model` has quantized.
    inputs: what it is called with, as for `example_of`; the leading axis counts the examples.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: if the network has no `QuantConv`, `QuantDense` or other quantized layer.
  """
  if not isinstance(model, nn.Module):
    from fracbits_jax.cost import nnx_tracing  # loads flax.nnx

    return nnx_tracing.trace(model, inputs, **kwargs)
  example = example_of(inputs)
  rows: dict[str, Layer] = {}

  def record(module: Quantized, x: jax.Array, y: jax.Array) -> None:
    source = None if module.source is None else '/'.join((*module.path[:-1], module.source))
    found = row(
      module,
      name='/'.join(module.path),
      params=nn.meta.unbox(module.variables['params']),
      conv=isinstance(module, nn.Conv | nn.ConvTranspose),
      transposed=isinstance(module, nn.ConvTranspose),
      x=x,
      y=y,
      examples=examples_in(example),
    )
    add_row(rows, dataclasses.replace(found, source=source))

  with watch_layers(record):
    jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example)
  return checked_rows(rows, model)
