import logging
import string

import matplotlib
import numpy as np
import pytest
from matplotlib.path import Path

from fracbits_jax.data.datasets import outlines

FULL = outlines.SAMPLES**2


def polygon(*corners):
  """The edges of a closed polygon with corners in pixels."""
  corners = (np.array(corners) * outlines.PIXEL).astype(np.int64)
  return np.stack([corners, np.roll(corners, -1, axis=0)], axis=1)


def square(low, high):
  return polygon((low, low), (high, low), (high, high), (low, high))


def test_a_rectangle_covers_its_share_of_each_pixel():
  cover = outlines.coverage([polygon((1, 0.5), (3.25, 0.5), (3.25, 2), (1, 2))], 4)[0]
  assert cover.tolist() == [[0, 8, 8, 2], [0, 16, 16, 4], [0] * 4, [0] * 4]


def test_an_edge_on_the_samples_belongs_to_one_of_two_neighbours():
  eighth = 1 / (2 * outlines.SAMPLES)  # where the first sample of a pixel lies
  left = polygon((0, 0), (1 + eighth, 0), (1 + eighth, 3), (0, 3))
  right = polygon((1 + eighth, 0), (3, 0), (3, 3), (1 + eighth, 3))
  cover = outlines.coverage([left, right, left[..., ::-1], right[..., ::-1]], 3)
  assert (cover[0] + cover[1] == FULL).all()
  assert (cover[2] + cover[3] == FULL).all()


def test_a_contour_the_other_way_round_is_a_hole_and_one_the_same_way_is_not():
  outer, inner = square(0, 4), square(1, 3)
  holed, filled = outlines.coverage([np.concatenate([outer, inner[:, ::-1]]), np.concatenate([outer, inner])], 4)
  assert holed[1:3, 1:3].max() == 0
  assert holed.sum() == 12 * FULL
  assert (filled == FULL).all()


def test_what_lies_outside_of_the_image_is_cut_off():
  shapes = [square(-2, 1), square(3, 9), square(-5, 9), square(-4, -1), polygon((-9, 1), (9, 1), (9, 2), (-9, 2))]
  cover = outlines.coverage(shapes, 4)
  assert [c.sum() // FULL for c in cover] == [1, 1, 16, 0, 4]
  assert cover[0, 0, 0] == cover[1, 3, 3] == FULL


@pytest.mark.parametrize('font', ['DejaVuSerif-BoldItalic', 'STIXGeneral', 'cmtt10'])
def test_samples_are_covered_as_matplotlib_has_them_in_a_path(font):
  quarter_turn = np.array([[[0, -24 * 1024], [24 * 1024, 0]]]) * 4096 // outlines.CAP_HEIGHT
  (shape,) = outlines.transform(outlines.outlines(font, 'g'), quarter_turn, np.array([[16 * 1024, 15 * 1024]]))
  samples = (np.arange(32 * outlines.SAMPLES) + 0.5) * outlines.PIXEL / outlines.SAMPLES
  grid = np.stack(np.meshgrid(samples, samples), axis=-1).reshape(-1, 2)
  ends = 1 + np.flatnonzero((shape[:-1, 1] != shape[1:, 0]).any(axis=1))  # matplotlib fills holes: one path a contour
  contours = [Path(contour[:, 0]) for contour in np.split(shape, ends)]
  inside = sum(contour.contains_points(grid) for contour in contours) % 2
  inside = inside.reshape(32, outlines.SAMPLES, 32, outlines.SAMPLES)
  found = outlines.coverage([shape], 32)[0]
  assert len(contours) > 1
  assert found.sum() > 50 * FULL
  assert np.abs(found - inside.sum(axis=(1, 3))).sum() <= 2  # samples that lie on an edge


def test_characters_stand_on_a_line_at_one_height():
  for font in ('DejaVuSans', 'STIXGeneral', 'cmr10'):
    capital, small, deep = outlines.outlines(font, 'Hxp')
    top, bottom = -outlines.CAP_HEIGHT // 2, outlines.CAP_HEIGHT // 2
    assert (capital[..., 1].min(), capital[..., 1].max()) == (top, bottom)
    assert small[..., 1].max() == bottom
    assert small[..., 1].min() > top + 1000
    assert deep[..., 1].max() > bottom + 500
    for shape in (capital, small, deep):
      assert abs(shape[..., 0].min() + shape[..., 0].max()) <= 1


def test_contours_are_closed():
  for shape in outlines.outlines('DejaVuSerif-BoldItalic', string.ascii_letters):
    starts, ends = (sorted(map(tuple, shape[:, i])) for i in (0, 1))
    assert starts == ends


def test_a_missing_file_and_a_missing_character_are_explained(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r'the font .*DejaVuSans.ttf lacks .*: install matplotlib anew'):
    outlines.outlines('DejaVuSans', 'a\U0010fffd')
  monkeypatch.setattr(matplotlib, 'get_data_path', lambda: str(tmp_path))
  with pytest.raises(ValueError, match=r'matplotlib .* lacks the font .*DejaVuSans.ttf: install matplotlib') as caught:
    outlines.outlines('DejaVuSans', 'ab')
  assert '\n' not in str(caught.value)


def test_reading_a_font_says_nothing(caplog):
  with caplog.at_level(logging.DEBUG):
    outlines.outlines.__wrapped__('cmr10', 'a')
  assert caplog.text == ''
