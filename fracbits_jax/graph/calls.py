"""What a network is called with and what it gives, by name: the inputs and outputs of an exported file."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import linen as nn

from fracbits_jax.layers.examples import example_of, is_array
from fracbits_jax.program.trace import path_of

_Traced = TypeVar('_Traced')
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """A call of a network with arrays of some shapes.

  Attributes:
    args: its arguments, `jax.ShapeDtypeStruct` in place of arrays.
    kwargs: its keyword arguments, in the same way.
    names: of the arrays among both, in the order of their leaves.
    batched: for each of them whether its leading axis counts the examples.
  """

  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]
  names: tuple[str, ...]
  batched: tuple[bool, ...]

  def arrays(self) -> list[jax.ShapeDtypeStruct]:
    """The shapes of the arrays that it is called with."""
    return [leaf for leaf in jax.tree.leaves((self.args, self.kwargs)) if is_array(leaf)]

  def shapes(self, count: Any) -> list[jax.ShapeDtypeStruct]:
    """The same for a number of examples, which may be a symbol; `None` leaves it as it is."""
    with_count = lambda x: x if count is None else jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    return [with_count(x) if many else x for x, many in zip(self.arrays(), self.batched, strict=True)]

  def with_arrays(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and keyword arguments with these arrays in their places."""
    leaves, tree = jax.tree.flatten((self.args, dict(self.kwargs)))
    given = iter(arrays)
    return jax.tree.unflatten(tree, [next(given) if is_array(leaf) else leaf for leaf in leaves])


def call_of(model: Any, inputs: Any, kwargs: Mapping[str, Any], batch_axes: Any = 0) -> Call:
  """The call of a network with an example.

  An array is named as the argument is whose value it is, or by its path within that; where it is the only one of the
  call, and no keyword argument, `input`. Examples are counted by the leading axis of those arrays that have as many
  entries there as the first.

  Args:
    model: the network.
    inputs: as for `example_of`.
    kwargs: keyword arguments; those that are arrays, or trees of them, are inputs as well.
    batch_axes: as for `cost.trace`; what is counted by another axis than the first has a fixed number of examples.
  """
  args = example_of(inputs)
  kwargs = {name: _shapes(value) for name, value in kwargs.items()}
  axes = batch_axes if isinstance(batch_axes, tuple | list) else (batch_axes,) * len(args)
  places = [*zip(_parameters(model, len(args)), args, axes, strict=True)]
  places += [(name, kwargs[name], 0 if batch_axes == 0 else None) for name in sorted(kwargs)]
  found = [(part, path, leaf, axis) for part, tree, axis in places for path, leaf in _leaves(tree)]
  counts = [leaf.shape[0] for _, _, leaf, axis in found if axis == 0 and leaf.shape]
  batched = tuple(axis == 0 and leaf.shape[:1] == tuple(counts[:1]) != () for _, _, leaf, axis in found)
  if len(found) == 1 and not found[0][1] and not kwargs.get(found[0][0]):
    return Call(args, kwargs, ('input',), batched)
  return Call(args, kwargs, _named([(part, path) for part, path, _, _ in found]), batched)


def for_any_number(call: Call, trace: Callable[[Any], _Traced]) -> tuple[_Traced, str]:
  """What is traced for any number of examples, or for those of the call where the network allows no other.

  Args:
    call: of the network.
    trace: traces it for a number of examples, which is a symbol, or `None` for that of the call.

  Returns:
    That, and a sentence where the number is fixed, else ''.
  """
  if not any(call.batched):
    return trace(None), ''
  (number,) = jax.export.symbolic_shape('n')
  try:
    return trace(number), ''
  except Exception as error:  # whatever the network's own code does with a number that is none
    traced = trace(None)
    count = next(x.shape[0] for x, many in zip(call.arrays(), call.batched, strict=True) if many)
    why = str(error).strip().partition('\n')[0][:200]
    return traced, f'takes {count} examples at once, as the network cannot be traced for any number of them ({why})'


def named_results(results: Any) -> tuple[str, ...]:
  """A name for each array that a network gives: `output`, or its path, behind `output_` where that is a number."""
  paths = [path for path, _ in _leaves(results)]
  if len(paths) == 1:
    return ('output',)
  return _unique(tuple(f'output_{path}' if path[:1].isdigit() else path or 'output' for path in paths))


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x, tree)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  """The arrays of a tree by path."""
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if is_array(leaf) or isinstance(leaf, jax.core.ShapedArray):
      yield path_of(keys), leaf


def _named(places: Sequence[tuple[str, str]]) -> tuple[str, ...]:
  """Paths within arguments, with the names of those before them where a path is none or not the only one."""
  paths = [path for _, path in places]
  whole = lambda part, path: f'{part}/{path}' if path else part
  plain = lambda path: path and not path[0].isdigit() and paths.count(path) == 1
  return _unique(tuple(path if plain(path) else whole(part, path) for part, path in places))


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
  return names if len(set(names)) == len(names) else tuple(f'{name}_{i}' for i, name in enumerate(names))


def _parameters(model: Any, count: int) -> list[str]:
  """The names of the first positional parameters of a network's call; `input_0` and so on where they have none."""
  function, skipped = _called(model)
  try:
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
  except (TypeError, ValueError):
    parameters = []
  names = [p.name for p in parameters if p.kind in _POSITIONAL]
  return [names[i] if i < len(names) else f'input_{i}' for i in range(count)]


def _called(model: Any) -> tuple[Callable[..., Any], int]:
  """The function that a network runs, and how many of its parameters are none of the call's."""
  if hasattr(model, 'network') and hasattr(model, 'function'):  # functions.QuantizedFunction
    return model.function, 1
  model = getattr(model, 'model', model) if not isinstance(model, nn.Module) else model
  if isinstance(model, nn.Module):
    return type(model).__call__, 1
  if hasattr(model, 'quantized'):  # an NNX model, whose own class is behind that of its quantized one
    return type(model).__mro__[2].__call__, 1
  return model, 1
