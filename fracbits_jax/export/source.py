"""What is exported: a network with integer bit-widths, from a finished run or one's own."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fracbits_jax import cost, policy
from fracbits_jax.export.graph import Graph, capture
from fracbits_jax.layers.examples import example_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A network to export.

  Attributes:
    name: what the exported file calls it.
    graph: the network as a graph.
    model: the network itself: a linen module, or what `nnx_adapter.functional` makes of an NNX one.
    variables: its variables.
    call: arguments of its call beside the input.
    input: shape and dtype of an input, the leading axis counting examples.
    layers: its layer table.
    input_range: least and largest input where inputs are integers, such as (0, 255) for images; `None` for real ones.
  """

  name: str
  graph: Graph
  model: Any
  variables: Mapping[str, Any]
  call: Mapping[str, Any]
  input: jax.ShapeDtypeStruct
  layers: tuple[cost.Layer, ...]
  input_range: tuple[int, int] | None = None

  @property
  def size_mb(self) -> float:
    """The size that costs and policies report, in 10^6 bytes."""
    return float(cost.model_size(self.variables.get('bits', {}), self.layers))

  def notes(self) -> dict[str, str]:
    """What a file says of its network beside the graph."""
    found = policy_of(self)
    kept = {'bitops_g': f'{found.bitops_g:.9g}', 'size_mb': f'{found.size_mb:.9g}'}
    return kept if self.input_range is None else {**kept, 'input_range': '{} {}'.format(*self.input_range)}


def source_of(
  model: Any,
  variables: Mapping[str, Any] | None,
  inputs: Any,
  *,
  name: str = 'network',
  input_range: tuple[int, int] | None = None,
  **kwargs: Any,
) -> Source:
  """A network of one's own, as something to export.

  Args:
    model: a quantized network, linen or NNX.
    variables: its variables, with integer bit-widths; `None` for an NNX model, which has them.
    inputs: what it is called with, as for `cost.trace`.
    name: of the network.
    input_range: as of a `Source`.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: one sentence: fractional bits, several inputs, or what `graph.capture` cannot export.
  """
  examples = example_of(inputs)
  if len(examples) != 1:
    raise ValueError(f'{type(model).__name__} takes {len(examples)} inputs: export a network that takes one')
  layers = cost.trace(model, examples[0], **kwargs)
  if not isinstance(model, nn.Module):
    from fracbits_jax.layers import nnx_adapter  # which loads flax.nnx

    model, variables = nnx_adapter.functional(model)
  if variables is None:
    raise ValueError(f'{type(model).__name__} has no variables of its own: give them')
  return Source(
    name=name,
    graph=capture(model, variables, examples[0], **kwargs),
    model=model,
    variables=variables,
    call=kwargs,
    input=examples[0],
    layers=layers,
    input_range=input_range,
  )


def source_of_run(workdir: str | os.PathLike, *, best: bool = False) -> Source:
  """The network of a finished run; one with pruned channels loses them first.

  Args:
    workdir: the run's folder.
    best: its variables are those with the highest validation accuracy, not the last.

  Raises:
    ValueError: one sentence: no finished run, or one that ended before its bit-widths were integers.
  """
  # A run needs the input pipeline; networks of one's own do not.
  from fracbits_jax.layers import wrap
  from fracbits_jax.policy import compact
  from fracbits_jax.run import finished
  from fracbits_jax.run.records import read_finished

  phase = read_finished(workdir)[1]['phase']
  if phase != 'finetune':
    raise ValueError(
      f'{workdir} ended with {phase}, so its bit-widths are not integers: run it with finetune among its phases'
    )
  run = finished.load(workdir, best=best)
  model, variables = run.experiment.quant_model.clone(axis_name=None), run.variables
  image_shape = run.experiment.dataset.image_shape
  if model.quant.prunes:
    model, variables = compact.compact(model, variables, image_shape)
  model = wrap.with_fixed_bits(model)
  inputs = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  return source_of(model, variables, inputs, name=pathlib.Path(workdir).resolve().name, input_range=(0, 255))


def policy_of(source: Source) -> policy.Policy:
  """The integer bit-widths of a source, as a policy at its own cost."""
  bits = source.variables.get('bits', {})
  return policy.from_bits(bits, source.layers, cost.Budget(metric='size', target=source.size_mb))
