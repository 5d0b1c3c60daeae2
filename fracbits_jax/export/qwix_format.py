"""Qwix: rules and quantized parameters, with which Qwix serves a linen or NNX network in JAX.

    from fracbits_jax.export import qwix_format

    net, variables = qwix_format.load('runs/digits/digits_qwix', model, images[:1])
    logits = jax.jit(net.apply)(variables, images)

The network is the float one; Qwix (https://github.com/google/qwix) quantizes the inputs of each layer on its learned
range and multiplies integers. The levels of the kernels and all ranges are those of the network, exactly.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from fracbits_jax.export import qwix_file, qwix_plan, qwix_serve
from fracbits_jax.export.qwix_file import Content
from fracbits_jax.export.source import Source
from fracbits_jax.graph.capture import applied
from fracbits_jax.layers.examples import arguments_of, is_array
from fracbits_jax.program import linen, nnx_adapter

_IMAGES = (0, 255)


def write(source: Source, path: str | os.PathLike, *, examples: Any = None) -> str:
  """Writes a folder with `rules.json` and `params.safetensors`; returns what it takes, and how far answers differ.

  Args:
    source: a linen or NNX network.
    path: the folder.
    examples: inputs for which Qwix's answers are compared with the network's; `None` for those of the source.

  Raises:
    ValueError: one sentence: bit-widths, ranges, layers or a network that Qwix does not take; nothing is written then.
  """
  content, model = built(source)
  examples = source.examples() if examples is None and source.examples is not None else examples
  difference = _difference(source, content, model, examples)
  size = qwix_file.write(content, path)
  weights: dict[str, int] = {}
  for name in content.qtypes:
    kind = f'{4 if content.bits[name] <= qwix_file.PACKED_BITS else 8} bits'
    weights[kind] = weights.get(kind, 0) + content.arrays[f'{name}/qvalue'].size
  others = sum(np.size(x) for name, x in content.arrays.items() if not name.endswith(('/qvalue', '/scale')))
  by_kind = ', '.join(f'{count:,} weights of {kind}' for kind, count in sorted(weights.items()))
  said = f'{path}: {size:,} bytes, {by_kind}, {others:,} other numbers in floating point'
  return f'{said}; {difference}'


def load(path: str | os.PathLike, model: nn.Module, *inputs: Any, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
  """A linen network that Qwix has quantized, and the variables for its `apply`.

  Args:
    path: the folder.
    model: the float network, or a quantized one of this project, of which the float one is taken.
    *inputs: an example of what it is called with, arrays or their shapes.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: one sentence: no folder of `write`, or one of another network.
  """
  return qwix_serve.linen(qwix_file.read(path), model, *inputs, **kwargs)


def load_nnx(path: str | os.PathLike, model: nnx.Module, *inputs: Any, **kwargs: Any) -> nnx.Module:
  """An NNX model that Qwix has quantized, with the variables of a folder; arguments and errors as of `load`.

  The model that is given, the float one, stays as it is.
  """
  return qwix_serve.of_nnx(qwix_file.read(path), model, *inputs, **kwargs)


def built(source: Source) -> tuple[Content, Any]:
  """What is written of a network, and the float network; `ValueError` as of `write`."""
  model, variables = _float_network(source)
  prefix = 'params/' if isinstance(model, nn.Module) else ''
  params = {name.removeprefix(prefix): x for name, x in variables.items() if name.startswith(prefix)}
  plan = qwix_plan.plan(source.graph, params, images=source.input_range == _IMAGES)
  arrays = {name: x for name, x in variables.items() if name.removeprefix(prefix) not in plan.kernels}
  for name, values in plan.floats.items():
    arrays[prefix + name] = values
  for name, kernel in plan.kernels.items():
    arrays |= {f'{prefix}{name}/qvalue': kernel.qvalue, f'{prefix}{name}/scale': kernel.scale}
  content = Content(
    name=source.name,
    rules=plan.rules,
    qtypes={prefix + name: kernel.qtype for name, kernel in plan.kernels.items()},
    bits={prefix + name: kernel.bits for name, kernel in plan.kernels.items()},
    arrays={name: np.asarray(x) for name, x in arrays.items()},
    notes=source.notes(),
  )
  return content, model


def _float_network(source: Source) -> tuple[Any, Mapping[str, Any]]:
  """The float network of a source, and its variables by path."""
  if isinstance(source.model, nnx_adapter.Functional):
    return nnx_adapter.without_quantization(source.model, source.variables)
  model = source.model.model if isinstance(source.model, linen.QuantizedModel) else source.model
  if not isinstance(model, nn.Module):
    raise ValueError(f'{source.name} is no linen or NNX network, and Qwix serves those alone: export it as stablehlo')
  model = qwix_serve.float_network(model)
  try:
    shapes = qwix_serve.shapes_of(model, source.call.args, source.call.kwargs)
  except Exception as error:  # whatever the network's own code does with a configuration that is none
    raise ValueError(
      f'{type(model).__name__} is no float network with quant=None, which Qwix quantizes anew '
      f'({str(error).strip().partition(chr(10))[0][:150]}): let its layers take quant=None'
    ) from None
  flat = _flat(source.variables)
  missing = sorted(shapes.keys() - flat.keys())
  if missing:
    raise ValueError(f'{source.name} has no {", ".join(missing[:5])}, which its float network has')
  return model, {name: flat[name] for name in shapes}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  paths = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(dict(tree)))[0]
  return {'/'.join(str(getattr(key, 'key', key)) for key in path): leaf for path, leaf in paths}


def _difference(source: Source, content: Content, model: Any, examples: Any) -> str:
  """How far Qwix's answers differ from the network's; without examples whether it reads what is written."""
  args, kwargs = source.call.with_arrays(source.call.shapes(None))
  if examples is not None:  # Qwix takes no integers where a layer has no other operand that is real
    args = jax.tree.map(lambda x, like: np.asarray(x, like.dtype) if is_array(x) else x, arguments_of(examples), args)
  try:
    found = _answers(content, model, args, kwargs, run=examples is not None)
  except ValueError:
    raise
  except Exception as error:  # of whatever library is below
    why = str(error).strip().partition('\n')[0][:150]
    raise ValueError(f'{source.name} is not run by Qwix ({why}): export it as stablehlo') from None
  if examples is None:
    return 'Qwix reads it; give write(source, path, examples=inputs) to compare answers'
  expected = jax.jit(lambda v, xs: applied(source.model)(v, *xs, **kwargs))(source.variables, args)
  gaps, sizes = [0.0], [0.0]
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    gaps.append(np.abs(a - b).max(initial=0))
    sizes.append(np.abs(b).max(initial=0))
  count = next((len(x) for x in jax.tree.leaves(args) if is_array(x) and np.ndim(x)), 1)
  return f'answers of Qwix for {count} examples differ by at most {max(gaps) / (max(sizes) or 1):.1e} of the largest'


def _answers(content: Content, model: Any, args: tuple, kwargs: Mapping[str, Any], *, run: bool) -> Any:
  """What Qwix gives with the network of a file; `None` where it is not to run."""
  if isinstance(model, nn.Module):
    net, variables = qwix_serve.linen(content, model, *args, **kwargs)
    return jax.jit(lambda v, xs: net.apply(v, *xs, **kwargs))(variables, args) if run else None
  served = qwix_serve.of_nnx(content, model, *args, **kwargs)
  return served(*args, **kwargs) if run else None
