"""Stacks of layers, as within `nn.scan`: one definition whose variables have a leading axis, an entry a layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def stack_of(whole: tuple[int, ...], one: tuple[int, ...]) -> tuple[int, ...]:
  """The sizes of a stack, `()` for a layer by itself.

  Args:
    whole: shape of a variable in the network.
    one: shape of the same as a layer of the stack has it, its last axes.
  """
  return tuple(whole[: len(whole) - len(one)])


def variable_at(tree: Any, path: tuple[str, ...]) -> Any:
  """What lies at a path of nested dictionaries; `None` where nothing does."""
  for key in path:
    if not isinstance(tree, Mapping) or key not in tree:
      return None
    tree = tree[key]
  return tree


def stack_of_module(module: Any, params: Any) -> tuple[int, ...]:
  """The sizes of the stack that a layer which is just called is one of; `params` are those of the whole network."""
  own, whole = module.variables.get('params', {}).get('kernel'), variable_at(params, (*module.path, 'kernel'))
  return () if own is None or whole is None else stack_of(np.shape(whole), np.shape(own))


def layer_name(path: str, depth: int, index: tuple[int, ...]) -> str:
  """The name of one layer of a stack, such as `layers/0/query` for `layers/query`: places follow the module scanned.

  Args:
    path: of the stack.
    depth: how many parts of the path are that of the module which is scanned.
    index: the place in the stack.
  """
  parts = path.split('/')
  return '/'.join([*parts[:depth], *map(str, index), *parts[depth:]])


def scanned_depths(shapes: Mapping[str, tuple[int, ...]], stacks: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
  """By the path of a stack, how many parts of it are that of the module which is scanned.

  That is the longest beginning of the path, short of the layer itself, all of whose parameters have the axes of the
  stack in front, as far out as can be.

  Args:
    shapes: of all parameters, by path.
    stacks: the sizes of each stack, by the path of its layer.
  """
  found = {}
  for path, sizes in stacks.items():
    parts = path.split('/')
    inside = lambda d, parts=parts: [s for p, s in shapes.items() if p.split('/')[:d] == parts[:d]]
    stacked = (d for d in range(1, len(parts) + 1) if all(s[: len(sizes)] == sizes for s in inside(d)))
    found[path] = next(stacked, len(parts))
  return found
