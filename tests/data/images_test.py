import io

import cv2
import numpy as np
import pytest
from PIL import Image

from fracbits_jax.data import images


def photo(height, width, seed=0):
  """A smooth image, so that interpolation changes little."""
  colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
  return cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image, kind='JPEG', channels=3, **options):
  file = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(file, kind, **options)
  return images.Encoded(file.getvalue(), channels, 'some/file')


def test_crops_have_the_asked_size_and_show_the_image():
  image = np.arange(300 * 400 * 3, dtype=np.uint32).reshape(300, 400, 3).astype(np.uint8)
  rng = np.random.default_rng(0)
  assert all(images.random_resized_crop(image, 64, rng).shape == (64, 64, 3) for _ in range(20))
  assert images.random_resized_crop(image[:, :1], 64, rng).shape == (64, 64, 3)  # too narrow for any crop
  flat = np.full((256, 320, 3), 7, np.uint8)
  flat[:, 160 - 112 : 160 + 112] = 9  # the centre of an image whose short side is 256 already
  np.testing.assert_array_equal(images.centre_crop(flat, 224), 9)


def test_shifts_fill_with_black():
  image = np.full((8, 8, 1), 5, np.uint8)
  shifted = [images.random_shift(image, 2, np.random.default_rng(i)) for i in range(20)]
  assert all(s.shape == (8, 8, 1) for s in shifted)
  assert {int((s == 0).sum()) for s in shifted} > {0}
  assert all((s == 5).sum() >= 36 for s in shifted)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('size', [224, 112, 56, 28])
def test_a_jpeg_decoded_at_a_reduced_scale_gives_the_same_crop(size, channels, monkeypatch):
  encoded = encode(photo(601, 803), quality=95, channels=channels)
  whole, scales, decode = encoded.decode(), [], images.Encoded.decode
  monkeypatch.setattr(images.Encoded, 'decode', lambda self, scale=1: scales.append(scale) or decode(self, scale))
  # Edges may move by half a pixel of the crop, which changes it by this much where its colours change fastest.
  for seed in range(6):
    crops = [images.random_resized_crop(image, size, np.random.default_rng(seed)) for image in (encoded, whole)]
    steepest = max(np.abs(np.diff(crops[1].astype(np.int32), axis=axis)).max() for axis in (0, 1))
    assert np.abs(np.subtract(*crops, dtype=np.int32)).max() <= steepest + 3
    assert np.abs(np.subtract(*crops, dtype=np.int32)).mean() < 3
  crops = [images.centre_crop(image, size) for image in (encoded, whole)]
  assert np.abs(np.subtract(*crops, dtype=np.int32)).mean() < 3
  assert max(scales) == {224: 2, 112: 4, 56: 8, 28: 8}[size]


def test_a_crop_is_decoded_at_no_less_than_its_size(monkeypatch):
  encoded, scales, decode = encode(photo(400, 400)), [], images.Encoded.decode
  monkeypatch.setattr(images.Encoded, 'decode', lambda self, scale=1: scales.append(scale) or decode(self, scale))
  for side in (100, 199, 200, 399, 400):
    images.crop(encoded, (0, 0, 400, side), 100)
  assert scales == [1, 1, 2, 2, 4]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'WEBP'])
def test_the_size_in_the_header_is_that_of_the_pixels(kind):
  for options in ({}, {'progressive': True}, {'exif': b'Exif\0\0' + encode(photo(9, 9)).data}):
    encoded = encode(photo(33, 50), kind, **options)
    assert encoded.shape == encoded.decode().shape == (33, 50, 3)
  filled = encode(photo(33, 50)).data.replace(b'\xff\xdb', b'\xff\xff\xdb', 1)  # markers may be preceded by fill bytes
  assert images.Encoded(filled, 3, 'x').shape == (33, 50, 3)


def test_the_orientation_of_a_camera_is_ignored():
  image, exif = photo(40, 60), Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  turned = encode(image, exif=exif, quality=95)
  assert turned.shape == turned.decode().shape == (40, 60, 3)
  np.testing.assert_array_equal(turned.decode(), encode(image, quality=95).decode())
  assert turned.decode(2).shape == (20, 30, 3)


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_and_cmyk_jpegs_become_rgb(mode):
  image = Image.fromarray(photo(64, 80)).convert(mode)
  encoded, expected = encode(image, quality=95), np.asarray(image.convert('RGB'), np.int32)
  for scale in (1, 2):
    small = cv2.resize(expected.astype(np.uint8), (80 // scale, 64 // scale), interpolation=cv2.INTER_AREA)
    assert np.abs(encoded.decode(scale) - small.astype(np.int32)).mean() < 4


def test_palettes_transparency_and_16_bits_become_8_bit_rgb():
  rgb = Image.fromarray(photo(16, 20))
  for kind, mode in (('PNG', 'P'), ('PNG', 'RGBA'), ('PNG', 'RGB'), ('BMP', 'RGB')):
    image = rgb.convert(mode)
    np.testing.assert_array_equal(encode(image, kind).decode(), np.asarray(image.convert('RGB')), err_msg=mode)
  deep = encode(np.full((4, 5), 0x8123, np.uint16), 'PNG')
  np.testing.assert_array_equal(deep.decode(), np.full((4, 5, 3), 0x81))
  assert encode(rgb, 'PNG', channels=1).decode().shape == (16, 20, 1)


@pytest.mark.parametrize(('kind', 'options'), [('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {})])
def test_files_that_are_cut_off_are_refused_by_name(kind, options):
  whole = encode(photo(100, 120), kind, **options)
  assert images.Encoded(whole.data + b'padding', 3, 'x').decode().shape == (100, 120, 3)
  for part in (0.5, 0.9, 0.999):
    cut = images.Encoded(whole.data[: int(len(whole.data) * part)], 3, 'some/file')
    with pytest.raises(ValueError, match=r'^some/file is cut off'):
      cut.decode()


def test_a_thumbnail_does_not_hide_that_a_file_is_cut_off():
  thumbnail, exif = encode(photo(20, 30)).data, b'Exif\0\0'
  whole = encode(photo(100, 120), exif=exif + thumbnail)
  assert whole.decode().shape == (100, 120, 3)
  with pytest.raises(ValueError, match='cut off'):
    images.Encoded(whole.data[:-100], 3, 'x').decode()


@pytest.mark.parametrize('data', [b'', b'text', b'\xff\xd8\xff\xd9', b'\x89PNGIEND'])
def test_files_that_are_no_images_are_refused_by_name(data):
  for read in (lambda e: e.decode(), lambda e: e.shape):
    with pytest.raises(ValueError, match=rf'^some/file holds {len(data)} bytes that are no readable image') as caught:
      read(images.Encoded(data, 3, 'some/file'))
    assert '\n' not in str(caught.value)
