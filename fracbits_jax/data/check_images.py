"""Reads every image of a folder of classes once, before a long run finds the one that cannot be read.

python -m fracbits_jax.check_images FOLDER [--workers=N]
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from fracbits_jax.system.files import shown

if TYPE_CHECKING:
  from fracbits_jax.data.sources import FolderExamples

_AT_ONCE = 32  # images that a thread takes from the list
_SIZES, _CLASSES = 5, 40  # that the summary names one by one
_SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
  """What a folder holds.

  Attributes:
    bad: a sentence for each image that cannot be read.
    classes: the names of the classes.
    counts: images, whether they can be read or not, by split and label.
    sizes: images that can be read, by height and width.
    suffixes: images, by the lower-case suffix of their names.
    notes: what a run would say of the folder.
  """

  bad: tuple[str, ...]
  classes: tuple[str, ...]
  counts: collections.Counter[tuple[str, int]]
  sizes: collections.Counter[tuple[int, int]]
  suffixes: collections.Counter[str]
  notes: tuple[str, ...]

  @property
  def total(self) -> int:
    return self.counts.total()


def check(root: str, *, workers: int | None = None, show: Callable[[int, int], None] | None = None) -> Checked:
  """Reads and decodes every image of a folder as training does.

  Args:
    root: the folder that holds `train/<class>/`.
    workers: threads; as many as processors unless given. OpenCV decodes without Python's lock.
    show: is told how many images are done, of how many.

  Raises:
    ValueError: a folder that is not as `folder_source.read_folder` wants it.
  """
  from fracbits_jax.data import folder_source  # behind the help, which needs no packages of an extra

  folder = folder_source.read_folder(root)
  splits = dict(zip(_SPLITS, folder.splits, strict=True))
  total, done = sum(map(len, folder.splits)), 0
  bad: list[str] = []
  counts: collections.Counter[tuple[str, int]] = collections.Counter()
  sizes: collections.Counter[tuple[int, int]] = collections.Counter()
  suffixes: collections.Counter[str] = collections.Counter()
  parts = [
    (name, range(i, min(i + _AT_ONCE, len(s)))) for name, s in splits.items() for i in range(0, len(s), _AT_ONCE)
  ]
  with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
    try:
      for (name, indices), found in zip(
        parts, pool.map(lambda part: _read(splits[part[0]], part[1]), parts), strict=True
      ):
        for label, suffix, size, sentence in found:
          counts[name, label] += 1
          suffixes[suffix] += 1
          if size is not None:
            sizes[size] += 1
          if sentence is not None:
            bad.append(sentence)
        done += len(indices)
        if show is not None:
          show(done, total)
    except BaseException:
      pool.shutdown(cancel_futures=True)  # or Ctrl-C would wait for the rest
      raise
  kept = {'bad': tuple(bad), 'classes': folder.classes, 'notes': folder.notes}
  return Checked(counts=counts, sizes=sizes, suffixes=suffixes, **kept)


def _read(split: 'FolderExamples', indices: Iterable[int]) -> list[tuple[int, str, tuple[int, int] | None, str | None]]:
  """Label, suffix, size, and what is wrong, of some images."""
  found = []
  for index in indices:
    size = sentence = None
    try:
      size = split[index]['image'].decode().shape[:2]
    except ValueError as error:
      sentence = str(error)
    found.append((split.label(index), os.path.splitext(split.path(index))[1].lower(), size, sentence))
  return found


def summary(checked: Checked) -> Iterator[str]:
  """The lines to print: what is wrong, then the counts."""
  yield from checked.bad
  yield from checked.notes
  by_split = {split: sum(n for (name, _), n in checked.counts.items() if name == split) for split in _SPLITS}
  yield f'splits: {", ".join(f"{split} {n:,}" for split, n in by_split.items())}'
  yield f'suffixes: {", ".join(f"{shown(suffix)} {n:,}" for suffix, n in checked.suffixes.most_common())}'
  common = [f'{width} x {height} {n:,}' for (height, width), n in checked.sizes.most_common(_SIZES)]
  others = f', {len(checked.sizes) - _SIZES:,} others' if len(checked.sizes) > _SIZES else ''
  if common:
    shortest = min(min(size) for size in checked.sizes), max(min(size) for size in checked.sizes)
    yield f'sizes: {", ".join(common)}{others}; shorter sides from {shortest[0]} to {shortest[1]} pixels'
  yield from _by_class(checked)
  wrong = len(checked.bad)
  yield f'{checked.total:,} images of {len(checked.classes):,} classes, {wrong:,} cannot be read' + (
    ': see above' if wrong else ''
  )


def _by_class(checked: Checked) -> Iterator[str]:
  """The images of each class by split; of many classes the smallest ones."""
  counts = checked.counts
  order = list(range(len(checked.classes)))
  if len(order) > _CLASSES:
    yield f'the {_CLASSES} smallest of {len(order):,} classes:'
    order.sort(key=lambda label: (sum(counts[split, label] for split in _SPLITS), label))
    order = order[:_CLASSES]
  names = [shown(checked.classes[label])[:32] for label in order]
  width = max(map(len, ('class', *names)))
  yield '  '.join([f'{"class":<{width}}', *(f'{split:>10}' for split in _SPLITS)])
  for name, label in zip(names, order, strict=True):
    yield '  '.join([f'{name:<{width}}', *(f'{counts[split, label]:>10,}' for split in _SPLITS)])
