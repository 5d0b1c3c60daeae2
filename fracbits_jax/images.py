"""Images: from the bytes of a file to the pixels that a network sees.

An image is an uint8 array `[H, W, C]`, RGB or grey, or an `Encoded` file of which as little is decoded as its crop
needs. The orientation that a camera notes in EXIF is ignored everywhere: pixels are taken as they are stored.
"""

import dataclasses
import functools
import io
import math

import numpy as np

from fracbits_jax import extras

with extras.needed():
  import cv2


cv2.setNumThreads(0)  # one image is too small a task to share
# What cannot be decoded is told by an error that names it; OpenCV 4 and 5 have the switch in different places.
(cv2.setLogLevel if hasattr(cv2, 'setLogLevel') else cv2.utils.logging.setLogLevel)(0)

_SHORT_SIDE = 256 / 224  # of an image in evaluation, before its centre is cropped
_JPEG_START, _JPEG_SCAN, _JPEG_END, _PNG_START, _PNG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9', b'\x89PNG', b'IEND'
_REDUCED = {
  2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
  4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
  8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The bytes of an image file.

  Attributes:
    data: a JPEG, PNG, BMP or WebP file. Grey, CMYK, palette, 16-bit and transparent images become `channels` channels
      of 8 bits; transparency is dropped.
    channels: 3 for RGB, 1 for grey.
    name: what errors call it.
  """

  data: bytes
  channels: int
  name: str

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """`(H, W, channels)` of the whole image, read from the file's header.

    Raises:
      ValueError: a file of no known kind.
    """
    if self.is_jpeg and (size := _jpeg_size(self.data)):
      return *size, self.channels
    with extras.needed():
      from PIL import Image

    try:
      with Image.open(io.BytesIO(self.data)) as header:
        width, height = header.size
    except Exception:  # Pillow raises what the format's reader happens to raise
      raise self._unreadable() from None
    return height, width, self.channels

  @property
  def is_jpeg(self) -> bool:
    return self.data.startswith(_JPEG_START)

  def decode(self, reduction: int = 1) -> np.ndarray:
    """The pixels, `[H, W, channels]`, or `[ceil(H / reduction), ...]` for a `reduction` of 2, 4 or 8 of a JPEG.

    Raises:
      ValueError: a file that is cut off, which a decoder may fill with grey, or that cannot be decoded.
    """
    self._check_end()
    grey = self.channels == 1
    if reduction == 1:
      flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    else:
      flag = _REDUCED[reduction][0 if grey else 1]
    try:
      image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
      image = None
    if image is None:
      raise self._unreadable()
    if reduction > 1 and not grey:
      image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image.reshape(*image.shape[:2], self.channels)

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
    return ValueError(
      f'{self.name} holds {len(self.data)} bytes that are no readable image: replace or remove it; JPEG, PNG, BMP and '
      'WebP are read'
    )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  """`(H, W)` in a JPEG's frame header, `None` if none is found; Pillow's way to it costs 4% of a training image."""
  at = 2
  while data[at : at + 1] == b'\xff' and len(data) >= at + 9:
    if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):  # those three are no frames
      return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
    at += 2 + int.from_bytes(data[at + 2 : at + 4])
  return None


def pixels(image: np.ndarray | Encoded) -> np.ndarray:
  """All pixels of an image."""
  return image.decode() if isinstance(image, Encoded) else image


def resize(image: np.ndarray | Encoded, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
  """The image in another size, by averaging areas where it shrinks and linearly where it grows.

  With `out`, a contiguous uint8 array `[height, width, channels]`, it is written there, and `out` returned.
  """
  image = pixels(image)
  if image.shape[:2] == (height, width):
    if out is None:
      return image
    out[...] = image
    return out
  how = cv2.INTER_AREA if image.shape[0] * image.shape[1] > height * width else cv2.INTER_LINEAR
  if out is None:
    out = np.empty((height, width, image.shape[2]), np.uint8)
  cv2.resize(image, (width, height), dst=out, interpolation=how)
  return out


def crop(image: np.ndarray | Encoded, box: Box, size: int, out: np.ndarray | None = None) -> np.ndarray:
  """A box of an image, resized to `size` x `size`; `out` as in `resize`.

  A JPEG is decoded at 1/8, 1/4 or 1/2 of its size where the box still has at least `size` pixels each way then; its
  edges fall on whole pixels of the reduced image.
  """
  top, left, height, width = box
  if isinstance(image, Encoded):
    reduction = next((r for r in (8, 4, 2) if image.is_jpeg and min(height, width) >= r * size), 1)
    image = image.decode(reduction)
    if reduction > 1:
      height, width = round(height / reduction), round(width / reduction)
      top = min(round(top / reduction), image.shape[0] - height)
      left = min(round(left / reduction), image.shape[1] - width)
  return resize(image[top : top + height, left : left + width], size, size, out)


def random_resized_crop(
  image: np.ndarray | Encoded, size: int, rng: np.random.Generator, out: np.ndarray | None = None
) -> np.ndarray:
  """A crop of 8% to 100% of the area and of aspect 3/4 to 4/3, resized to `size` (Szegedy et al. 2015)."""
  height, width = image.shape[:2]
  for _ in range(10):
    area = height * width * rng.uniform(0.08, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return crop(image, (int(top), int(left), h, w), size, out)
  return centre_crop(image, size, out)


def centre_crop(image: np.ndarray | Encoded, size: int, out: np.ndarray | None = None) -> np.ndarray:
  """The centre square of 224/256 of the short side, resized to `size`."""
  height, width = image.shape[:2]
  side = max(1, round(min(height, width) / _SHORT_SIDE))
  return crop(image, ((height - side) // 2, (width - side) // 2, side, side), size, out)


def random_shift(image: np.ndarray, largest: int, rng: np.random.Generator) -> np.ndarray:
  """The image moved by up to `largest` pixels each way, black where it left."""
  height, width = image.shape[:2]
  padded = np.pad(image, ((largest, largest), (largest, largest), (0, 0)))
  top, left = rng.integers(2 * largest + 1, size=2)
  return padded[top : top + height, left : left + width]


def flip(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """The image mirrored left to right; `out`, where it is written if given, may be the image itself."""
  return cv2.flip(image, 1, out).reshape(image.shape)
