"""From the bytes of an image file to its pixels, as OpenCV decodes them.

What a file may leave open has one answer each: the first of several pictures or pages is taken, 16 bits become the
upper 8, grey, palettes and CMYK become RGB. The orientation that a camera notes in EXIF is ignored and transparency is
dropped, unless `Reading` says otherwise; that of a TIFF is part of the format and always followed.
"""

import dataclasses
import functools
import io
from typing import Any

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import cv2

cv2.setNumThreads(0)  # one image is too small a task to share
# What cannot be decoded is told by an error that names it; OpenCV 4 and 5 have the switch in different places.
_opencv: Any = cv2
(_opencv.setLogLevel if hasattr(cv2, 'setLogLevel') else _opencv.utils.logging.setLogLevel)(0)

# Of the files that OpenCV decodes; GIF and AVIF are not in every build, and one that writes them reads them. PAM is
# left out: pixels with transparency, and those of one bit, are read wrongly.
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.jfi', '.jp2', '.j2k', '.png', '.apng', '.bmp', '.dib', '.webp'),
  *('.tif', '.tiff', '.pbm', '.pgm', '.ppm', '.pnm', '.pfm', '.sr', '.ras', '.hdr', '.pic'),
  *(suffix for suffix in ('.gif', '.avif') if cv2.haveImageWriter(f'x{suffix}')),
)

_JPEG_START, _JPEG_SCAN, _JPEG_END, _PNG_START, _PNG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9', b'\x89PNG', b'IEND'
_TIFF_STARTS, _FLOAT_STARTS = (b'II*\0', b'II+\0', b'MM\0*', b'MM\0+'), (b'PF', b'Pf')
_EXIF = b'Exif\0\0'  # before what a JPEG's camera notes
_ORIENTATION = 0x0112  # tag of EXIF
_REDUCED = {
  2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
  4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
  8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """How the files of a data set are read.

  Attributes:
    exif_orientation: turn and mirror images as their EXIF data say.
    background: red, green and blue, 0 to 255, behind what is transparent; `None` drops the transparency and shows the
      colours that the file has there, often black.
  """

  exif_orientation: bool = False
  background: tuple[int, int, int] | None = None

  def __post_init__(self):
    given = self.background
    if given is None:
      return
    if len(given) != 3 or any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= 255 for v in given):
      raise ValueError(
        f'data.background={given!r} is no colour: give red, green and blue as whole numbers from 0 to 255, such as '
        '(255, 255, 255)'
      )


AS_STORED = Reading()


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The bytes of an image file.

  Attributes:
    data: a file of a kind in `SUFFIXES`. Every image becomes `channels` channels of 8 bits.
    channels: 3 for RGB, 1 for grey.
    name: what errors call it.
    reading: how it is read.
  """

  data: bytes
  channels: int
  name: str
  reading: Reading = AS_STORED

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """`(H, W, channels)` of the whole image, of a JPEG read from its header.

    Raises:
      ValueError: as `decode`.
    """
    if self.is_jpeg and (size := _jpeg_size(self.data)):
      height, width = reversed(size) if self._orientation > 4 else size
    else:
      height, width = self._whole.shape[:2]
    return height, width, self.channels

  @property
  def is_jpeg(self) -> bool:
    return self.data.startswith(_JPEG_START)

  def decode(self, reduction: int = 1) -> np.ndarray:
    """The pixels, `[H, W, channels]`, or `[ceil(H / reduction), ...]` for a `reduction` of 2, 4 or 8 of a JPEG.

    Raises:
      ValueError: a file that is cut off, which a decoder may fill with grey, or that cannot be decoded.
    """
    return self._whole if reduction == 1 else self._decoded(reduction)

  @functools.cached_property
  def _whole(self) -> np.ndarray:
    return self._decoded(1)

  def _decoded(self, reduction: int) -> np.ndarray:
    self._check_end()
    image = None
    if self.reading.background is not None and not self.is_jpeg:
      image = self._composed()
    if image is None:
      image = self._opaque(reduction)
    return _turned(image.reshape(*image.shape[:2], self.channels), self._orientation)

  def _opaque(self, reduction: int) -> np.ndarray:
    """The pixels without transparency, as they are stored."""
    grey = self.channels == 1
    if reduction == 1:
      flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    else:
      flag = _REDUCED[reduction][0 if grey else 1]
    image = None if self.data.startswith(_FLOAT_STARTS) else self._by_opencv(flag)
    if image is None:
      return self._of_floats()
    if reduction > 1 and not grey:
      image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image

  def _by_opencv(self, flag: int) -> np.ndarray | None:
    try:
      return cv2.imdecode(np.frombuffer(self.data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
      return None

  def _of_floats(self) -> np.ndarray:
    """Pixels that are stored in floating point, as PFM and some TIFF files do: 0 to 1 becomes 0 to 255."""
    image = self._by_opencv(cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype == np.uint8:
      raise self._unreadable()
    if image.dtype.kind != 'f' or not (image.min() >= 0 and image.max() <= 1):
      raise ValueError(
        f'{self.name} holds {image.dtype} pixels from {image.min():g} to {image.max():g}: 8 bits, 16 bits and floating '
        'point from 0 to 1 are read, so convert or remove it'
      )
    image = (255 * image + 0.5).astype(np.uint8)
    grey = image.ndim == 2
    if self.channels == 1:
      return image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if grey else cv2.COLOR_BGR2RGB)

  def _composed(self) -> np.ndarray | None:
    """The image before the background, by Pillow, which knows of all kinds of transparency; `None` if it has none."""
    with extras.needed():
      from PIL import Image

    try:
      with Image.open(io.BytesIO(self.data)) as image:
        if 'transparency' not in image.info and image.mode not in ('RGBA', 'LA', 'PA', 'RGBa', 'La'):
          return None
        rgba = np.asarray(image.convert('RGBA'), np.uint16)
    except Exception:  # Pillow raises what the format's reader happens to raise
      return None
    alpha, background = rgba[..., 3:], np.asarray(self.reading.background, np.uint16)
    found = ((rgba[..., :3] * alpha + background[None, None] * (255 - alpha) + 127) // 255).astype(np.uint8)
    return cv2.cvtColor(found, cv2.COLOR_RGB2GRAY) if self.channels == 1 else found

  @property
  def _orientation(self) -> int:
    """The orientation that is to be undone, 1 to 8 as EXIF counts; 1 is upright, and what is not noted legibly."""
    return self._noted if self.reading.exif_orientation else 1

  @functools.cached_property
  def _noted(self) -> int:
    unknown = self.is_jpeg and _EXIF not in self.data  # without Pillow, where there are many
    if unknown or self.data.startswith(_TIFF_STARTS):
      return 1
    with extras.needed():
      from PIL import Image

    noted: Any
    try:
      with Image.open(io.BytesIO(self.data)) as image:
        noted = image.getexif().get(_ORIENTATION)
    except Exception:  # as above
      noted = None
    return noted if noted in range(1, 9) else 1

  def _check_end(self) -> None:
    data = self.data
    if self.is_jpeg:
      # The scan itself cannot hold these markers; a thumbnail, which can, lies before the last scan.
      whole = data.endswith(_JPEG_END) or data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
    else:
      whole = not data.startswith(_PNG_START) or _PNG_END in data[-64:] or _PNG_END in data
    if not whole:
      raise ValueError(f'{self.name} is cut off, its image data have no end: replace or remove it')

  def _unreadable(self) -> ValueError:
    kinds = ', '.join(kind for kind in ('GIF', 'AVIF') if f'.{kind.lower()}' in SUFFIXES)
    return ValueError(
      f'{self.name} holds {len(self.data)} bytes that are no readable image: replace or remove it; JPEG, PNG, BMP, '
      f'WebP, TIFF, JPEG 2000, PNM{kinds and ", "}{kinds} are read'
    )


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
  """The upright image, contiguous, of one `[H, W, C]` with an EXIF orientation of 1 to 8."""
  if orientation == 1:
    return image
  if orientation >= 5:
    image = image.transpose(1, 0, 2)
  upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
  image = image[::-1] if upside_down else image
  return np.ascontiguousarray(image[:, ::-1] if mirrored else image)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  """`(H, W)` in a JPEG's frame header, `None` if none is found."""
  at = 2
  while data[at : at + 1] == b'\xff' and len(data) >= at + 9:
    if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):  # those three are no frames
      return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
    at += 2 + int.from_bytes(data[at + 2 : at + 4])
  return None
