"""Weights that a run starts from, `init_from`: those of an earlier run, or published ones in a file.

Weights can demand something of their network, such as the mean of the images. A run records that in its own
`config.json`, and keeps the weights beside its checkpoints: from then on neither this run nor one that starts from it
needs the folder or the file again.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from fracbits_jax import models
from fracbits_jax.data import contents
from fracbits_jax.layers.examples import example_of
from fracbits_jax.run import torchvision
from fracbits_jax.run.checkpoint import Checkpoints, newest_step

_Shape = tuple[int, ...]

_KEPT = 'initial'  # where a run's folder keeps the weights that it started from, beside its phases
_PICKLED = ('.pt', '.pth', '.bin', '.pkl', '.pickle', '.ckpt', '.tar')
_PACKED = ('.gz', '.zip', '.xz', '.bz2', '.tgz')  # behind one of those
_DEMANDED = {'image_mean': list, 'relu6': bool, 'small_images': bool}  # fields of config.model, and their types in JSON
_LISTED = 8  # shapes that an error names one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where weights are read.

  Attributes:
    given: `init_from` as it was given.
    path: the run's folder, or the `.safetensors` file.
    phase: which of the folder's checkpoints; `None` for a file.
  """

  given: str
  path: pathlib.Path
  phase: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """What a run starts from.

  Attributes:
    variables: `params` and `batch_stats` of the float network.
    clips: the clips of a quantized network by path, such as `classifier/alpha`; empty where there are none.
    is_float: whether a float network was trained to these weights, not a quantized one.
    origin: where they come from, in words.
    trained_on: the data of the run that they come from, where that is known.
  """

  variables: dict[str, Any]
  clips: dict[str, np.ndarray]
  is_float: bool
  origin: str
  trained_on: contents.Contents | None = None


def find(init_from: str, workdir: str | os.PathLike | None = None) -> Source:
  """What `init_from` names: the weights that the run's own folder keeps, once it does, then a folder or a file.

  Of another run's folder, the float network after `pretrain` goes first, then the last phase that has a checkpoint.

  Raises:
    ValueError: there is neither a run's folder with checkpoints nor a `.safetensors` file.
  """
  if workdir is not None and newest_step(workdir, _KEPT) is not None:
    return Source(given=init_from, path=pathlib.Path(workdir), phase=_KEPT)
  path = pathlib.Path(init_from).expanduser()
  suffixes = [suffix.lower() for suffix in path.suffixes] or ['']
  packed = suffixes[-1] in _PACKED and any(suffix in _PICKLED for suffix in suffixes)
  if (packed or suffixes[-1] in _PICKLED) and not path.is_dir():
    part = '["state_dict"]' if suffixes[-1] in ('.tar', '.ckpt') or packed else ''
    raise ValueError(
      f'init_from={init_from} is a pickle, which can run any code when it is read: convert it once, where you trust '
      f'it, by safetensors.torch.save_file(torch.load(FILE, weights_only=True){part}, "NAME.safetensors")'
    )
  if path.is_dir():
    phases = ('pretrain', *reversed(_config(path)['phases']))
    with_checkpoint = [phase for phase in phases if newest_step(path, phase) is not None]
    if not with_checkpoint:
      raise ValueError(f'init_from={init_from} has no checkpoint yet: let that run reach one, or give another folder')
    return Source(given=init_from, path=path, phase=with_checkpoint[0])
  if not path.exists():
    raise ValueError(f"init_from={init_from} does not exist: give a run's folder or a .safetensors file")
  if suffixes[-1] != '.safetensors':
    raise ValueError(f"init_from={init_from} is neither a run's folder nor a .safetensors file: give one of these")
  return Source(given=init_from, path=path)


def demands(source: Source, network: str) -> dict[str, Any]:
  """The fields of `config.model` that the weights demand of the network of this name, with their values.

  Raises:
    ValueError: the weights are those of another network.
  """
  if source.phase is None:
    try:
      return torchvision.arguments(network)
    except ValueError as error:
      raise ValueError(f"init_from={source.given}: {error}; take one of these, or a run's folder") from None
  model = _config(source.path)['model']
  if model['name'] != network:
    raise ValueError(
      f'init_from={source.given} holds weights of {model["name"]}, but model.name is {network}: make them the same'
    )
  found = {name: model[name] for name in _DEMANDED if model.get(name) is not None}
  return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def load(source: Source, network: str, model: nn.Module, inputs: Any) -> Weights:
  """Reads weights and checks them against a network.

  Args:
    source: where they are.
    network: the network's name.
    model: the float network.
    inputs: what it is called with, as for `example_of`, such as `[H, W, C]` of its images.

  Raises:
    ValueError: what cannot be read, or every name and shape that does not fit the network.
  """
  wanted = _shapes(model, inputs)
  return _load_file(source, network, wanted) if source.phase is None else _load_checkpoint(source, network, wanted)


def _load_file(source: Source, network: str, wanted: dict[str, _Shape]) -> Weights:
  names = torchvision.names(network, wanted)
  needed = {theirs: (ours, torchvision.their_shape(ours, wanted[ours])) for ours, theirs in names.items()}
  shapes = torchvision.read_shapes(source.path)
  prefix = torchvision.prefix(shapes, needed)
  _check(source, network, _without(prefix, shapes), needed)
  found = torchvision.read(source.path, {ours: prefix + theirs for ours, theirs in names.items()}, network)
  variables = _grouped(found)
  origin = f'{source.given}, whose names begin with {torchvision.cut(prefix)!r}' if prefix else source.given
  return Weights(variables=variables, clips={}, is_float=True, origin=origin)


def _without(prefix: str, shapes: Mapping[str, _Shape]) -> dict[str, _Shape]:
  """Shapes by names without a prefix; names that lack it stay, and say so where they would be taken for others."""
  found = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
  others = {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}
  return found | {f'{name} (without {prefix})' if name in found else name: shape for name, shape in others.items()}


def _load_checkpoint(source: Source, network: str, wanted: dict[str, _Shape]) -> Weights:
  phase = source.phase
  assert phase is not None  # a file has none
  checkpoints = Checkpoints(source.path, phase, create=False)
  step = newest_step(source.path, phase)
  try:
    restored = checkpoints.restore()
    if restored is None:
      raise ValueError('there is none any more')
    step, state, meta = restored
    found = traverse_util.flatten_dict({group: state[group] for group in ('params', 'batch_stats')}, sep='/')
    found = {name: np.asarray(value, np.float32) for name, value in found.items()}
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f'init_from={source.given}: checkpoint {phase}/{step} in {source.path} is damaged or of another version: '
      'give another run'
    ) from None
  finally:
    checkpoints.close()
  clips = {name: found.pop(name) for name in list(found) if name.endswith(('/alpha', '/kernel_alpha'))}
  shapes = {name: value.shape for name, value in found.items()}
  _check(source, network, shapes, {name: (name, shape) for name, shape in wanted.items()})
  kept = phase == _KEPT
  return Weights(
    variables=_grouped(found),
    clips={name.removeprefix('params/'): value for name, value in clips.items()},
    is_float=meta['is_float'] if kept else phase == 'pretrain',
    origin=meta['origin'] if kept else f'{source.given}, {phase} after {step} steps',
    trained_on=_trained_on(meta) if kept else contents.read(source.path),
  )


def _grouped(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Variables by their paths as a tree; without batch norm there are no statistics, and still their collection."""
  return {'batch_stats': {}, **traverse_util.unflatten_dict(found, sep='/')}


def _trained_on(meta: Mapping[str, Any]) -> contents.Contents | None:
  """What `keep` has noted of the data; older versions have not."""
  return contents.from_json(meta['trained_on']) if meta.get('trained_on') else None


def keep(workdir: str | os.PathLike, weights: Weights) -> None:
  """Keeps weights in the folder of the run that starts from them, unless they are there."""
  checkpoints = Checkpoints(workdir, _KEPT)
  if newest_step(workdir, _KEPT) is None:
    params = traverse_util.flatten_dict(weights.variables['params'], sep='/') | weights.clips
    state = {**weights.variables, 'params': traverse_util.unflatten_dict(params, sep='/')}
    data = weights.trained_on and dataclasses.asdict(weights.trained_on)
    checkpoints.save(0, state, {'origin': weights.origin, 'is_float': weights.is_float, 'trained_on': data})
  checkpoints.close()


def _config(folder: pathlib.Path) -> dict[str, Any]:
  """The `config.json` of a run's folder, as far as it is read here."""
  path = folder / 'config.json'
  try:
    config = json.loads(path.read_text())
    phases, model = [str(phase) for phase in config['phases']], {'name': None, **config['model']}
  except FileNotFoundError:
    raise ValueError(
      f"init_from={folder} is no run's folder, since it has no config.json: give what was the --workdir of a run"
    ) from None
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    raise ValueError(f'{path} is broken: start from another run') from None
  odd = [name for name, kind in _DEMANDED.items() if not isinstance(model.get(name), kind | None)]
  if odd:
    raise ValueError(f'{path} is broken: "{odd[0]}" is {model[odd[0]]!r}; start from another run')
  return {'phases': phases, 'model': model}


def _shapes(model: nn.Module, inputs: Any) -> dict[str, _Shape]:
  """Shapes of a float network's variables by path; a mean of other images than these is no matter here."""
  shapes = jax.eval_shape(model.clone(image_mean=()).init, jax.random.key(0), *example_of(inputs))
  return {name: value.shape for name, value in traverse_util.flatten_dict(shapes, sep='/').items()}


def _check(source: Source, network: str, found: Mapping[str, _Shape], needed: Mapping[str, tuple[str, _Shape]]) -> None:
  """Raises `ValueError` unless the source has what the network needs, and nothing else.

  Args:
    source: where the weights are.
    network: the network's name.
    found: shapes in the source, by its names.
    needed: by the source's names, the network's name for the same and its shape as it is in the source.
  """
  extra = [torchvision.cut(name) for name in found.keys() - needed.keys()]
  both = {theirs: theirs if theirs == ours else f'{ours} ({theirs})' for theirs, (ours, _) in needed.items()}
  missing = [name for theirs, name in both.items() if theirs not in found]
  if extra or missing:
    sides = (('only in the weights', extra), ('only in the network', missing))
    listed = '; '.join(f'{side}: {torchvision.listed(names)}' for side, names in sides if names)
    raise ValueError(f'init_from={source.given} and {network} have different names, {listed}; {_which(found, network)}')
  different = {
    ours: f'{theirs} is {torchvision.cut(str(found[theirs]))} and {"" if theirs == ours else f"{ours} "}needs {shape}'
    for theirs, (ours, shape) in needed.items()
    if found[theirs] != shape
  }
  if different:
    telling = lambda ours: (ours.split('/')[1] not in ('classifier', 'stem'), not ours.startswith('params'))
    listed = '; '.join([different[ours] for ours in sorted(different, key=telling)][:_LISTED])
    more = f'; and {len(different) - _LISTED} more' if len(different) > _LISTED else ''
    turned = all(sorted(found[t]) == sorted(shape) for t, (ours, shape) in needed.items() if ours in different)
    remedy = 'their axes are in another order, so transpose them' if turned else _remedy(different)
    raise ValueError(f'init_from={source.given} does not fit {network}: {listed}{more}; {remedy}')


def _which(found: Mapping[str, _Shape], network: str) -> str:
  """The remedy for names that differ: the network that has them all, if there is one."""
  for other in torchvision.NETWORKS:
    names = _torchvision_names(other)
    if _without(torchvision.prefix(found, names), found).keys() == names:
      return f'these are weights of {other}, so set model.name to that'
  return f'give weights of {network}'


@functools.cache
def _torchvision_names(network: str) -> frozenset[str]:
  return frozenset(torchvision.names(network, _shapes(models.create(network), (224, 224, 3))).values())


def _remedy(different: Collection[str]) -> str:
  """The remedy for shapes that differ: the parts of a network have theirs from different things."""
  if {name.split('/')[1] for name in different} - {'classifier', 'stem'}:
    return 'give weights of the same model.name and model.width'
  remedies = {
    'params/classifier/bias': 'the classes are those of the data, so give weights for as many, or other data',
    'params/stem/kernel': "the stem depends on the images' colours and on model.small_images",
  }
  return '; '.join(remedy for name, remedy in remedies.items() if name in different)
