"""From a network to its layer table: the shapes of one call are traced, nothing is computed."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax.cost import memory, program_tracing
from fracbits_jax.cost.layer_table import Layer, LayerTable, add_row, checked_rows, identity_row, row
from fracbits_jax.cost.ranges import range_names
from fracbits_jax.layers import FLOAT_BITS, QuantEmbed, QuantIdentity, Quantized, stacks, watch_layers
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
  traced: dict[str, dict[Any, Layer]] = {}  # by the trace as well: the body of a scan is traced several times
  shapes: dict[str, tuple[int, ...]] = {}  # of the kernels as the layers have them

  def record(module: Quantized, x: jax.Array, y: jax.Array) -> None:
    name, beside = '/'.join(module.path), lambda sibling: '/'.join((*module.path[:-1], sibling))
    if isinstance(module, QuantIdentity):
      if module.quant is not None:
        rows[name] = identity_row(module.quant, name=name, channels=x.shape[-1])
      return
    params = nn.meta.unbox(module.variables['params'])
    found = row(
      module,
      name=name,
      params=params,
      conv=isinstance(module, nn.Conv | nn.ConvTranspose),
      transposed=isinstance(module, nn.ConvTranspose),
      x=x,
      y=y,
      examples=examples_in(example, batch_axes),
    )
    if isinstance(module, QuantEmbed) and not jnp.issubdtype(x.dtype, jnp.floating):
      found = dataclasses.replace(found, macs=0, kind='embedding')  # rows are looked up
    source = None if module.source is None else beside(module.source)
    input_path = '' if module.input_from is None else beside(module.input_from)
    found = dataclasses.replace(found, source=source, input_path=input_path)
    add_row(rows, found)
    add_row(traced.setdefault(name, {}), found, key=getattr(y, '_trace', None))
    shapes[name] = params['kernel'].shape

  with watch_layers(record):
    variables = jax.eval_shape(lambda *args: model.init(jax.random.key(0), *args, **kwargs), *example)
  last = {name: list(by_trace.values())[-1] for name, by_trace in traced.items()}
  found = _each_of_stacks(checked_rows(rows, model), last, shapes, nn.meta.unbox(variables['params']))
  find = functools.partial(memory.of_model, model, example, found, batch_axes, kwargs)
  return LayerTable(found, _of_layers(found, variables['params']), find)


def _each_of_stacks(
  rows: Sequence[Layer], traced: Mapping[str, Layer], shapes: Mapping[str, tuple[int, ...]], params: Any
) -> tuple[Layer, ...]:
  """The rows of a table, with one for each layer of a stack in place of the stack's.

  Args:
    rows: one for each definition of a layer.
    traced: the row of each as one trace of its calls counts it.
    shapes: of the kernels as the layers have them.
    params: of the network, or their shapes.
  """
  whole = {path: leaf.shape for path, leaf in leaves_by_path(params).items()}
  sizes = {name: stacks.stack_of(whole[f'{name}/kernel'], shape) for name, shape in shapes.items()}
  depths = stacks.scanned_depths(whole, {name: stack for name, stack in sizes.items() if stack})
  found: list[Layer] = []
  for l in rows:
    if l.name not in depths:
      found.append(l)
      continue
    one, stack = traced[l.name], sizes[l.name]
    if one.source is not None or one.input_path != one.path or one.prunes:
      raise ValueError(
        f'{l.name} is within a scan, where channels cannot be pruned and layers cannot share the quantizer of their '
        'inputs: take 0 out of the choices, and let each layer quantize its own'
      )
    for index in itertools.product(*map(range, stack)):
      name = stacks.layer_name(l.name, depths[l.name], index)
      found.append(dataclasses.replace(one, name=name, stack=stack, index=index, path=l.name, input_path=l.name))
  return tuple(found)


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
