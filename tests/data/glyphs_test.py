import hashlib

import numpy as np
import pytest

from fracbits_jax.data import sets
from fracbits_jax.data.datasets import glyphs, outlines

# SHA-256 of the first images of each split. A change of any pixel needs a new `VERSION`, new numbers here, and new
# results wherever some are told.
PIXELS = {
  'train': '0a7dccf35bbf54225f77206d3c6a67176be909c747f0fe5cc8c407e9b526c6b3',
  'validation': 'c459c329adbba8e079bbab576fd6815a50e259aeb2d8ecaa1b5ba2a6fd81d138',
  'test': '8dfad16c1a2be86acdd4a0d301a59d7579c64c824c21b4de9eea160420184837',
}


@pytest.fixture
def small(tmp_path, monkeypatch):
  """The set as it is prepared and opened, but for its size."""
  monkeypatch.setattr(glyphs, 'COUNTS', {'train': 70, 'validation': 5, 'test': 62})
  return sets.load('glyphs', data_dir=str(tmp_path))


@pytest.mark.parametrize('split', glyphs.COUNTS)
def test_the_pixels_of_this_version_are_the_same_everywhere(split):
  sha = hashlib.sha256(glyphs.draw(split, 0).tobytes() + glyphs.draw(split, 60).tobytes())
  assert sha.hexdigest() == PIXELS[split]


def test_a_batch_depends_on_its_number_alone():
  first, other = glyphs.draw('train', 7), glyphs.draw('train', 8)
  np.testing.assert_array_equal(glyphs.draw('train', 7), first)
  assert (first != other).any(axis=(1, 2, 3)).all()
  assert (first != glyphs.draw('test', 7)).any(axis=(1, 2, 3)).all()


def test_no_font_is_in_two_splits(monkeypatch):
  used = {split: set() for split in glyphs.COUNTS}
  read = outlines.outlines
  for split, fonts in used.items():
    monkeypatch.setattr(outlines, 'outlines', lambda font, text, fonts=fonts: fonts.add(font) or read(font, text))
    glyphs.draw(split, 0)
  assert used == {split: set(fonts) for split, fonts in glyphs.FONTS.items()}
  assert sum(map(len, used.values())) == len(set.union(*used.values())) == 20


def test_a_character_looks_different_in_every_font():
  drawn = [outlines.outlines(font, glyphs.CLASSES) for fonts in glyphs.FONTS.values() for font in fonts]
  for shapes in zip(*drawn, strict=True):
    assert len({shape.tobytes() for shape in shapes}) == len(drawn)


def test_characters_are_in_the_middle_and_stand_out():
  """Between characters of one class and of another the middle differs, at the mean over many images."""
  images = np.stack([glyphs.draw('train', i) for i in range(12)]).astype(int)
  assert images.shape == (12, 62, 32, 32, 3)
  deviation = images.std(axis=(2, 3)).max(axis=-1)
  assert np.quantile(deviation, 0.01) > 8  # none is a plain area
  # A bar in the middle is most of an I and nothing of an O.
  grey = np.abs(images.mean(axis=-1) - np.median(images.mean(axis=-1), axis=(2, 3), keepdims=True))
  middle = grey[:, :, 12:20, 14:18].mean(axis=(0, 2, 3))
  assert middle[glyphs.CLASSES.index('I')] > 1.5 * middle[glyphs.CLASSES.index('O')]


def test_it_is_prepared_on_first_use_and_its_classes_take_turns(small):
  assert ''.join(small.class_names) == glyphs.CLASSES
  assert small.image_shape == (32, 32, 3)
  assert small.in_memory
  assert (small.spec.shift, small.spec.flip) == (2, False)
  assert [len(s) for s in (small.train, small.validation, small.test)] == [70, 5, 62]
  assert [int(small.train[i]['label']) for i in range(70)] == [*range(62), *range(8)]
  images = [np.stack([s[i]['image'] for i in range(len(s))]) for s in (small.train, small.validation, small.test)]
  np.testing.assert_array_equal(images[0], np.concatenate([glyphs.draw('train', i) for i in range(2)])[:70])
  np.testing.assert_array_equal(images[1], glyphs.draw('validation', 0)[:5])
  np.testing.assert_array_equal(images[2], glyphs.draw('test', 0))


def test_other_fonts_than_those_of_this_version_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(glyphs, 'OUTLINES', '0' * 64)
  with pytest.raises(ValueError, match=r'the fonts of matplotlib .* differ from those that glyphs 1.0.0') as caught:
    sets.load('glyphs', data_dir=str(tmp_path))
  assert '\n' not in str(caught.value)
