import numpy as np
import pytest
from images_test import encode, photo

from fracbits_jax.data import folder_source, sets

JPEG = encode(photo(20, 30)).data


def folder(root, *paths):
  """A folder with an image at each path; a path that ends in / is an empty folder."""
  for path in paths:
    target = root / path
    if path.endswith('/'):
      target.mkdir(parents=True)
    else:
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(JPEG)
  return str(root)


def labels(source):
  return [int(source[i]['label']) for i in range(len(source))]


def test_a_folder_is_read_by_the_sorted_names_of_its_classes(tmp_path):
  root = folder(
    tmp_path,
    *('train/b/1.jpg', 'train/a/2.JPEG', 'train/a/1.png', 'train/ü/1.WebP', 'train/a/.hidden.jpg', 'train/a/note.txt'),
    *('validation/b/9.bmp', 'test/a/9.jpg', 'test/b/9.jpg'),
  )
  names, (train, validation, test) = folder_source.open_folder(root)
  assert names == ('a', 'b', 'ü')
  assert [train[i]['image'].name for i in range(4)] == [
    f'{root}/train/{n}' for n in ('a/1.png', 'a/2.JPEG', 'b/1.jpg', 'ü/1.WebP')
  ]
  assert [labels(s) for s in (train, validation, test)] == [[0, 0, 1, 2], [1], [0, 1]]


@pytest.mark.parametrize('other', ['val', 'validation', 'test'])
def test_a_single_other_split_is_the_test_split(other, tmp_path):
  root = folder(tmp_path, *(f'train/{c}/{i}.jpg' for c in 'ab' for i in range(20)), f'{other}/b/0.jpg')
  _, (train, validation, test) = folder_source.open_folder(root)
  assert [len(s) for s in (train, validation, test)] == [36, 4, 1]
  assert sorted(labels(validation)) == [0, 0, 1, 1]


def test_what_is_held_out_is_spread_evenly_and_fixed(tmp_path):
  root = folder(tmp_path, *(f'train/{c}/{i}.jpg' for c in 'abcde' for i in range(20)))
  splits = folder_source.open_folder(root)[1]
  assert [np.bincount(labels(s)).tolist() for s in splits] == [[16] * 5, [2] * 5, [2] * 5]
  names = [{s[i]['image'].name for i in range(len(s))} for s in splits]
  assert len(set.union(*names)) == 100
  again = folder_source.open_folder(root)[1]
  assert names == [{s[i]['image'].name for i in range(len(s))} for s in again]


@pytest.mark.parametrize(
  ('paths', 'message'),
  [
    ((), r'{root} has no folder train'),
    (('train/x.jpg',), r'{root}/train has no class folders'),
    (('train/a/',), r'{root}/train holds no image'),
    (('train/a/1.jpg', 'train/b/'), r'{root}/train/b holds no image'),
    (('train/a/1.jpg', 'val/a/'), r'{root}/val holds no image'),
    (('train/a/1.jpg', 'test/x.jpg'), r'{root}/test has no class folders'),
    (('train/a/1.jpg', 'test/b/1.jpg'), r'{root}/test/b is a class that {root}/train lacks'),
    (('train/a/1.jpg', 'val/a/1.jpg', 'validation/a/1.jpg'), r'{root} has both val and validation'),
  ],
)
def test_folders_that_do_not_fit_are_explained(paths, message, tmp_path):
  root = folder(tmp_path, *paths)
  with pytest.raises(ValueError, match='^' + message.format(root=root)) as caught:
    sets.load('folder', data_dir=root)
  assert '\n' not in str(caught.value)


def test_a_folder_that_is_not_there_is_explained(tmp_path):
  with pytest.raises(ValueError, match=r'the folder .*/none does not exist'):
    sets.load('folder', data_dir=str(tmp_path / 'none'))
  with pytest.raises(ValueError, match=r"dataset 'folder' needs its place: .* data.data_dir"):
    sets.load('folder')


def test_an_image_that_went_away_is_named(tmp_path):
  _, (train, *_) = folder_source.open_folder(folder(tmp_path, *(f'train/a/{i}.jpg' for i in range(4))))
  (tmp_path / 'train/a/0.jpg').unlink()
  with pytest.raises(ValueError, match=r'train/a/0.jpg cannot be read: No such file'):
    train[0]
