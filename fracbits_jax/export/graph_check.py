"""Whether a graph that anybody may have written can be computed, and is in proportion to what it comes from."""

import math
from collections.abc import Mapping, Sequence

import jax

from fracbits_jax.export import shape_values, shapes
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Graph, Node
from fracbits_jax.system.strict_json import shown

# Elements of all values of a network for one image, by the bytes of the file and elements of an image, and beside them.
VALUES_PER_BYTE, FREE_VALUES = 2**12, 2**26


def check(graph: Graph, size: int) -> None:
  """Raises `ValueError` unless each operation fits its inputs, gives what it should, and is not out of all proportion.

  Args:
    graph: a network.
    size: of its file, in bytes.
  """
  of_input = sum(math.prod(x.shape[1:] if x.is_batched else x.shape) for x in graph.inputs)
  most, computed = FREE_VALUES + VALUES_PER_BYTE * (of_input + size), 0
  by_images = {images: {x.name: _value(x.shape, x.dtype, images) for x in graph.inputs} for images in (1, 3)}
  if len(by_images[1]) != len(graph.inputs):
    raise ValueError('two inputs have one name')
  for node in graph.nodes:
    if node.output in by_images[1]:
      raise ValueError(f'two operations make the value {shown(node.output)}')
    for images, values in by_images.items():
      values[node.output] = _result(node, values, images)
    computed += math.prod(by_images[1][node.output].shape)
    if computed > most:
      raise ValueError(f'its operations compute more than {most:,} numbers for an input, too many for its size')
  for output in graph.outputs:
    if output not in by_images[1]:
      raise ValueError(f'its output {shown(output)} is made by no operation')


def _result(node: Node, values: Mapping[str, shape_values.Value], images: int) -> shape_values.Value:
  """What an operation gives for a number of images, which has to be what it should."""
  try:
    inputs = [values[x] if isinstance(x, str) else _value(x.shape, x.dtype.name, images) for x in node.inputs]
    found = shapes.result(node.op, ops.sized(node.params, images), inputs)
  except KeyError as error:
    raise ValueError(f'the {node.op} {shown(node.output)} has no {shown(error.args[0])}') from None
  except (ValueError, TypeError, IndexError, AttributeError) as error:
    why = str(error) if type(error) is ValueError else 'its parameters are of another kind'
    raise ValueError(f'the {node.op} {shown(node.output)} does not fit its inputs: {why}') from None
  if found != _value(node.shape, node.dtype, images):
    raise ValueError(f'{shown(node.output)} has another shape or dtype than it should')
  return found


def _value(shape: Sequence[int], dtype: str, images: int) -> shape_values.Value:
  wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # JAX adds its options as it loads
  return shape_values.Value(
    tuple(-size * images if size < 0 else size for size in shape), 'int32' if dtype == 'int64' and not wide else dtype
  )
