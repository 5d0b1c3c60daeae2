"""Images: from a file or an array to the crop that a network sees.

An image is an uint8 array `[H, W, C]`, RGB or grey, or an `Encoded` file of which as little is decoded as its crop
needs.
"""

import math

import numpy as np

from fracbits_jax.data.encoded import Encoded
from fracbits_jax.system import extras

with extras.needed():
  import cv2

_SHORT_SIDE = 256 / 224  # of an image in evaluation, before its centre is cropped

Box = tuple[int, int, int, int]  # top, left, height, width


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


def add_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> None:
  """Adds Gaussian noise to an image in place, rounded and clipped to 0..255; `deviation` is a part of 255."""
  noisy = image + 255 * deviation * rng.standard_normal(image.shape, np.float32)
  image[...] = np.clip(np.rint(noisy), 0, 255)


def flip(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
  """The image mirrored left to right; `out`, where it is written if given, may be the image itself."""
  return cv2.flip(image, 1, out).reshape(image.shape)
