"""From a network to its layer table: the shapes of one call are traced, nothing is computed."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from fracbits_jax.cost import memory, program_tracing
from fracbits_jax.cost.layer_table import Layer, LayerTable, add_row, checked_rows, identity_row, row
from fracbits_jax.cost.ranges import range_names
from fracbits_jax.layers import FLOAT_BITS, QuantIdentity, Quantized, watch_layers
from fracbits_jax.layers.examples import example_of, examples_in
from fracbits_jax.program import coverage
from fracbits_jax.program import networks as programs
from fracbits_jax.program.trace import leaves_by_path


def trace(model: Any, inputs: Any, *, batch_axes: Any = 0, strict: bool = False, **kwargs: Any) -> LayerTable:
  """The layer table of a network, in the order in which the layers run.

  Shapes alone are traced; nothing is computed. What is not quantized counts 32 bits.

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
    rows_of_program = program_tracing.rows(network, program, examples_in(example, batch_axes))
    find = functools.partial(memory.of_model, model, example, rows_of_program, batch_axes, kwargs)
    return LayerTable(rows_of_program, coverage.measure(network, program), find)
  rows: dict[str, Layer] = {}

  def record(module: Quantized, x: jax.Array, y: jax.Array) -> None:
    name, beside = '/'.join(module.path), lambda sibling: '/'.join((*module.path[:-1], sibling))
    if isinstance(module, QuantIdentity):
      if module.quant is not None:
        rows[name] = identity_row(module.quant, name=name, channels=x.shape[-1])
      return
    found = row(
      module,
      name=name,
      params=nn.meta.unbox(module.variables['params']),
      conv=isinstance(module, nn.Conv | nn.ConvTranspose),
      transposed=isinstance(module, nn.ConvTranspose),
      x=x,
      y=y,
      examples=examples_in(example, batch_axes),
    )
    source = None if module.source is None else beside(module.source)
    input_path = '' if module.input_from is None else beside(module.input_from)
    add_row(rows, dataclasses.replace(found, source=source, input_path=input_path))

  with watch_layers(record):
    variables = jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example)
  found = checked_rows(rows, model)
  find = functools.partial(memory.of_model, model, example, found, batch_axes, kwargs)
  return LayerTable(found, _of_layers(found, variables['params']), find)


def _of_layers(layers: Sequence[Layer], params: Any) -> coverage.Coverage:
  """How much of a network of quantized layers is quantized."""
  leaves = leaves_by_path(params)
  ranges = range_names(layers, leaves)
  sizes = {path: leaf.size for path, leaf in leaves.items() if path not in ranges}
  layers = [layer for layer in layers if layer.has_kernel]
  quantized = [layer for layer in layers if layer.kernel_bits != FLOAT_BITS]
  return coverage.Coverage(
    weights=len(layers),
    quantized=len(quantized),
    macs=sum(layer.macs for layer in layers),
    quantized_macs=sum(layer.macs for layer in quantized),
    parameters=sum(sizes.values()),
    quantized_parameters=sum(layer.weights for layer in quantized),
    by_rule=tuple(layer.name for layer in layers if layer.kernel_bits == FLOAT_BITS),
    left={path: size for path, size in sizes.items() if not path.endswith('kernel')},
  )
