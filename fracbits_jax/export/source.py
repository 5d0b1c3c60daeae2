"""What is exported: a network with integer bit-widths, from a finished run or one's own."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import cost, policy
from fracbits_jax.graph.calls import Call, call_of
from fracbits_jax.graph.capture import capture, check_integers
from fracbits_jax.graph.graph import Graph

_VECTORS, _FOR_RANGES = 8, 512  # images of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A network to export.

  Attributes:
    name: what the exported file calls it.
    model: the network itself: a linen module, what `quantize_model` made, what `nnx_adapter.functional` makes of an NNX
      model, or a function of variables and inputs.
    variables: its variables.
    call: what it is called with.
    counted: the network as `cost.trace` takes it.
    batch_axes: as for `cost.trace`.
    input_range: least and largest input where inputs are integers, such as (0, 255) for images; `None` for real ones.
    examples: gives inputs for test vectors `[N, ...]`, such as test images; `None` for none.
    training: gives inputs that it was trained on `[N, ...]`, from which ranges can be taken; `None` for none.
    given: its graph, where that is another one than `capture` makes of it.
  """

  name: str
  model: Any
  variables: Mapping[str, Any]
  call: Call
  counted: Any
  batch_axes: Any = 0
  input_range: tuple[int, int] | None = None
  examples: Callable[[], Any] | None = None
  training: Callable[[], Any] | None = None
  given: Graph | None = None

  @functools.cached_property
  def graph(self) -> Graph:
    """The network as a graph; raises `ValueError` for an operation that no graph has."""
    return capture(self.model, self.variables, (), call=self.call) if self.given is None else self.given

  @functools.cached_property
  def brief_graph(self) -> Graph:
    """The same, with large constants that follow from a few numbers as the operations that make them."""
    return capture(self.model, self.variables, (), call=self.call, brief=True) if self.given is None else self.given

  @functools.cached_property
  def layers(self) -> tuple[cost.Layer, ...]:
    """Its layer table."""
    zeros = lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
    kwargs = jax.tree.map(zeros, dict(self.call.kwargs))
    return cost.trace(self.counted, self.call.args, batch_axes=self.batch_axes, **kwargs)

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
  batch_axes: Any = 0,
  **kwargs: Any,
) -> Source:
  """A network of one's own, as something to export.

  Args:
    model: a quantized network: linen, NNX, a function that `quantize_model` has quantized. For `stablehlo` any function
      of variables and inputs will do.
    variables: its variables, with integer bit-widths; `None` for an NNX model, which has them.
    inputs: what it is called with, as for `cost.trace`: an array, a tree such as a dictionary, or a tuple of several.
    name: of the network.
    input_range: as of a `Source`.
    batch_axes: the axis that counts the examples, as for `cost.trace`.
    **kwargs: for the call, such as `train=False`; those that are arrays are inputs of the exported network.

  Raises:
    ValueError: fractional bits, or variables that are missing.
  """
  counted = model
  if not isinstance(model, nn.Module) and not hasattr(model, 'apply'):
    from flax import nnx

    if isinstance(model, nnx.Module):
      from fracbits_jax.program import nnx_adapter

      model, variables = nnx_adapter.functional(model)
  if variables is None:
    raise ValueError(f'{type(model).__name__} has no variables of its own: give them')
  check_integers(variables.get('bits', {}) if isinstance(variables, Mapping) else {})
  return Source(
    name=name,
    model=model,
    variables=variables,
    call=call_of(counted, inputs, kwargs, batch_axes),
    counted=counted,
    batch_axes=batch_axes,
    input_range=input_range,
  )


def source_of_run(workdir: str | os.PathLike, *, best: bool = False) -> Source:
  """The network of a finished run; one with pruned channels loses them first.

  Args:
    workdir: the run's folder.
    best: its variables are those that were best on the validation split, not the last.

  Raises:
    ValueError: one sentence: no finished run, or one that ended before its bit-widths were integers.
  """
  # A run needs the input pipeline; networks of one's own do not.
  from fracbits_jax.data.batches import eval_batches
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
  dataset, task = run.experiment.dataset, run.experiment.task
  if model.quant.prunes:
    model, variables = compact.compact(model, variables, dataset.image_shape)
  if hasattr(model, 'unrolled'):  # a loop would be unrolled anyway, for a fixed number of examples
    model, variables = model.unrolled(variables)
  model = wrap.with_fixed_bits(model)
  most = 255 if dataset.tokens is None else dataset.num_classes - 1
  name = pathlib.Path(workdir).resolve().name
  source = source_of(model, variables, run.experiment.inputs, name=name, input_range=(0, most))

  def examples(split: str, count: int) -> np.ndarray:
    batch = next(eval_batches(dataset, split, batch_size=count))
    there = batch['mask'].reshape(count, -1).any(axis=1)
    # Images as they are read; tokens as the network has them.
    found = batch['image'] if dataset.tokens is None else np.asarray(task.inputs(batch))
    return found[there]

  return dataclasses.replace(
    source, examples=lambda: examples('test', _VECTORS), training=lambda: examples('train', _FOR_RANGES)
  )


def policy_of(source: Source) -> policy.Policy:
  """The integer bit-widths of a source, as a policy at its own cost."""
  bits = source.variables.get('bits', {})
  return policy.from_bits(bits, source.layers, cost.Budget(metric='size', target=source.size_mb))
