"""Linen networks that were written without quantization, with fractional bits in their layers.

A linen network is wrapped: whenever one of its layers is called, a quantized layer of the same class runs in its place,
in the same scope. Parameters keep their names and shapes; clips and the collection `bits` stand beside them.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.core import FrozenDict

from fracbits_jax.fast import conv
from fracbits_jax.layers import calibrate
from fracbits_jax.layers.examples import random_like
from fracbits_jax.layers.linen import quantized_class
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.layers.rules import DEFAULT, EDGE_BITS, Rules, choose_configs

# Within these a kernel stands for several, is called more often than traced, or is another array than its parameter.
_TRANSFORMS = re.compile(r'/(scan|vmap|while_loop|map_variables)\(')
_LAYERS = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum)


@dataclasses.dataclass(frozen=True)
class Held:
  """A network that is no submodule of the module that holds it, so that none of its paths begins with that one's."""

  network: nn.Module


class QuantizedModel(nn.Module):
  """A linen network whose layers are quantized; see `quantize_model`.

  Attributes:
    held: the network, which runs in the scope of this module.
    configs: how each layer is quantized, by path; layers that are not named stay float.
  """

  held: Held
  configs: Mapping[str, QuantConfig | None] = FrozenDict()

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    def quantized(layer: nn.Module, call: Callable, args: tuple, kwargs: dict) -> Any:
      del call
      assert layer.scope is not None  # it runs
      twin = quantized_class(type(layer))  # type: ignore[arg-type]  # mypy takes a layer's hash for that of its class
      quant = self.configs.get('/'.join(layer.path))
      fields = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.init}
      fields |= {'quant': quant, 'name': None, 'parent': layer.scope.rewound()}
      own_conv = isinstance(layer, nn.Conv) and (layer.conv_general_dilated or layer.conv_general_dilated_cls)
      if isinstance(layer, nn.Conv) and quant is not None and own_conv is None:
        fields['conv_general_dilated'] = conv.conv_general_dilated  # the same, faster on a CPU
      return twin(**fields)(*args, **kwargs)

    assert self.scope is not None  # it runs
    with _replace_layers(quantized):
      return self.held.network.clone(name=None, parent=self.scope.rewound())(*args, **kwargs)


@contextlib.contextmanager
def _replace_layers(
  run: Callable[[nn.Module, Callable, tuple, dict], Any], *, all_layers: bool = False
) -> Iterator[None]:
  """While open, `run(layer, call, args, kwargs)` is what a call of a layer that can be quantized gives, or of any."""
  running = []

  def intercept(call, args, kwargs, context):
    layer = context.module
    # A layer that runs in place of another has that one's path.
    is_layer = context.method_name == '__call__' and isinstance(layer, _LAYERS)
    if not is_layer or layer.path in running or not (all_layers or _transform_around(layer) is None):
      return call(*args, **kwargs)
    running.append(layer.path)
    try:
      return run(layer, call, args, kwargs)
    finally:
      running.pop()

  with nn.intercept_methods(intercept):
    yield


def _transform_around(layer: nn.Module) -> str | None:
  """The transform around a layer that keeps it from being quantized, or `None`."""
  assert layer.scope is not None  # it runs
  found = _TRANSFORMS.search(layer.scope.path_text)
  return found and f'nn.{found[1]}'


def quantize_model(
  model: nn.Module,
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None = DEFAULT,
  edge_bits: int | None = EDGE_BITS,
  **kwargs: Any,
) -> QuantizedModel:
  """`networks.quantize_model` for a linen network."""
  signed, refused = _signed_inputs(model, inputs, kwargs)
  configs = choose_configs(signed, rules, default, edge_bits, [f'nn.{layer.__name__}' for layer in _LAYERS])
  for path, transform in refused.items():
    if path in configs:
      raise ValueError(
        f'{path} runs inside {transform}, where layers cannot be quantized: call them one by one, or leave them float '
        f'by rules such as ({path!r}, None)'
      )
  return QuantizedModel(Held(model), FrozenDict(configs))


def from_float(net: nn.Module, variables: Mapping[str, Any], inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """Variables of a quantized network that starts from a float one.

  Args:
    net: of `quantize_model`, or a network with a field `quant`.
    variables: the float network's: `params`, and further collections, which are taken as they are.
    inputs: real examples of what it is called with, as for `quantize_model`: the clips, and with `lsq` the ranges of
      the kernels, are those that quantize these inputs and these kernels best, by the layer's
      `QuantConfig.calibration`.
    **kwargs: for the call, such as `train=False`.

  Raises:
    ValueError: parameters that are missing, are too many or have other shapes.
  """
  inputs = inputs if isinstance(inputs, tuple) else (inputs,)
  start = nn.meta.unbox(jax.jit(lambda *args: net.init(jax.random.key(0), *args, **kwargs))(*inputs))
  params = _with_parameters(start['params'], nn.meta.unbox(variables['params']))
  configs = calibrate.quant_configs(net, inputs, **kwargs)
  params = calibrate.kernel_ranges(params, start.get('bits', {}), configs)
  samples = calibrate.sample_inputs(without_quantization(net), variables, [inputs], **kwargs)
  params = calibrate.clips(params, start.get('bits', {}), samples, configs)
  given = traverse_util.flatten_dict(dict(variables['params']))  # as they are, with what says how to partition them
  params = traverse_util.unflatten_dict({**traverse_util.flatten_dict(params), **given})
  return {**variables, 'params': params, 'bits': start.get('bits', {})}


def _with_parameters(params: Any, given: Any) -> Any:
  """The parameters of a quantized network with those of a float one."""
  flat, flat_given = (traverse_util.flatten_dict(dict(tree), sep='/') for tree in (params, given))
  new = {name for name in flat if name.endswith('alpha')} - flat_given.keys()
  wrong = sorted((flat.keys() - new) ^ flat_given.keys())
  wrong += sorted(name for name in flat.keys() & flat_given.keys() if flat[name].shape != flat_given[name].shape)
  if wrong:
    raise ValueError(f'the parameters are those of another network: {", ".join(wrong[:5])} do not fit')
  return traverse_util.unflatten_dict({**flat, **flat_given}, sep='/')


def without_quantization(net: nn.Module) -> nn.Module:
  """The float network of a quantized one, with the same parameters less the clips."""
  return net.clone(configs=FrozenDict()) if isinstance(net, QuantizedModel) else net.clone(quant=None)


def with_fixed_bits(net: nn.Module) -> nn.Module:
  """The network whose collection `bits` holds integers, fixed after a search: as fast as one without learned bits.

  Bits that are no integers from 0 to 16 are refused when the network is called; within a program, where their values
  are not known, all that they quantize is not a number.
  """
  fixed = lambda quant: quant and dataclasses.replace(quant, learned=False)
  if isinstance(net, QuantizedModel):
    return net.clone(configs=FrozenDict({path: fixed(quant) for path, quant in net.configs.items()}))
  return net.clone(quant=fixed(net.quant))


def _signed_inputs(model: nn.Module, inputs: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, str]]:
  """Whether the inputs of each layer can be negative, by path, in the order in which the layers run.

  Returns:
    Those, and by path the transform around each layer that cannot be quantized.
  """
  transforms: dict[str, str | None] = {}
  lowest: dict[str, float] = {}

  def keep(path: str, value: Any) -> None:
    lowest[path] = min(float(value), lowest.get(path, math.inf))

  def watch(layer: nn.Module, call: Callable, args: tuple, kwargs: dict) -> Any:
    x, path = args[0] if args else kwargs['inputs'], '/'.join(layer.path)
    if not path:
      kind = type(layer).__name__
      raise ValueError(
        f'{kind} is a layer by itself, without a path: give a module that calls it, such as a Sequential'
      )
    transforms[path] = _transform_around(layer)
    if transforms[path] is None:
      jax.debug.callback(functools.partial(keep, path), jnp.min(x))  # also from within nn.remat
    return call(*args, **kwargs)

  @jax.jit
  def run(*arguments: Any) -> Any:
    with _replace_layers(watch, all_layers=True):
      return model.init(jax.random.key(0), *arguments, **kwargs)

  run(*random_like(inputs, jax.random.key(1)))
  jax.effects_barrier()
  refused = {path: transform for path, transform in transforms.items() if transform is not None}
  return {path: path not in refused and lowest[path] < 0 for path in transforms}, refused
