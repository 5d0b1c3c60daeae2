"""From a function to its program: traced once for the same shapes, with the places where it uses its weights."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from fracbits_jax.fast import conv
from fracbits_jax.layers.examples import is_array
from fracbits_jax.program import walk
from fracbits_jax.program.plan import group_sites
from fracbits_jax.program.sites import Site
from fracbits_jax.program.stored import Value, parameter, variable

_OF_CALL = ('cache',)  # collections that are inputs of a call rather than what was trained
_MOST_KEPT = 64  # programs of a network: one for each shape and way of calling it


def path_of(keys: Sequence[Any]) -> str:
  """The path of a leaf as a name, its parts joined by slashes."""
  parts = [getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))) for key in keys]
  return '/'.join(str(part) for part in parts)


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path; boxes that say how to partition an array are not part of it."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(tree))
  return {path_of(keys): leaf for keys, leaf in leaves}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A traced function.

  Attributes:
    closed: its closed jaxpr.
    tree: the structure of what it gives.
    sites: by their path.
    groups: the sites of each weight, by its key.
    keys: by the path of a site the key of its weight.
    shapes: of each parameter.
    notes: sentences on what could not be followed.
  """

  closed: Any
  tree: Any
  sites: Mapping[tuple[int, ...], Site]
  groups: Mapping[tuple, Sequence[Site]]
  keys: Mapping[tuple[int, ...], tuple]
  shapes: Mapping[str, tuple[int, ...]]
  notes: tuple[str, ...]


class Tracer:
  """Traces a function, once for the same shapes.

  Args:
    function: `function(params, others, args, kwargs)`: of the parameters, of whatever else is stored or random, and of
      what the network is called with.
    root: the name of the outermost module, for the names of products.
  """

  def __init__(self, function: Callable[..., Any], root: str = ''):
    self._function, self._root = function, root
    self._flat: dict[Hashable, Any] = {}
    self._programs: dict[int, Program] = {}

  def trace(self, params: Any, others: Any, args: Any, kwargs: Any) -> tuple[Program, list[Any]]:
    """The program for arguments of these shapes, and those of them that it takes."""
    leaves, tree = jax.tree.flatten((params, others, args, kwargs))
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    flags = tuple(None if is_array(leaf) else (leaf,) for leaf in leaves)
    try:
      flat = self._flat.get((tree, flags))
    except TypeError:  # a flag that cannot be hashed
      return self._read(jax.jit(self._flattened(tree, flags)).trace(*arrays), params, others, flags), arrays
    if flat is None:
      flat = self._flat[tree, flags] = jax.jit(self._flattened(tree, flags))
    traced = flat.trace(*arrays)  # what JAX keeps, for these shapes and its present settings
    program = self._programs.get(id(traced.jaxpr))
    if program is None:
      program = self._read(traced, params, others, flags)
      if len(self._programs) >= _MOST_KEPT:
        self._programs.pop(next(iter(self._programs)))
      self._programs[id(traced.jaxpr)] = program
    return program, arrays

  def _flattened(self, tree: Any, flags: tuple) -> Callable[..., Any]:
    def flat(*arrays: Any) -> Any:
      given = iter(arrays)
      # One convolution rather than one for each platform: which of them is fast is chosen where it is run.
      with conv.always_general():
        return self._function(*jax.tree.unflatten(tree, [next(given) if f is None else f[0] for f in flags]))

    return flat

  def _read(self, traced: Any, params: Any, others: Any, flags: tuple) -> Program:
    closed = traced.jaxpr
    kinds = iter([*_parameters(params), *_variables(others)])
    values, invars = [], iter(closed.jaxpr.invars)
    for flag in flags:
      found = next(kinds, Value(None))
      if flag is None:
        aval = next(invars).aval
        values.append(found if found.stored else Value(None, getattr(aval.dtype, 'kind', '') in 'ub'))
    sites, notes = walk.find_sites(closed, values, self._root)
    groups = group_sites(sites)
    return Program(
      closed=closed,
      tree=jax.tree.structure(traced.out_info),
      sites=sites,
      groups=groups,
      keys={site.path: key for key, group in groups.items() for site in group},
      shapes={path: leaf.shape for path, leaf in leaves_by_path(params).items() if is_array(leaf)},
      notes=notes,
    )


def _parameters(params: Any) -> list[Value]:
  return [
    parameter(path, leaf.shape, leaf.dtype) if is_array(leaf) else Value(None)
    for path, leaf in leaves_by_path(params).items()
  ]


def _variables(others: Any) -> list[Value]:
  return [Value(None) if path.split('/')[0] in _OF_CALL else variable(path) for path in leaves_by_path(others)]
