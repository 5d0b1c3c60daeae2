"""65,000 distorted letters and digits in 62 classes, drawn from fonts that matplotlib carries; nothing is downloaded.

A batch of images, one of each class, is drawn from a seed of its own with integers alone: `RandomState.randint`, whose
streams are frozen, the outlines and the filling of `outlines`, and NumPy's integer arithmetic. No libm, no BLAS, no
FreeType and no SIMD path of floating point takes part, and the PNG files, which OpenCV writes, are lossless. So the
pixels of a version are the same everywhere; `OUTLINES` pins the fonts, a test pins the pixels.
"""

import io
import string
from collections.abc import Iterator

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import cv2
  import tensorflow_datasets as tfds

from fracbits_jax.data.datasets import outlines

SIZE = 32
CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
COUNTS = {'train': 50_000, 'validation': 5_000, 'test': 10_000}

# No two splits share a font, and each has upright and slanted, light and bold, with and without serifs. Validation has
# fonts of its own too, since it is to foretell what a network makes of fonts that it has not seen. Those with all
# characters at their usual places and in every matplotlib since 3.9; cmmi10 is left out for its old-style digits.
FONTS = {
  'train': (
    'DejaVuSans',
    'DejaVuSans-Bold',
    'DejaVuSans-Oblique',
    'DejaVuSansMono',
    'DejaVuSansMono-Oblique',
    'DejaVuSerif',
    'DejaVuSerif-Italic',
    'STIXGeneral',
    'STIXGeneralItalic',
    'STIXGeneralBol',
    'cmr10',
    'cmtt10',
  ),
  'validation': ('DejaVuSans-BoldOblique', 'DejaVuSansMono-BoldOblique', 'DejaVuSerif-Bold', 'cmb10'),
  'test': ('DejaVuSansMono-Bold', 'DejaVuSerif-BoldItalic', 'STIXGeneralBolIta', 'cmss10'),
}
OUTLINES = '125d990936737ec3075710e9d372b2887f16b1cf53951645f09a5fa57b7067f6'

_SEEDS = {'train': 0, 'validation': 1, 'test': 2}
_COUNT = len(CLASSES)


class Glyphs(tfds.core.GeneratorBasedBuilder):
  """Colour images, 32 x 32, of letters and digits: 50,000 for training, 5,000 for validation and 10,000 for test."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Letters and digits of 20 fonts, with fixed splits by font.'}  # noqa: RUF012

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format='png'),
        'label': tfds.features.ClassLabel(names=list(CLASSES)),
      }
    )
    # The classes take turns: any part of a split has all in proportion.
    return tfds.core.DatasetInfo(
      builder=self, features=features, supervised_keys=('image', 'label'), disable_shuffling=True
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    check_fonts()
    return {split: self._generate_examples(split, count) for split, count in COUNTS.items()}

  def _generate_examples(self, split, count) -> Iterator:
    for i in range(count):
      batch, label = divmod(i, _COUNT)
      if label == 0:
        images = draw(split, batch)
      # Already encoded, which keeps the preparation free of TensorFlow.
      encoded = cv2.imencode('.png', images[label, ..., ::-1])[1]
      yield i, {'image': io.BytesIO(encoded.tobytes()), 'label': label}


def check_fonts() -> None:
  """Makes sure that the fonts are those that this version is drawn from.

  Raises:
    ValueError: a font that is missing or has other outlines.
  """
  if outlines.digest(sorted(sum(FONTS.values(), ())), CLASSES) != OUTLINES:
    with extras.needed():
      import matplotlib

    raise ValueError(
      f'the fonts of matplotlib {matplotlib.__version__} differ from those that glyphs {Glyphs.VERSION} is drawn from: '
      'install another matplotlib, 3.9 to 3.11 have them'
    )


def draw(split: str, batch: int) -> np.ndarray:
  """One image of each class in the order of `CLASSES`, uint8 `[62, 32, 32, 3]`, RGB.

  From back to front: a background of uneven colour, two characters that reach in from the sides, a stroke, and the
  character of the class; then blur and noise.

  Args:
    split: `train`, `validation` or `test`.
    batch: which 62 images of the split.
  """
  random = np.random.RandomState([_SEEDS[split], batch])
  colour = _integers(random, 0, 255, (_COUNT, 1)) + _integers(random, -40, 40, (_COUNT, 3))
  images = _background(random, colour)
  for shapes in (_neighbours(random, split), _neighbours(random, split), _strokes(random), _characters(random, split)):
    images = _paint(images, shapes, _contrasting(random, colour))
  images = _noisy(random, _blurred(random, images))
  return images.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _background(random: np.random.RandomState, colour: np.ndarray) -> np.ndarray:
  """A colour each, `[62, 3]`, with clouds: int32 `[62, 3, 32, 32]`, interpolated between 5 x 5 random values."""
  strength = _integers(random, 0, 48, (_COUNT, 1, 1, 1))
  values = colour[:, :, None, None] + _integers(random, -64, 64, (_COUNT, 3, 5, 5)) * strength // 64
  weights = np.maximum(8 - np.abs(np.arange(SIZE)[:, None] - 8 * np.arange(5)), 0)
  return (weights @ values @ weights.T // 64).clip(0, 255).astype(np.int32)


def _contrasting(random: np.random.RandomState, colour: np.ndarray) -> np.ndarray:
  """A colour for each background, `[62, 3]`, that is darker or brighter by at least 64 of 255."""
  grey = colour.sum(axis=1) // 3
  gap = _integers(random, 64, 160, _COUNT)
  brighter = _integers(random, 0, 1, _COUNT) == 1
  brighter = np.where(grey < gap, True, np.where(grey + gap > 255, False, brighter))
  grey = np.where(brighter, grey + gap, grey - gap)
  return (grey[:, None] + _integers(random, -50, 50, (_COUNT, 3))).clip(0, 255).astype(np.int32)


def _characters(random: np.random.RandomState, split: str) -> list[np.ndarray]:
  middle = _pixels(random, -2, 2, (_COUNT, 2))
  return _placed(random, split, np.arange(_COUNT), middle)


def _neighbours(random: np.random.RandomState, split: str) -> list[np.ndarray]:
  """Characters at one of the four sides, most of each beyond the edge."""
  far = _pixels(random, 20, 27, _COUNT) * (2 * _integers(random, 0, 1, _COUNT) - 1)
  along = _pixels(random, -10, 10, _COUNT)
  beside = _integers(random, 0, 1, (_COUNT, 1)) == 1
  middle = np.where(beside, np.stack([far, along], axis=1), np.stack([along, far], axis=1))
  return _placed(random, split, _integers(random, 0, _COUNT - 1, _COUNT), middle)


def _placed(random: np.random.RandomState, split: str, labels: np.ndarray, middle: np.ndarray) -> list[np.ndarray]:
  """Characters in random fonts of the split, distorted, at `middle` `[62, 2]` from the images' own."""
  fonts = [FONTS[split][i] for i in _integers(random, 0, len(FONTS[split]) - 1, _COUNT)]
  shapes = [outlines.outlines(font, CLASSES)[label] for font, label in zip(fonts, labels, strict=True)]
  return outlines.transform(shapes, _distortion(random), SIZE * outlines.PIXEL // 2 + middle)


def _distortion(random: np.random.RandomState) -> np.ndarray:
  """Affine maps `[62, 2, 2]` in 1 / 4096: capitals 18 to 23 pixels high, rotated by up to 14 degrees, sheared."""
  height = _pixels(random, 18, 23, _COUNT) * 4096 // outlines.CAP_HEIGHT
  width = height * _integers(random, 52, 76, _COUNT) // 64
  # tan(angle / 2) in 1 / 256 gives sine and cosine by divisions, which are exact, unlike libm's.
  half, shear = _integers(random, -32, 32, _COUNT), _integers(random, -16, 16, _COUNT)
  norm = 256**2 + half**2
  cos, sin = 4096 * (256**2 - half**2) // norm, 4096 * 512 * half // norm
  rows = [[width * cos, height * (cos * shear // 64 - sin)], [width * sin, height * (sin * shear // 64 + cos)]]
  return np.array(rows).transpose(2, 0, 1) // 4096


def _strokes(random: np.random.RandomState) -> list[np.ndarray]:
  """A straight stroke across each image, 0.6 to 1.6 pixels wide."""
  start, end = _pixels(random, 0, SIZE, (2, _COUNT, 2))
  along = end - start
  across = along[:, ::-1] * [-1, 1] * _pixels(random, 0.3, 0.8, (_COUNT, 1))
  across //= np.maximum(np.abs(along).max(axis=1, keepdims=True), 1)
  corners = np.stack([start + across, end + across, end - across, start - across], axis=1)
  return list(np.stack([corners, np.roll(corners, -1, axis=1)], axis=2))


def _pixels(random: np.random.RandomState, low: float, high: float, shape) -> np.ndarray:
  """Random lengths from `low` to `high` pixels, in the units of `outlines`."""
  return _integers(random, int(low * outlines.PIXEL), int(high * outlines.PIXEL), shape)


def _integers(random: np.random.RandomState, low: int, high: int, shape) -> np.ndarray:
  """Random int64 from `low` to `high`, both included, whatever the platform's own integer is."""
  return random.randint(low, high + 1, shape, dtype=np.int64)


def _paint(images: np.ndarray, shapes: list[np.ndarray], colour: np.ndarray) -> np.ndarray:
  full = outlines.SAMPLES**2
  cover = outlines.coverage(shapes, SIZE)[:, None].astype(np.int32)
  return images + ((colour[:, :, None, None] - images) * cover + full // 2) // full


def _blurred(random: np.random.RandomState, images: np.ndarray) -> np.ndarray:
  """Each image after 0 to 3 passes of the binomial filter 1, 2, 1."""
  passes = _integers(random, 0, 3, (_COUNT, 1, 1, 1))
  for i in range(3):
    images = np.where(passes > i, _binomial(images), images)
  return images


def _binomial(images: np.ndarray) -> np.ndarray:
  padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode='edge')
  rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
  return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] + 8) // 16


def _noisy(random: np.random.RandomState, images: np.ndarray) -> np.ndarray:
  """Each image with noise of its own deviation, 0 to 28, mostly small: sums of four uniform bytes, nearly normal."""
  strength = _integers(random, 0, 24, (2, _COUNT, 1, 1, 1)).min(axis=0)
  noise = random.randint(0, 256, (4, *images.shape), dtype=np.uint8).sum(axis=0, dtype=np.int32) - 510
  return images + noise * strength // 128
