"""Where the variables of quantized weights lie: ranges among the parameters, bit-widths in a collection of their own.

A weight that is named after its module has `alpha` and `kernel_alpha` beside its parameter. One that is named after its
parameter, since its module has several, has them as `NAME_alpha` and `NAME_kernel_alpha`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.layers.ranges import RANGES, range_name
from fracbits_jax.program import operands
from fracbits_jax.program.network import Network, drawn_noise
from fracbits_jax.program.plan import Weight
from fracbits_jax.program.trace import leaves_by_path
from fracbits_jax.quantize import bitwidths


def range_path(name: str, which: str, parameters: Any) -> tuple[str, ...]:
  """Where a range of the weight `name` lies among the parameters."""
  return tuple(range_name(name, which, parameters).split('/'))


def get(tree: Any, path: tuple[str, ...]) -> Any:
  """What lies at a path, or `None`."""
  for key in path:
    if not isinstance(tree, Mapping) or key not in tree:
      return None
    tree = tree[key]
  return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Puts a value at a path of nested dictionaries, which are made where they are missing."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def copied(tree: Any) -> Any:
  """Nested dictionaries anew, with the same leaves."""
  return {key: copied(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def with_ranges(params: Any, ranges: Mapping[str, Mapping[str, Any]], parameters: Any) -> dict[str, Any]:
  """The parameters with the ranges among them."""
  params = copied(params)
  for name, of_weight in ranges.items():
    for which, value in of_weight.items():
      put(params, range_path(name, which, parameters), value)
  return params


def without_ranges(network: Network, params: Any, parameters: Any) -> tuple[Any, dict[str, dict[str, Any]]]:
  """The float network's parameters, and the ranges that were among them, by the name of the weight."""
  params = copied(params)
  ranges: dict[str, dict[str, Any]] = {}
  for name in network.weights:
    for which in RANGES:
      path = range_path(name, which, parameters)
      value = get(params, path)
      if value is not None and not isinstance(value, Mapping):
        ranges.setdefault(name, {})[which] = value
        _remove(params, path)
  return params, ranges


def _remove(tree: dict[str, Any], path: tuple[str, ...]) -> None:
  around = [tree]
  for key in path[:-1]:
    around.append(around[-1][key])
  del around[-1][path[-1]]
  for node, key in zip(reversed(around[:-1]), reversed(path[:-1]), strict=True):
    if not node[key]:
      del node[key]


def bits_tree(of_weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The collection `bits` from bit-widths by the name of the weight."""
  tree: dict[str, Any] = {}
  for name, bits in of_weights.items():
    for which, value in bits.items():
      put(tree, (*name.split('/'), which), value)
  return tree


def bits_of_weights(network: Network, tree: Any) -> dict[str, dict[str, Any]]:
  """Bit-widths by the name of the weight from the collection `bits`.

  Raises:
    ValueError: one is missing, or has another shape.
  """
  found: dict[str, dict[str, Any]] = {}
  for name, (weight, quant) in network.quantized().items():
    for which, shape in operands.bits_shapes(weight, quant).items():
      value = get(tree, (*name.split('/'), which))
      if value is None or isinstance(value, Mapping):
        value = _stacked(weight, tree, which)
      if np.shape(value) != shape:
        raise ValueError(
          f'bits of shape {np.shape(value)} for {name}/{which}: give the shape {shape}, that of this network'
        )
      found.setdefault(name, {})[which] = value
  return found


def given_bits(network: Network, tree: Any) -> dict[str, dict[str, jax.Array]] | None:
  """`bits_of_weights` in float32; `None` where no bits are given."""
  if tree is None:
    return None
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bits_of_weights(network, tree))


def _stacked(weight: Weight, tree: Any, which: str) -> jax.Array:
  """The bit-widths of a stack whose layers have each their own, as in a policy."""
  layers = [get(tree, (*name.split('/'), which)) for name in weight.names()]
  if any(value is None or isinstance(value, Mapping) for value in layers):
    raise ValueError(f'no bits for {weight.name}/{which}: the bits belong to another network')
  return jnp.stack([jnp.asarray(value, jnp.float32) for value in layers]).reshape(*weight.stack, *np.shape(layers[0]))


def of_weights(network: Network, ranges: Mapping[str, Any], bits: Any, key: jax.Array | None) -> dict[str, Any]:
  """What each weight is quantized with, by its name; see `operands.Variables`.

  Args:
    network: the network.
    ranges: by the name of the weight.
    bits: the collection `bits`.
    key: draws the bit-widths of configurations that are stochastic; `None` interpolates them.

  Raises:
    ValueError: bit-widths that are missing, have another shape, or are fixed and no integers.
  """
  found, noise = bits_of_weights(network, bits), drawn_noise(network, key)
  return {
    name: {**ranges.get(name, {}), **_checked(name, found.get(name, {}), quant), **noise.get(name, {})}
    for name, (_, quant) in network.quantized().items()
  }


def _checked(name: str, bits: Mapping[str, Any], quant: QuantConfig) -> dict[str, Any]:
  try:
    return {which: bitwidths.as_bits(value, quant.learned) for which, value in bits.items()}
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from None


def check_parameters(network: Network, params: Any) -> None:
  """Raises `ValueError` for parameters that are missing, are too many or have other shapes."""
  found = {path: leaf.shape for path, leaf in leaves_by_path(params).items()}
  wrong = [path for path in sorted(found.keys() | network.shapes.keys()) if found.get(path) != network.shapes.get(path)]
  if wrong:
    raise ValueError(f'the parameters are those of another network: {", ".join(wrong[:5])} do not fit')
