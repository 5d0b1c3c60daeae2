"""The command that reads every image before a run does."""

import os
import random
import shutil
import sys

import cv2
import pytest
from folder_source_test import folder
from images_test import encode, photo

from fracbits_jax.commands import check_images as check_command
from fracbits_jax.data import check_images, sets
from fracbits_jax.data.images import centre_crop
from fracbits_jax.system import bar


@pytest.fixture
def root(tmp_path):
  """150 images of three sizes in two classes and two splits, of which every tenth is cut or no image at all."""
  rng, bad = random.Random(0), []
  for i in range(150):
    height = (20, 30, 40)[i % 3]
    path = tmp_path / ('train' if i < 100 else 'val') / 'ab'[i % 2] / f'{i:03d}{(".jpg", ".PNG")[i // 2 % 2]}'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode(photo(height, 50, seed=i), ('JPEG', 'PNG')[i // 2 % 2]).data
    if i % 10 == 3:
      content = rng.choice((b'', b'text', content[: int(rng.uniform(0.1, 0.95) * len(content))]))
      bad.append(path)
    path.write_bytes(content)
  return tmp_path, bad


def command(capsys, *arguments):
  with pytest.raises(SystemExit) as ended:
    check_command.main([str(argument) for argument in arguments])
  return ended.value.code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize('workers', [1, 3])
def test_every_image_that_training_cannot_read_is_listed_and_no_other(workers, root, capsys):
  root, bad = root
  (root / 'train/a/1.heic').touch()
  (root / 'train/a/gone.jpg').symlink_to('nowhere')
  status, lines = command(capsys, root, f'--workers={workers}')
  assert status == 1
  named = [line for line in lines if line.startswith(str(root))]
  assert sorted(line.split()[0] for line in named) == sorted(map(str, bad))
  assert all('cut off' in line or 'no readable image' in line for line in named)
  assert lines[-1] == '150 images of 2 classes, 15 cannot be read: see above'
  assert f'left out of {root}: 1 .heic file (train/a/1.heic), 1 broken link (train/a/gone.jpg)' in lines
  assert 'suffixes: .jpg 76, .png 74' in lines
  assert sum(line.startswith('sizes: 50 x ') for line in lines) == 1
  # What it lists is what training stumbles over.
  dataset = sets.load('folder', data_dir=str(root), image_size=16)
  stumbled = set()
  for split in (dataset.train, dataset.validation, dataset.test):
    for i in range(len(split)):
      try:
        centre_crop(split[i]['image'], 16)
      except ValueError as error:
        stumbled.add(str(error))
  assert stumbled == set(named)


def test_a_sound_folder_ends_with_0_and_its_counts(root, capsys):
  root, bad = root
  for path in bad:
    path.unlink()
  status, lines = command(capsys, root)
  assert status == 0
  assert 'splits: train 81, validation 9, test 45' in lines
  assert lines[-4].split() == ['class', 'train', 'validation', 'test']
  rows = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in lines[-3:-1]}
  assert sum(rows['a']) + sum(rows['b']) == 135
  assert [sum(column) for column in zip(*rows.values(), strict=True)] == [81, 9, 45]
  assert lines[-1] == '135 images of 2 classes, 0 cannot be read'


def test_many_classes_are_cut_to_the_smallest(tmp_path):
  root = folder(tmp_path, *(f'train/{c:03d}/{i}.jpg' for c in range(60) for i in range(1 + (c != 17))))
  lines = list(check_images.summary(check_images.check(root)))
  at = lines.index('the 40 smallest of 60 classes:')
  assert lines[at + 2].split()[0] == '017'
  assert len(lines) == at + 2 + 40 + 1


def test_what_is_no_folder_of_classes_is_one_sentence(tmp_path, capsys):
  assert command(capsys, tmp_path / 'none')[0].startswith('error: the folder ')
  assert command(capsys, folder(tmp_path, 'train/a/'))[0].startswith('error: ')
  assert command(capsys, tmp_path, '--workers=0')[0].startswith('error: --workers=0 is out of range')


def test_a_decoder_that_gives_up_is_a_bad_image(root, monkeypatch):
  def raises(*_):
    raise cv2.error('too large')

  monkeypatch.setattr(cv2, 'imdecode', raises)
  assert len(check_images.check(str(root[0])).bad) == 150


def test_the_bar_fits_the_terminal(root, monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
  monkeypatch.setattr(shutil, 'get_terminal_size', lambda *given, **named: os.terminal_size((40, 24)))
  check_images.check(str(root[0]), show=bar.Bar('images'))
  shown = capsys.readouterr().out
  assert shown.endswith('\n')
  drawn = [line for line in shown.rstrip('\n').split('\r\x1b[K') if line]
  assert all(len(line) < 40 for line in drawn)
  assert drawn[-1].startswith('[########################] 150/150')


def test_elsewhere_there_are_few_lines(root, capsys):
  check_images.check(str(root[0]), show=bar.Bar('images'))
  assert capsys.readouterr().out == ''
