"""Files of every kind as pixels, against Pillow."""

import io

import cv2
import numpy as np
import pytest
from images_test import encode, photo
from PIL import Image, ImageOps

from fracbits_jax.data import encoded
from fracbits_jax.data.encoded import Encoded, Reading

WHITE = Reading(background=(255, 255, 255))


def by_opencv(suffix, image):
  return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


@pytest.mark.parametrize('suffix', encoded.SUFFIXES)
def test_a_file_of_every_suffix_has_its_pixels_and_their_shape(suffix):
  image = photo(33, 50)
  written = {'.jfif': '.jpg', '.jif': '.jpg', '.jfi': '.jpg', '.j2k': '.jp2', '.apng': '.png'}
  kind = written.get(suffix, suffix)
  if kind in ('.pgm', '.pbm'):
    image = np.repeat(image[..., :1], 3, axis=2) if kind == '.pgm' else np.full_like(image, 255)
  stored = np.float32(image / 255) if kind in ('.hdr', '.pic', '.pfm') else image
  data = by_opencv(kind, stored[..., 0] if kind in ('.pgm', '.pbm') else stored)
  for channels, expected in ((3, image), (1, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None])):
    read = Encoded(data, channels, 'x')
    assert read.shape == read.decode().shape == expected.shape
    assert read.decode().dtype == np.uint8
    assert np.abs(read.decode() - expected.astype(np.int32)).mean() < (20 if kind == '.gif' else 4)  # its 256 colours
  for part in (0.3, 0.95):
    with pytest.raises(ValueError, match=r'^a/b is cut off|^a/b holds \d+ bytes that are no readable image') as caught:
      Encoded(data[: int(part * len(data))], 3, 'a/b').decode()
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_orientation_of_a_camera_is_undone_where_that_is_asked_for(kind, orientation):
  note = Image.Exif()
  note[0x0112] = orientation
  file = encode(photo(40, 64), kind, exif=note)
  with Image.open(io.BytesIO(file.data)) as image:
    upright = np.asarray(ImageOps.exif_transpose(image).convert('RGB'), np.int32)
  read = Encoded(file.data, 3, 'x', Reading(exif_orientation=True))
  assert read.shape == read.decode().shape == upright.shape
  assert np.abs(read.decode() - upright).mean() < 3
  assert read.decode().flags.c_contiguous
  if kind == 'JPEG':
    half = cv2.resize(upright.astype(np.uint8), upright.shape[1::-1], fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = cv2.resize(read.decode(2), half.shape[1::-1])
    assert np.abs(small - half.astype(np.int32)).mean() < 6


@pytest.mark.parametrize('noted', [0, 9, 65535])
def test_an_orientation_that_there_is_not_leaves_the_pixels_as_they_are(noted):
  note = Image.Exif()
  note[0x0112] = noted
  file = encode(photo(20, 30), exif=note)
  read = Encoded(file.data, 3, 'x', Reading(exif_orientation=True))
  assert read.shape == read.decode().shape == (20, 30, 3)


def transparent(mode):
  """An image of a mode with a transparent left half, and a name of the option that Pillow wants for it."""
  rgb = Image.fromarray(photo(16, 20))
  mask = Image.fromarray(np.repeat(np.uint8([[0] * 8 + [128] * 2 + [255] * 10]), 16, axis=0))
  if mode in ('RGBA', 'LA'):
    image = rgb.convert(mode[:-1]).convert(mode)
    image.putalpha(mask)
    return image, {}
  image = rgb.convert(mode)
  corner = image.getpixel((0, 0))
  return image, {'transparency': corner}


@pytest.mark.parametrize(
  ('mode', 'kind'),
  [*((m, 'PNG') for m in ('RGBA', 'LA', 'P', 'L', 'RGB')), ('P', 'GIF'), ('RGBA', 'WEBP'), ('RGBA', 'TIFF')],
)
def test_what_is_transparent_shows_the_background_where_there_is_one(mode, kind):
  if kind == 'GIF' and '.gif' not in encoded.SUFFIXES:
    pytest.skip('this OpenCV reads no GIF')
  image, options = transparent(mode)
  file = encode(image, kind, **options, **({'lossless': True, 'exact': True} if kind == 'WEBP' else {}))
  with Image.open(io.BytesIO(file.data)) as again:
    rgba = np.asarray(again.convert('RGBA'), np.float64)
  assert (rgba[..., 3] == 0).any()
  share = rgba[..., 3:] / 255
  if kind in ('PNG', 'WEBP'):  # others are black there
    np.testing.assert_array_equal(file.decode(), rgba[..., :3])  # without a background it is dropped
  for background in ((255, 255, 255), (0, 100, 7)):
    expected = rgba[..., :3] * share + np.array(background, np.float64)[None, None] * (1 - share)
    read = Encoded(file.data, 3, 'x', Reading(background=background))
    assert read.shape == read.decode().shape == (16, 20, 3)
    np.testing.assert_allclose(read.decode(), expected, atol=0.51)
  assert Encoded(file.data, 1, 'x', WHITE).decode()[0, 0, 0] == 255


def test_a_background_changes_nothing_where_nothing_is_transparent():
  for kind in ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF'):
    file = encode(photo(16, 20), kind)
    np.testing.assert_array_equal(Encoded(file.data, 3, 'x', WHITE).decode(), file.decode())
  deep = encode(np.full((4, 5), 0x8123, np.uint16), 'PNG')
  np.testing.assert_array_equal(Encoded(deep.data, 3, 'x', WHITE).decode(), np.full((4, 5, 3), 0x81))


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF', 'AVIF'])
def test_the_first_picture_of_several_is_taken(kind):
  if kind in ('GIF', 'AVIF') and f'.{kind.lower()}' not in encoded.SUFFIXES:
    pytest.skip(f'this OpenCV reads no {kind}')
  frames = [Image.fromarray(np.full((16, 20, 3), value, np.uint8)) for value in (10, 100, 200)]
  file = encode(frames[0], kind, save_all=True, append_images=frames[1:])
  for reading in (Reading(), WHITE):
    np.testing.assert_allclose(Encoded(file.data, 3, 'x', reading).decode(), np.full((16, 20, 3), 10), atol=1)


def test_numbers_that_are_no_bytes_are_scaled_or_refused():
  shades = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
  expected = np.uint8(np.round(255 * shades))[..., None]
  for data in (by_opencv('.tiff', shades), by_opencv('.pfm', shades)):
    np.testing.assert_array_equal(Encoded(data, 3, 'x').decode(), np.repeat(expected, 3, axis=2))
    np.testing.assert_array_equal(Encoded(data, 1, 'x').decode(), expected)
  deep = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3277
  np.testing.assert_array_equal(Encoded(by_opencv('.tiff', deep), 1, 'x').decode(), (deep >> 8)[..., None])
  for bad, words in (
    (255 * shades, r'float32 pixels from 0 to 255'),
    (shades - 1, r'float32 pixels from -1 to 0'),
    (np.where(shades > 0.5, np.nan, shades), r'float32 pixels from nan to nan'),
    (np.arange(20, dtype=np.int32).reshape(4, 5), r'int32 pixels from 0 to 19'),
  ):
    with pytest.raises(ValueError, match=f'^a.tif holds {words}: 8 bits, 16 bits and floating point from 0 to 1'):
      Encoded(by_opencv('.tiff', bad), 3, 'a.tif').decode()


@pytest.mark.parametrize('given', [(1, 2), (1, 2, 256), (0.5, 0.5, 0.5), (-1, 0, 0), 'red', (True, 0, 0)])
def test_a_background_that_is_no_colour_is_refused(given):
  with pytest.raises(ValueError, match=r'^data.background=.* is no colour: give red, green and blue as whole numbers'):
    Reading(background=given)
