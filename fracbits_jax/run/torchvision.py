"""torchvision's networks, and EfficientNet-Lite0 as PyTorch has it, as ours: the names, layouts and images of their
weights, read from `.safetensors` files.

Theirs see images as (x - mean) / std of 0..255, ours as x - mean: what is left of the normalisation, 1 / std for each
colour, goes into the kernel of the first convolution. So the padding is the mean colour for both, and the logits are
the same.
"""

import collections
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import safetensors


from fracbits_jax.system.files import shown

NETWORKS = ('mobilenet_v2', 'resnet18', 'resnet34', 'resnet50', 'efficientnet_lite0')
_LITE = ('efficientnet_lite0',)  # these are not torchvision's
# By colour in 0..1, red, green and blue: of the training images of ImageNet, and what EfficientNet-Lite takes for them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_UNUSED = 'num_batches_tracked'
_DTYPES = ('F16', 'BF16', 'F32', 'F64')
_DEEPEST = 16  # parts of a name between dots that are looked at one by one
_LISTED, _LONGEST = 8, 80  # names that an error lists, and characters of each

Shape = tuple[int, ...]


def arguments(network: str) -> dict[str, Any]:
  """The arguments with which `models.create` makes the network that such weights are for.

  Raises:
    ValueError: a network for which there are none.
  """
  if network not in NETWORKS:
    raise ValueError(f'there are no published weights for model {network!r}, only for {", ".join(NETWORKS)}')
  mean = _LITE_MEAN if network in _LITE else _MEAN
  relu6 = {'relu6': True} if network == 'mobilenet_v2' else {}
  return {'image_mean': tuple(round(255 * value, 6) for value in mean), 'small_images': False, **relu6}


def names(network: str, ours: Iterable[str]) -> dict[str, str]:
  """Their name for each of our variables: `params/stem/kernel` -> `conv1.weight` in a ResNet."""
  module = {'mobilenet_v2': _mobilenet_v2, 'efficientnet_lite0': _efficientnet_lite}.get(network, _resnet)
  found = {}
  for name in ours:
    _, layer, leaf = name.split('/')
    found[name] = f'{module(layer)}.{_LEAVES[leaf]}'
  return found


def _resnet(layer: str) -> str:
  edges = {'stem': 'conv1', 'stem_norm': 'bn1', 'classifier': 'fc'}
  if layer in edges:
    return edges[layer]
  stage, block, part = layer.split('_', 2)  # such as stage1_block2_shortcut_norm
  shortcut = {'shortcut': 'downsample.0', 'shortcut_norm': 'downsample.1'}
  inner = shortcut[part] if part in shortcut else part.replace('norm', 'bn')
  return f'layer{stage.removeprefix("stage")}.{int(block.removeprefix("block")) - 1}.{inner}'


def _mobilenet_v2(layer: str) -> str:
  edges = {'stem': 'features.0', 'head': 'features.18'}
  if layer == 'classifier':
    return 'classifier.1'  # behind a dropout
  norm = int(layer.endswith('_norm'))
  layer = layer.removesuffix('_norm')
  if layer in edges:
    return f'{edges[layer]}.{norm}'
  block, part = layer.removeprefix('block').split('_')
  # The first block does not expand. A convolution, its norm and its ReLU are one module; the projection has no ReLU.
  index = ('expand', 'depthwise', 'project').index(part) - (block == '1')
  return f'features.{block}.conv.{index + norm}' if part == 'project' else f'features.{block}.conv.{index}.{norm}'


def _efficientnet_lite(layer: str) -> str:
  edges = {'stem': '_conv_stem', 'stem_norm': '_bn0', 'head': '_conv_head', 'head_norm': '_bn1', 'classifier': '_fc'}
  if layer in edges:
    return edges[layer]
  block, part = layer.removeprefix('block').split('_', 1)
  norms = {'expand_norm': '_bn0', 'depthwise_norm': '_bn1', 'project_norm': '_bn2'}
  return f'_blocks.{int(block) - 1}.{norms.get(part, f"_{part}_conv")}'


def their_shape(ours: str, shape: Shape) -> Shape:
  """The shape of one of our variables in their layout: kernels are `[C_out, C_in, k_h, k_w]` and `[C_out, C_in]`."""
  if not ours.endswith('/kernel'):
    return shape
  return (*shape[:-3:-1], *shape[:-2])


def array(ours: str, theirs: np.ndarray, network: str) -> np.ndarray:
  """One of our variables, in float32, from theirs; the stem's kernel takes the images' scale.

  Args:
    ours: its path, such as `params/stem/kernel`.
    theirs: their array, of shape `their_shape(ours, ...)`, any real dtype.
    network: the network's name, by which the scale is known.
  """
  value = np.asarray(theirs, np.float64)
  if ours.endswith('/kernel'):
    value = np.moveaxis(value, (1, 0), (-2, -1))
  if ours == 'params/stem/kernel':
    value = value / (255 * np.asarray(_LITE_STD if network in _LITE else _STD))[:, None]
  with np.errstate(over='ignore'):  # what overflows is found as not finite
    return np.asarray(value, np.float32)


def read_shapes(path: str | os.PathLike) -> dict[str, Shape]:
  """Names and shapes of the weights in a `.safetensors` file; batch norm's counters of batches are left out.

  Raises:
    ValueError: a file that cannot be read, or that holds other than real numbers of 16 to 64 bits.
  """
  with _open(path) as file:
    found = {name: file.get_slice(name) for name in file.keys() if name.split('.')[-1] != _UNUSED}  # noqa: SIM118
    other = {cut(name): part.get_dtype() for name, part in found.items() if part.get_dtype() not in _DTYPES}
    if other:
      raise ValueError(
        f'{path} holds weights of type {", ".join(sorted(set(other.values())))}, in {listed(other)}: give one with '
        f'{", ".join(_DTYPES)}, and nothing else in it'
      )
    return {name: tuple(part.get_shape()) for name, part in found.items()}


def prefix(found: Iterable[str], needed: Collection[str]) -> str:
  """What stands before the needed names where a wrapper has put something there, as `module.`; empty for nothing.

  Args:
    found: names in a file.
    needed: the published names.
  """
  counts: collections.Counter[str] = collections.Counter()
  for name in found:
    parts = name.split('.', _DEEPEST)
    for i in range(len(parts)):
      if '.'.join(parts[i:]) in needed:
        counts['.'.join([*parts[:i], ''])] += 1
  return min(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix), default='')


def read(path: str | os.PathLike, wanted: Mapping[str, str], network: str) -> dict[str, np.ndarray]:
  """Our variables from a `.safetensors` file, by our names.

  Args:
    path: the file, whose names and shapes have been checked.
    wanted: the name in the file for each of ours.
    network: the network's name.

  Raises:
    ValueError: a file that cannot be read, values that are not finite, or variances below 0.
  """
  with _open(path) as file:
    found = {ours: array(ours, file.get_tensor(theirs), network) for ours, theirs in wanted.items()}
  broken = [cut(wanted[ours]) for ours, value in found.items() if not np.isfinite(value).all()]
  if broken:
    raise ValueError(f'{path} holds values that are not finite, in {listed(broken)}: give another file')
  broken = [cut(wanted[ours]) for ours, value in found.items() if ours.endswith('/var') and (value < 0).any()]
  if broken:
    raise ValueError(f'{path} holds variances below 0, in {listed(broken)}: give another file')
  return found


def cut(name: str) -> str:
  """A name from a file, which may be anything, for a sentence."""
  return shown(name if len(name) <= _LONGEST else f'{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}')


def listed(names: Collection[str]) -> str:
  """Some names, and how many more there are."""
  names = sorted(names)
  more = f' and {len(names) - _LISTED:,} more' if len(names) > _LISTED else ''
  return ', '.join(names[:_LISTED]) + more


def _open(path: str | os.PathLike) -> Any:
  try:
    return safetensors.safe_open(path, framework='numpy')
  except (safetensors.SafetensorError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path} cannot be read as .safetensors: {cut(reason)}; fetch or convert it again') from None
