"""Folders as people have them: what is read, and what is said of the rest."""

import os
import random

import pytest
from folder_source_test import JPEG, folder

from fracbits_jax.data import encoded, folder_source, folders, sets
from fracbits_jax.data.batches import eval_batches

WHOLE = ('train/a/1.jpg', 'train/b/1.jpg')


def names(source):
  return [source[i]['image'].name for i in range(len(source))]


def note(root):
  """The one line on what was left out."""
  (said,) = folder_source.read_folder(root).notes
  assert '\n' not in said
  assert said.startswith(f'left out of {root}: ')
  return said.removeprefix(f'left out of {root}: ')


def test_files_of_every_suffix_that_is_read_count_in_any_case_and_depth(tmp_path):
  rng = random.Random(0)
  wanted = []
  for i, suffix in enumerate(encoded.SUFFIXES):
    for spelled in (suffix, suffix.upper(), suffix.title()):
      wanted.append(f'train/a/{"x.png/" * rng.randrange(3)}{"sub/" * rng.randrange(3)}{i}{spelled}')
  root = folder(tmp_path, *wanted, 'train/b/1.jpg', 'test/a/1.jpg', 'val/a/1.jpg')
  opened = folder_source.read_folder(root)
  assert set(names(opened.splits[0])) == {f'{root}/{path}' for path in (*wanted, 'train/b/1.jpg')}
  assert names(opened.splits[0]) == sorted(names(opened.splits[0]))
  assert opened.notes == ()


def test_all_that_is_left_out_is_counted_in_one_line(tmp_path):
  root = folder(tmp_path, *WHOLE)
  rng = random.Random(0)

  def put(path, make):
    target = tmp_path / 'train' / rng.choice('ab') / rng.choice(('', 'sub')) / path
    target.parent.mkdir(exist_ok=True)
    make(target)

  for i in range(3):
    put(f'{i}.heic', lambda path: path.touch())
    put(f'{i}link.jpg', lambda path: path.symlink_to('nowhere.jpg'))
  put('self.jpg', lambda path: path.symlink_to('self.jpg'))
  put('._1.jpg', lambda path: path.touch())
  put('dir.jpg', lambda path: path.mkdir())
  put('.DS_Store', lambda path: path.touch())
  put('__MACOSX', lambda path: folder(path, '1.jpg'))
  put('pipe.jpg', os.mkfifo)
  said = note(root)
  assert '3 .heic files (such as train/' in said
  assert '4 broken links (such as train/' in said
  for kind in ('hidden file', 'empty folder with the name of an image', 'special file'):
    assert f'1 {kind} (train/' in said
  assert 'DS_Store' not in said
  assert 'MACOSX' not in said
  read = [name for split in folder_source.read_folder(root).splits for name in names(split)]
  assert set(read) == {f'{root}/{path}' for path in WHOLE}


def test_a_line_stays_short_however_much_is_left_out(tmp_path):
  root = folder(tmp_path, *WHOLE, *(f'train/a/{i}.x{i % 30}' for i in range(90)), *(f'extra{i}/x' for i in range(40)))
  said = note(root)
  assert said.startswith('40 folders beside the splits (such as extra0), 3 .x0 files (such as train/a/')
  assert said.endswith(', 75 of other kinds')
  assert len(said) < 400


def test_images_outside_of_class_folders_and_folders_beside_the_splits_are_told(tmp_path):
  root = folder(tmp_path, *WHOLE, 'x.jpg', 'train/y.png', 'val/z.png', 'val/a/1.jpg', 'labels/1.jpg', 'notes.txt')
  assert note(root) == '3 images outside of class folders (such as train/y.png), 1 folder beside the splits (labels)'


@pytest.mark.parametrize(('split', 'name'), [(s, name) for s, known in folders.SPLITS.items() for name in known])
def test_the_usual_names_of_splits_are_known_in_any_case(split, name, tmp_path):
  for i, spelled in enumerate((name, name.upper(), name.title())):
    others = [s for s in folders.SPLITS if s != split]
    root = folder(tmp_path / str(i), f'{spelled}/a/1.jpg', *(f'{other}/a/1.jpg' for other in others))
    opened = folder_source.read_folder(root)
    assert [len(part) for part in opened.splits] == [1, 1, 1]
    at = list(folders.SPLITS).index(split)
    assert names(opened.splits[at]) == [f'{root}/{spelled}/a/1.jpg']
    assert opened.notes == ()


@pytest.mark.parametrize(
  ('first', 'second'), [('val', 'valid'), ('Train', 'training'), ('test', 'TEST'), ('dev', 'validation')]
)
def test_two_folders_for_one_split_are_refused(first, second, tmp_path):
  root = folder(tmp_path, *WHOLE, f'{first}/a/1.jpg', f'{second}/a/1.jpg')
  with pytest.raises(ValueError, match=r' has both .* and .*, which are all names of the \w+ split: keep one of them$'):
    folder_source.read_folder(root)


def test_links_are_followed_unless_they_lead_to_where_they_lie(tmp_path):
  root = folder(tmp_path / 'root', *WHOLE, 'train/a/sub/2.jpg')
  folder(tmp_path / 'far', '3.jpg', 'deep/4.jpg')
  (tmp_path / 'root/train/c').symlink_to(tmp_path / 'far')
  (tmp_path / 'root/train/a/file.jpg').symlink_to(tmp_path / 'far/3.jpg')
  for place, target in (('a/up', '..'), ('a/sub/self', '.'), ('b/root', '../..'), ('a/sub/class', '..')):
    (tmp_path / 'root/train' / place).symlink_to(target)
  opened = folder_source.read_folder(root)
  assert opened.classes == ('a', 'b', 'c')
  found = {name for split in opened.splits for name in names(split)}
  expected = ('a/1.jpg', 'a/file.jpg', 'a/sub/2.jpg', 'b/1.jpg', 'c/3.jpg', 'c/deep/4.jpg')
  assert found == {f'{root}/train/{path}' for path in expected}
  assert note(root).startswith('4 links to a folder around it (such as train/a/')


def test_a_link_to_a_class_that_is_gone_is_told(tmp_path):
  root = folder(tmp_path, *WHOLE)
  (tmp_path / 'train/c').symlink_to(tmp_path / 'nowhere')
  (tmp_path / 'val').symlink_to(tmp_path / 'nowhere')
  assert note(root) == '2 broken links (such as train/c)'


def test_folders_of_systems_are_no_classes(tmp_path):
  others = ('__MACOSX', '.ipynb_checkpoints', '@eaDir', '$RECYCLE.BIN', '.Trash')
  root = folder(tmp_path, *WHOLE, *(f'train/{name}/1.jpg' for name in others), '__MACOSX/train/a/._1.jpg')
  opened = folder_source.read_folder(root)
  assert opened.classes == ('a', 'b')
  assert opened.notes == ()


@pytest.mark.parametrize(('trained', 'other'), [('Cat', 'cat'), ('caf\u00e9', 'cafe\u0301'), ('dog', 'dog ')])
def test_a_class_that_is_spelled_otherwise_is_told(trained, other, tmp_path):
  root = folder(tmp_path / 'a', f'train/{trained}/1.jpg', f'val/{other}/1.jpg')
  with pytest.raises(
    ValueError, match=r'is a class that .*train lacks: there it is .*, so rename one of them'
  ) as caught:
    folder_source.read_folder(root)
  assert ascii(trained) in str(caught.value)
  root = folder(tmp_path / 'b', f'train/{trained}/1.jpg', f'train/{other}/1.jpg')
  (said,) = folder_source.read_folder(root).notes
  assert 'differ in their spelling alone, and are taken as two' in said
  letters = folder(tmp_path / 'c', 'train/a/1.jpg', 'train/A/1.jpg')
  assert folder_source.read_folder(letters).notes == ()


def test_an_empty_class_says_what_it_holds_instead(tmp_path):
  root = folder(tmp_path, *WHOLE, 'train/c/1.heic', 'train/c/2.HEIC')
  with pytest.raises(
    ValueError, match=r'train/c holds no image, but 2 .heic files \(such as 1.heic\): add JPEG or PNG'
  ):
    folder_source.read_folder(root)


def test_a_missing_train_says_what_is_there(tmp_path):
  with pytest.raises(
    ValueError, match=r'has no folder train: put the images into .*/train/<class>; it holds cat, dog$'
  ):
    folder_source.read_folder(folder(tmp_path, 'cat/1.jpg', 'dog/1.jpg'))


def test_names_that_are_no_text_are_read_and_shown(tmp_path):
  root = os.fsencode(folder(tmp_path, *WHOLE))
  for path in (b'train/caf\xe9/\xff\xfe.jpg', b'train/a/new\nline.jpg', b'train/a/\xff.heic'):
    os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
    with open(os.path.join(root, path), 'wb') as file:
      file.write(JPEG)
  dataset = sets.load('folder', data_dir=os.fsdecode(root), image_size=8)
  shown = [n for s in (dataset.train, dataset.validation, dataset.test) for n in names(s)]
  assert len(shown) == 4
  assert all(name.isprintable() for name in (*shown, *dataset.notes))
  for split in ('train', 'validation', 'test'):
    assert len(list(eval_batches(dataset, split, batch_size=2))) == 1
  missing = os.path.join(root, b'train/caf\xe9/\xff\xfe.jpg')
  os.unlink(missing)
  with pytest.raises(ValueError, match=r'train/caf\\udce9/\\udcff\\udcfe.jpg cannot be read') as caught:
    [split[i] for split in (dataset.train, dataset.validation, dataset.test) for i in range(len(split))]
  assert str(caught.value).isprintable()


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
  root, listed = folder(tmp_path, *WHOLE, 'train/a/sub/1.jpg'), os.scandir

  def scandir(path):
    if path.endswith('sub'):
      raise PermissionError(13, 'Permission denied')
    return listed(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  with pytest.raises(ValueError, match=r'train/a/sub cannot be listed: Permission denied; mend that or remove it'):
    folder_source.read_folder(root)
