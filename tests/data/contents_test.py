"""A run goes on with the classes and the images that it began with, wherever they lie."""

import dataclasses
import os
import random
import shutil
import types

import numpy as np
import pytest
from data_test import SomeGreys
from folder_source_test import JPEG, folder
from tiny import tiny

from fracbits_jax.data import contents, sets
from fracbits_jax.data.contents import Contents
from fracbits_jax.run import finished, runner, weights
from fracbits_jax.run.checkpoint import Checkpoints
from fracbits_jax.run.workdir import claim

PATHS = (*(f'train/{c}/{i}.jpg' for c in ('cat', 'dog') for i in range(10)), 'val/cat/0.jpg')


@pytest.fixture
def root(tmp_path):
  root = folder(tmp_path / 'images', *PATHS)
  for path in (tmp_path / 'images/train/dog').iterdir():
    path.write_bytes(JPEG + b'dog')
  return root


def start(root, workdir, *, accept_changes=False, initial=None):
  """What a run does before its first phase."""
  config = tiny(**{'data.dataset': 'folder', 'data.data_dir': str(root), 'init_from': 'runs/a'})
  dataset = sets.load('folder', data_dir=str(root))
  experiment = types.SimpleNamespace(config=config, dataset=dataset, initial=initial)
  return runner._finished(workdir, experiment, accept_changes)


def train(workdir):
  """Leaves a checkpoint of a phase."""
  checkpoints = Checkpoints(workdir, 'pretrain')
  checkpoints.save(1, {'x': np.zeros(1)}, {})
  checkpoints.close()


def rename(path, other):
  path.rename(path.with_name(other))


CHANGES = {
  'a class has another name': (
    lambda root: rename(root / 'train/dog', 'Dog'),
    "class 0 was 'cat' and is 'Dog', class 1 was 'dog' and is 'cat'; put the old data back, choose another --workdir, "
    'or give --accept_changes to go on with its state',
  ),
  'two classes change their names': (
    lambda root: (rename(root / 'train/dog', 'x'), rename(root / 'train/cat', 'dog'), rename(root / 'train/x', 'cat')),
    'there are as many images as before, but others or under other names',
  ),
  'a class goes to the end': (
    lambda root: (rename(root / 'train/cat', 'eel'), shutil.rmtree(root / 'val')),
    "class 0 was 'cat' and is 'dog', class 1 was 'dog' and is 'eel', train had 18 images and has 16",
  ),
  'a class is added': (
    lambda root: shutil.copytree(root / 'train/dog', root / 'train/ant'),
    "there were 2 classes and are 3 (new: 'ant'), train had 18 images and has 27",
  ),
  'a class is gone': (
    lambda root: shutil.rmtree(root / 'train/dog'),
    "there were 2 classes and are 1 (gone: 'dog'), train had 18 images and has 9",
  ),
  'an image is added to train': (
    lambda root: shutil.copy(root / 'train/dog/1.jpg', root / 'train/dog/x.jpg'),
    'train had 18 images and has 19',
  ),
  'an image is added to val': (
    lambda root: shutil.copy(root / 'train/dog/1.jpg', root / 'val/cat/x.jpg'),
    'test had 1 images and has 2',
  ),
  'an image moves to another class': (
    lambda root: (root / 'train/dog/1.jpg').rename(root / 'train/cat/x.jpg'),
    'there are as many images as before, but others or under other names',
  ),
  'an image has another name': (
    lambda root: rename(root / 'train/dog/1.jpg', '1b.jpg'),
    'there are as many images as before, but others or under other names',
  ),
}


@pytest.mark.parametrize('what', CHANGES)
def test_a_run_does_not_go_on_when(what, root, tmp_path):
  workdir, root, (change, expected) = tmp_path / 'run', tmp_path / 'images', CHANGES[what]
  assert start(root, workdir) is None
  train(workdir)
  start(root, workdir)
  change(root)
  with pytest.raises(ValueError, match='holds a run on other data: ') as caught:
    start(root, workdir)
  assert expected in str(caught.value)
  assert '\n' not in str(caught.value)
  if 'classes and are' in expected:  # the network would not fit
    assert '--accept_changes' not in str(caught.value)
    with pytest.raises(ValueError, match='holds a run on other data'):
      start(root, workdir, accept_changes=True)
    return
  start(root, workdir, accept_changes=True)
  start(root, workdir)  # what was accepted is what is kept


@pytest.mark.parametrize('what', CHANGES)
def test_weights_of_a_run_are_not_taken_for_other_data_when(what, root, tmp_path):
  root, (change, expected) = tmp_path / 'images', CHANGES[what]
  trained_on = sets.load('folder', data_dir=str(root)).contents
  initial = weights.Weights(variables={}, clips={}, is_float=True, origin='runs/a', trained_on=trained_on)
  assert start(root, tmp_path / 'same', initial=initial) is None
  change(root)
  with pytest.raises(ValueError, match=r'^init_from=runs/a was trained on other data: ') as caught:
    start(root, tmp_path / 'other', initial=initial)
  assert expected.split(';')[0] in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'other').exists()
  assert start(root, tmp_path / 'other', accept_changes=True, initial=initial) is None
  assert start(root, tmp_path / 'unknown', initial=dataclasses.replace(initial, trained_on=None)) is None


def test_what_weights_were_trained_on_is_kept_with_them(root, tmp_path):
  trained_on = sets.load('folder', data_dir=root).contents
  variables = {'params': {'stem': {'kernel': np.zeros((1, 2))}}, 'batch_stats': {'x': np.zeros(1)}}
  for i, known in enumerate((trained_on, None)):
    workdir = tmp_path / str(i)
    weights.keep(workdir, weights.Weights(variables=variables, clips={}, is_float=True, origin='a', trained_on=known))
    source = weights.find('runs/a', workdir)
    found = weights._load_checkpoint(source, 'resnet8', {'params/stem/kernel': (1, 2), 'batch_stats/x': (1,)})
    assert (found.trained_on, found.origin) == (known, 'a')


def test_a_finished_run_is_not_read_back_with_other_classes(root, tmp_path):
  config = tiny(**{'data.dataset': 'folder', 'data.data_dir': root, 'data.batch_size': 4, 'model.width': 0.25})
  workdir, now = tmp_path / 'run', sets.load('folder', data_dir=root).contents
  claim(workdir, config, accept_changes=False, say=print)
  (workdir / 'result.json').write_text('{"phase": "finetune"}')
  contents.keep(workdir, dataclasses.replace(now, sizes=(1, 2, 3)))
  with pytest.raises(ValueError, match='has lost the checkpoints'):  # other images are no matter then
    finished.load(workdir)
  contents.keep(workdir, dataclasses.replace(now, class_names=('dog', 'cat')))
  with pytest.raises(ValueError, match=r"holds a run on other classes: class 0 was 'dog' and is 'cat'.*; put the old"):
    finished.load(workdir)


def test_a_prepared_set_is_known_by_its_version_sizes_and_classes(tmp_path):
  SomeGreys(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
  found = sets.load('some_greys', data_dir=str(tmp_path)).contents
  assert found == Contents(class_names=('0', '1'), sizes=(32, 4, 4), version='1.0.0')


def test_a_folder_may_move_and_be_listed_in_any_order(root, tmp_path, monkeypatch):
  assert start(root, tmp_path / 'run') is None
  train(tmp_path / 'run')
  moved = (tmp_path / 'images').rename(tmp_path / 'elsewhere')
  (moved / 'val').rename(moved / 'Valid')
  (moved / 'train/dog/note.txt').touch()
  assert start(moved, tmp_path / 'run') is None
  listed, rng = os.scandir, random.Random(0)

  class Shuffled(list):
    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

  def scandir(path):
    with listed(path) as entries:
      found = Shuffled(entries)
    rng.shuffle(found)
    return found

  monkeypatch.setattr(os, 'scandir', scandir)
  assert start(moved, tmp_path / 'run') is None


def test_data_may_change_until_something_was_trained_on_them(root, tmp_path):
  start(root, tmp_path / 'run')
  (tmp_path / 'images/train/dog/1.jpg').unlink()
  start(root, tmp_path / 'run')
  assert contents.read(tmp_path / 'run').sizes == (18, 1, 1)


def test_another_version_and_many_classes_are_told_in_a_sentence():
  was = Contents(class_names=tuple(f'c{i}' for i in range(1000)), sizes=(30, 3, 3), version='1.0.0')
  assert contents.differences(was, was) == ''
  newer = dataclasses.replace(was, version='2.0.0', sizes=(29, 4, 3))
  assert contents.differences(was, newer) == (
    'train had 30 images and has 29, validation had 3 images and has 4, the version was 1.0.0 and is 2.0.0'
  )
  reverse = dataclasses.replace(was, class_names=was.class_names[::-1])
  assert contents.differences(was, reverse).endswith(' and 996 more are others')
  none = dataclasses.replace(was, class_names=('x\udcff\n',))
  assert len(contents.differences(was, none)) < 200
  assert contents.differences(was, none).isprintable()


@pytest.mark.parametrize(
  'broken', ['', '[]', '5', '{"sizes": [1, 2, 3]}', '[' * 10**5, '{"class_names": [1], "sizes": [1, 2, 3]}', '\xff']
)
def test_a_broken_file_is_told(broken, tmp_path):
  (tmp_path / 'data.json').write_text(broken, encoding='latin1')
  with pytest.raises(ValueError, match=r'data.json is broken: choose another --workdir, or remove the file'):
    contents.read(tmp_path)


def test_names_that_are_no_text_are_kept(tmp_path):
  names = (os.fsdecode(b'caf\xe9'), 'é\n', '')
  kept = Contents(class_names=names, sizes=(1, 2, 3), files='0')
  contents.keep(tmp_path, kept)
  assert contents.read(tmp_path) == kept
