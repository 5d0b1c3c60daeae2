"""Letters as polygons, read from font files and filled in integer arithmetic.

Nothing here depends on FreeType, on OpenCV or on how a processor rounds: a font's outlines are integers, curves are cut
into straight edges at fractions that floating point holds exactly, and whether a sample lies inside is decided by
comparing integers. The same fonts give the same coverage on every machine.
"""

import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np

from fracbits_jax.system import extras

CAP_HEIGHT = 4096  # of every font, in the units of an outline
PIXEL = 1024  # units of a pixel for `coverage`
SAMPLES = 4  # across a pixel and down it: full coverage is their square
_CURVE_EDGES = 4  # straight edges of a quadratic curve
_SUBPIXEL = PIXEL // SAMPLES
_EXACT = 2 * _CURVE_EDGES**2  # points that a font implies lie at halves, those of a cut curve at sixteenths


@functools.cache
def outlines(font: str, characters: str) -> tuple[np.ndarray, ...]:
  """The outlines of some characters of a font that matplotlib carries.

  They are scaled to the same height of capitals. The origin is the middle of the character's width, and half the height
  of capitals above the baseline: small letters lie lower than capitals, as in a line of text.

  Args:
    font: a file's name without `.ttf`.
    characters: those wanted.

  Returns:
    For each character its edges, int64 `[edges, 2, 2]` (from and to, x and y), x to the right and y down. They form
    closed contours.

  Raises:
    ValueError: matplotlib has no such file, or the file lacks a character.
  """
  with extras.needed():
    import matplotlib
    from fontTools.ttLib import TTFont

  path = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', f'{font}.ttf')
  if not os.path.isfile(path):
    raise ValueError(f'matplotlib {matplotlib.__version__} lacks the font {path}: install matplotlib anew')
  # The dates in some of the files are odd, which nobody needs to hear.
  logging.getLogger('fontTools.ttLib').setLevel(logging.ERROR)
  with TTFont(path) as file:
    names, glyphs = file.getBestCmap(), file.getGlyphSet()
    missing = [c for c in 'H' + characters if ord(c) not in names]
    if missing:
      raise ValueError(f'the font {path} lacks {missing[0]!r}: install matplotlib anew')
    drawn = {c: _edges(glyphs[names[ord(c)]], glyphs) for c in 'H' + characters}
  cap_height = drawn['H'][..., 1].max()
  placed = []
  for c in characters:
    edges = drawn[c] * CAP_HEIGHT // cap_height
    x, y = edges[..., 0], edges[..., 1]
    placed.append(np.stack([x - (x.min() + x.max()) // 2, CAP_HEIGHT // 2 - y], axis=-1))
  return tuple(placed)


def _edges(glyph, glyphs) -> np.ndarray:
  """A glyph's edges in `1 / _EXACT` of the font's own units, y up."""
  with extras.needed():
    from fontTools.pens.basePen import BasePen

  edges = []

  class Pen(BasePen):
    """Turns whatever the font's outline is made of into straight edges."""

    def _moveTo(self, point):
      self._start = point

    def _lineTo(self, point):
      edges.append((self._getCurrentPoint(), point))

    def _qCurveToOne(self, control, end):
      start = self._getCurrentPoint()
      cuts = [_on_curve(start, control, end, i) for i in range(_CURVE_EDGES + 1)]
      edges.extend(itertools.pairwise(cuts))

    def _closePath(self):
      edges.append((self._getCurrentPoint(), self._start))

  glyph.draw(Pen(glyphs))
  return (np.array(edges) * _EXACT).astype(np.int64)


def _on_curve(start, control, end, i: int) -> tuple[float, ...]:
  """The point of a quadratic Bezier curve at `i / _CURVE_EDGES`; exact, as its denominator is a power of two."""
  n = _CURVE_EDGES
  weights = ((n - i) ** 2, 2 * i * (n - i), i**2)
  axes = zip(start, control, end, strict=True)
  return tuple(sum(w * v for w, v in zip(weights, axis, strict=True)) / n**2 for axis in axes)


def digest(fonts: Iterable[str], characters: str) -> str:
  """SHA-256 of the outlines of some characters in some fonts."""
  sha = hashlib.sha256()
  for font in fonts:
    for edges in outlines(font, characters):
      sha.update(np.int64(len(edges)).astype('<i8').tobytes() + edges.astype('<i8').tobytes())
  return sha.hexdigest()


def transform(shapes: Sequence[np.ndarray], matrix: np.ndarray, centre: np.ndarray) -> list[np.ndarray]:
  """Shapes moved by an affine map each, in integers.

  Args:
    shapes: edges `[edges, 2, 2]` each.
    matrix: `[shapes, 2, 2]`, in 1 / 4096.
    centre: `[shapes, 2]`, where the origin goes.
  """
  lengths = [len(shape) for shape in shapes]
  matrix, centre = (np.repeat(value, lengths, axis=0)[:, None] for value in (matrix, centre))
  moved = (np.sum(matrix * np.concatenate(shapes)[:, :, None], axis=-1) >> 12) + centre
  return np.split(moved, np.cumsum(lengths)[:-1])


def coverage(shapes: Sequence[np.ndarray], size: int) -> np.ndarray:
  """How much of each pixel each shape covers.

  A sample is covered where the shape's contours wind around it (the non-zero rule of TrueType), counted along its row
  of samples.

  Args:
    shapes: edges `[edges, 2, 2]` each, in `1 / PIXEL` of a pixel from the image's upper left corner.
    size: height and width of the images in pixels.

  Returns:
    uint8 `[shapes, size, size]`, 0 to `SAMPLES` squared.
  """
  side = size * SAMPLES
  owner = np.repeat(np.arange(len(shapes)), [len(shape) for shape in shapes])
  (x0, y0), (x1, y1) = np.concatenate(shapes).transpose(1, 2, 0)
  # The rows that an edge crosses, its upper end included.
  first, last = _first_sample(np.minimum(y0, y1), side), _first_sample(np.maximum(y0, y1), side)
  crossings = last - first
  edge = np.repeat(np.arange(len(owner)), crossings)
  row = np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings) + first[edge]
  y = row * _SUBPIXEL + _SUBPIXEL // 2
  x = x0[edge] + (y - y0[edge]) * (x1 - x0)[edge] // (y1 - y0)[edge]
  place = (owner[edge] * side + row) * (side + 1) + _first_sample(x, side)
  steps = np.zeros(len(shapes) * side * (side + 1), np.int8)
  np.add.at(steps, place, np.where(y1 > y0, 1, -1).astype(np.int8)[edge])
  # Contours are closed, so that the steps of each row add up to 0: one sum runs over all rows and shapes.
  winding = np.cumsum(steps, dtype=np.int8).reshape(-1, side, side + 1)
  inside = (winding[..., :side] != 0).view(np.uint8)
  rows = sum(inside[:, i::SAMPLES] for i in range(SAMPLES))
  return sum(rows[..., i::SAMPLES] for i in range(SAMPLES))


def _first_sample(at: np.ndarray, side: int) -> np.ndarray:
  """The first of a line's samples, which lie in the middle of subpixels, that is not before `at`; `side` for none."""
  return np.clip(-((_SUBPIXEL // 2 - at) // _SUBPIXEL), 0, side)
