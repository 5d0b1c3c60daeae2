"""From a network to its layer table: the shapes of one call are traced, nothing is computed."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from fracbits_jax.cost import coverage, program_tracing
from fracbits_jax.cost.layer_table import Layer, add_row, checked_rows, row
from fracbits_jax.layers import Quantized, watch_layers
from fracbits_jax.layers.examples import example_of, examples_in
from fracbits_jax.program import networks as programs


def trace(model: Any, inputs: Any, *, batch_axes: Any = 0, strict: bool = False, **kwargs: Any) -> tuple[Layer, ...]:
  """The layer table of a network, in the order in which the layers run.

  Shapes alone are traced (`jax.eval_shape`); nothing is computed. Layers without quantization count 32 bits.

  Args:
    model: a linen module of quantized layers, or what `quantize_model` made of a network.
    inputs: what it is called with, as for `example_of`.
    batch_axes: which axis counts the examples, as `in_axes` of `jax.vmap`; `None` where a call is one example.
    strict: for a network of `quantize_model`: refuse weights that are neither quantized nor left float by a rule.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: a network without anything that is quantized; with `strict`, the weights that are left out.
  """
  example = example_of(inputs)
  if not isinstance(model, nn.Module):
    network, program = programs.program_of(model, example, kwargs)
    if strict:
      coverage.check(network, program)
    return program_tracing.rows(network, program, examples_in(example, batch_axes))
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
      examples=examples_in(example, batch_axes),
    )
    add_row(rows, dataclasses.replace(found, source=source))

  with watch_layers(record):
    jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example)
  return checked_rows(rows, model)
