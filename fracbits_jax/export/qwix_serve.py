"""A network quantized by Qwix, with the parameters of a file: linen and NNX."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx, traverse_util

from fracbits_jax.export.qwix_file import Content
from fracbits_jax.export.qwix_types import is_narrow
from fracbits_jax.fast import conv
from fracbits_jax.layers import wrap
from fracbits_jax.layers.examples import is_array
from fracbits_jax.system import extras

with extras.needed('qwix'):
  import qwix


def float_network(model: nn.Module) -> nn.Module:
  """The float network of a linen one, which is the one itself where it has no field `quant`."""
  return wrap.without_quantization(model) if getattr(model, 'quant', None) is not None else model


def shapes_of(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """What the variables of a linen network are by path: shapes, or what Qwix has in their place."""
  takes_shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x for x in jax.tree.leaves((args, kwargs))]
  tree = jax.tree.structure((args, dict(kwargs)))
  arrays = [x for x in takes_shapes if is_array(x)]

  def init(*given: Any) -> Any:
    left = iter(given)
    args, kwargs = jax.tree.unflatten(tree, [next(left) if is_array(x) else x for x in takes_shapes])
    return model.init({'params': jax.random.key(0), 'dropout': jax.random.key(0)}, *args, **kwargs)

  with conv.always_general():
    return traverse_util.flatten_dict(dict(jax.eval_shape(init, *arrays)), sep='/')


def linen(content: Content, model: nn.Module, *args: Any, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
  """A linen network that Qwix has quantized, and its variables.

  Args:
    content: of a file.
    model: the float network, or a quantized one of this project, of which the float one is taken.
    *args: an example of what it is called with, arrays or their shapes.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: one sentence: it is another network than that of the file, or Qwix does not quantize it.
  """
  provider = _provider(content)
  quantized = qwix.quantize_model(float_network(model), provider)
  template = shapes_of(quantized, args, kwargs)
  _check_rules(provider)
  variables = {}
  for path, leaf in template.items():
    is_kernel = hasattr(leaf, 'array') and hasattr(leaf, 'how')
    if is_kernel != (path in content.qtypes) or not (is_kernel or path in content.arrays):
      raise ValueError(
        f'{path} is quantized by one of Qwix and the file alone, or missing: give the network of the file'
      )
    if is_kernel:
      variables[path] = leaf.replace(array=_qarray(content, path))
    else:
      variables[path] = jnp.asarray(content.arrays[path])
    if nn.meta.unbox(leaf).shape != variables[path].shape:
      raise ValueError(
        f'{path} has the shape {nn.meta.unbox(leaf).shape}, and {variables[path].shape} in the file: give the network '
        'of the file'
      )
  unknown = sorted(_names(content) - template.keys())
  if unknown:
    raise ValueError(f'the network has no {", ".join(unknown[:5])}, which the file has: give the network of the file')
  return quantized, traverse_util.unflatten_dict(variables, sep='/')


def of_nnx(content: Content, model: nnx.Module, *args: Any, **kwargs: Any) -> nnx.Module:
  """An NNX model that Qwix has quantized, with the variables of a file; arguments as of `linen`.

  Raises:
    ValueError: one sentence: it is another network than that of the file, or Qwix does not quantize it.
  """
  args = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, args)
  provider = _provider(content)
  quantized = qwix.quantize_model(model, provider, *args, **kwargs)
  _check_rules(provider)
  given: dict[tuple, Any] = {}
  for name in _names(content):
    path = tuple(int(part) if part.isdigit() else part for part in name.split('/'))
    if name in content.qtypes:
      array = _qarray(content, name)
      given[(*path, 'array')] = {'qvalue': array.qvalue, 'scale': array.scale}
    else:
      given[path] = jnp.asarray(content.arrays[name])
  nnx.update(quantized, qwix.process_prequantized_params(traverse_util.unflatten_dict(given), quantized))
  return quantized


def parameter_bytes(tree: Any) -> int:
  """The bytes of a tree of arrays, int4 at half a byte as accelerators hold it."""
  size = lambda x: np.size(x) / 2 if x.dtype == jnp.int4 else np.size(x) * x.dtype.itemsize
  return int(sum(size(x) for x in jax.tree.leaves(tree)))


def _provider(content: Content) -> qwix.PtqProvider:
  return qwix.PtqProvider([qwix.QuantizationRule(**rule) for rule in content.rules])


def _check_rules(provider: qwix.PtqProvider) -> None:
  unused = [rule.module_path for rule in provider.get_unused_rules()]
  if unused:
    raise ValueError(f'the network has no product in {", ".join(unused[:5])}: give the network of the file')


def _names(content: Content) -> set[str]:
  """The variables of a file by path, a quantized one once."""
  parts = {f'{name}/{part}' for name in content.qtypes for part in ('qvalue', 'scale')}
  return {*(content.arrays.keys() - parts), *content.qtypes}


def _qarray(content: Content, path: str) -> qwix.QArray:
  qtype = content.qtypes[path]
  levels = jnp.asarray(content.arrays[f'{path}/qvalue']).astype(jnp.int4 if is_narrow(qtype) else jnp.int8)
  return qwix.QArray(qvalue=levels, scale=jnp.asarray(content.arrays[f'{path}/scale']), qtype=qtype)
