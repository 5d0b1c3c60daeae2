"""Data sets of arrays in one file, such as features that something else has computed.

A file of `numpy.savez` holds, for each split,

| array | what it is |
| ----- | ---------- |
| `train_images` | uint8 `[N, H, W, C]`, `[N, H, W]` or vectors `[N, D]`, which become `[N, D, 1, 1]` |
| `train_labels` | integers `[N]`, from 0; left out where nothing has a class |
| `train_targets` | numbers `[N, ...]` that a regression is to meet, if they are not the inputs themselves |

and the same with `validation_` and `test_`, of which one or both may be left out, see `splits`; and, if classes have
names, `class_names`. Examples are taken as they are: in their own size, without augmentation.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from fracbits_jax.data import splits
from fracbits_jax.data.sources import Examples, Memory

_SPLITS = ('train', 'validation', 'test')
_REMEDY = 'give an .npz file of numpy.savez with train_images, and train_labels or train_targets where there are any'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
  """What a file of arrays holds.

  Attributes:
    shape: `[H, W, C]` of every example.
    class_names: in the order of their labels; empty without labels.
    target_shape: of the targets of an example; `None` without targets.
    splits: to train, to validate and to test.
    digest: of all arrays.
  """

  shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  target_shape: tuple[int, ...] | None
  splits: tuple[Examples, Examples, Examples]
  digest: str


def read(path: str | os.PathLike | None) -> Arrays:
  """Reads a file of arrays into memory.

  Raises:
    ValueError: one sentence: no such file, or arrays that do not fit together.
  """
  if path is None:
    raise ValueError(f'data.dataset=arrays needs data.data_dir: {_REMEDY}')
  found = _load(path)
  names = [name for name in _SPLITS if f'{name}_images' in found]
  if 'train' not in names:
    raise ValueError(f'{path} has no train_images but {", ".join(sorted(found)) or "nothing"}: {_REMEDY}')
  unknown = set(found) - {f'{name}_{what}' for name in names for what in ('images', 'labels', 'targets')}
  if unknown - {'class_names'}:
    raise ValueError(f'{path} has {sorted(unknown)[0]}, which is no array of a split with images: {_REMEDY}')
  images = {name: _images(path, name, found[f'{name}_images']) for name in names}
  for name in names:
    _check_alike(path, name, 'images', images[name].shape[1:], images['train'].shape[1:])
  labels = _labels(path, found, images)
  targets = _targets(path, found, images)
  given = {name: Memory(images[name], labels[name], targets.get(name)) for name in names}
  train, *others = (None if name is None else given[name] for name in splits.choose_splits(names))
  assert train is not None
  return Arrays(
    shape=images['train'].shape[1:],
    class_names=_class_names(path, found, labels),
    target_shape=targets['train'].shape[1:] if targets else None,
    splits=splits.complete(train, *others),
    digest=_digest(found),
  )


def _load(path: str | os.PathLike) -> dict[str, np.ndarray]:
  try:
    with zipfile.ZipFile(os.path.expanduser(path)):
      pass
    with np.load(os.path.expanduser(path), allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except OSError as error:
    raise ValueError(f'{path} cannot be read ({error.strerror or error}): {_REMEDY}') from None
  except Exception:  # of one that is damaged, or is something else, there are many
    raise ValueError(f'{path} is damaged, or holds something else than arrays of numbers and text: {_REMEDY}') from None


def _images(path: str | os.PathLike, split: str, images: np.ndarray) -> np.ndarray:
  """The images of a split as `[N, H, W, C]`."""
  if images.dtype != np.uint8 or images.ndim not in (2, 3, 4) or not images.size:
    raise ValueError(
      f'{split}_images in {path} are {images.dtype} {list(images.shape)}: give uint8 arrays [N, H, W, C], [N, H, W] or '
      '[N, D], real numbers scaled to 0..255 and rounded'
    )
  return images.reshape(*images.shape, *[1] * (4 - images.ndim))


def _check_alike(path: str | os.PathLike, split: str, what: str, shape: tuple, of_train: tuple) -> None:
  if shape != of_train:
    raise ValueError(
      f'{split}_{what} in {path} have the shape {list(shape)} an example and train_{what} {list(of_train)}: make them '
      'the same'
    )


def _of_all(path: str | os.PathLike, found: Mapping[str, np.ndarray], images: Mapping, what: str) -> list[np.ndarray]:
  """The arrays of this kind by split, one entry for each image; empty where no split has any."""
  given = [f'{name}_{what}' for name in images if f'{name}_{what}' in found]
  missing = [f'{name}_{what}' for name in images if f'{name}_{what}' not in found]
  if given and missing:
    raise ValueError(f'{path} has {given[0]} and no {missing[0]}: give them for every split or for none')
  for name in images if given else ():
    count = found[f'{name}_{what}'].shape[:1]
    if count != (len(images[name]),):
      raise ValueError(
        f'{path} has {len(images[name])} {name}_images and {name}_{what} {list(count)}: give one for each'
      )
  return [found[name] for name in given]


def _labels(path: str | os.PathLike, found: Mapping[str, np.ndarray], images: Mapping) -> dict[str, np.ndarray]:
  """The labels by split, int32 `[N]`; zeros where there are none."""
  given = _of_all(path, found, images, 'labels')
  if not given:
    return {name: np.zeros(len(x), np.int32) for name, x in images.items()}
  for name, labels in zip(images, given, strict=True):
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
      raise ValueError(
        f'{name}_labels in {path} are {labels.dtype} {list(labels.shape)}: give an integer from 0 for each image'
      )
  return {name: labels.astype(np.int32) for name, labels in zip(images, given, strict=True)}


def _targets(path: str | os.PathLike, found: Mapping[str, np.ndarray], images: Mapping) -> dict[str, np.ndarray]:
  """The targets by split, float32 `[N, ...]`; empty where there are none."""
  given = dict(zip(images, _of_all(path, found, images, 'targets'), strict=False))
  for name, targets in given.items():
    if targets.ndim < 2 or targets.dtype.kind not in 'fiu' or not np.isfinite(targets).all():
      raise ValueError(
        f'{name}_targets in {path} are {targets.dtype} {list(targets.shape)}, or not finite: give numbers [N, ...]'
      )
    _check_alike(path, name, 'targets', targets.shape[1:], given['train'].shape[1:])
  return {name: targets.astype(np.float32) for name, targets in given.items()}


def _class_names(path: str | os.PathLike, found: Mapping[str, np.ndarray], labels: Mapping) -> tuple[str, ...]:
  count = 1 + max(int(x.max()) for x in labels.values()) if 'train_labels' in found else 0
  if 'class_names' not in found:
    return tuple(map(str, range(count)))
  names = found['class_names']
  if names.dtype.kind != 'U' or names.ndim != 1 or len(names) < count:
    raise ValueError(f'class_names in {path} are {names.dtype} {list(names.shape)}: give a text for each of {count}')
  return tuple(names.tolist())


def _digest(found: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name, array in sorted(found.items()):
    digest.update(f'{name} {array.dtype} {array.shape} '.encode() + np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:16]
