"""The layer table of an NNX model."""

from typing import Any

import jax
from flax import nnx

from fracbits_jax.cost import layer_table
from fracbits_jax.layers import examples
from fracbits_jax.layers.nnx_layers import watch_layers


def trace(model: nnx.Module, inputs: Any, **kwargs: Any) -> tuple[layer_table.Layer, ...]:
  """The layer table of a model; arguments and errors as `cost.trace`."""
  example = examples.example_of(inputs)
  rows: dict[str, layer_table.Layer] = {}

  def record(layer: Any, x: jax.Array, y: jax.Array) -> None:
    row = layer_table.row(
      layer,
      name='/'.join(layer.path),
      params={'kernel': layer.kernel[...]} | ({} if layer.bias is None else {'bias': layer.bias[...]}),
      conv=isinstance(layer, nnx.Conv | nnx.ConvTranspose),
      transposed=isinstance(layer, nnx.ConvTranspose),
      x=x,
      y=y,
      examples=examples.examples_in(example),
    )
    layer_table.add_row(rows, row)

  graph, state = nnx.split(model)
  with watch_layers(record):
    jax.eval_shape(lambda state, *args: nnx.merge(graph, state)(*args, **kwargs), state, *example)
  return layer_table.checked_rows(rows, model)
