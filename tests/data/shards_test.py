"""Prepared data that are damaged: found before training or when they are read, and made anew by `prepare`."""

import json
import os
import random
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_test import SomeAnimals, SomeGreys

from fracbits_jax.data import prepare, sets, shards
from fracbits_jax.data.batches import train_batches

COMMAND = 'python -m fracbits_jax.prepare --dataset=some_greys --data_dir='


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  SomeGreys(data_dir=str(root), file_format='array_record').download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=2)
  )
  return root


@pytest.fixture
def root(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'tfds')


def folder(root):
  return root / 'some_greys' / '1.0.0'


def pictures(root):
  """All pixels of the set, in the order of its splits."""
  dataset = sets.load('some_greys', data_dir=str(root))
  return np.stack(
    [split[i]['image'] for split in (dataset.train, dataset.validation, dataset.test) for i in range(len(split))]
  )


def damaged(root):
  """The sentence with which a damaged set is refused."""
  with pytest.raises(ValueError, match='some_greys') as caught:
    pictures(root)
  message = str(caught.value)
  assert f'run {COMMAND}{root}, which makes it anew' in message
  assert message.isprintable()
  return message


def with_info(change):
  def apply(path):
    found = json.loads((path.parent / 'dataset_info.json').read_text())
    change(found)
    (path.parent / 'dataset_info.json').write_text(json.dumps(found))

  return apply


def replaced_by_other(path):
  other = next(p for p in path.parent.glob('*array_record*') if p != path)
  os.unlink(path)
  os.link(other, path)
  with_info(lambda info: info['splits'][0].update(shardLengths=['20', '19']))(path)


DAMAGES = {
  'a shard is missing': (os.unlink, 'is missing'),
  'a shard is empty': (lambda path: path.write_bytes(b''), 'is cut or changed'),
  'a shard is cut': (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), 'is cut or changed'),
  'a shard is text': (lambda path: path.write_bytes(b'text\n' * 40000), 'is cut or changed'),
  'a shard is a folder': (lambda path: (path.unlink(), path.mkdir()), 'is cut or changed'),
  'a shard has other records': (replaced_by_other, 'holds 20 records instead of 19'),
  'there is no info': (lambda path: (path.parent / 'dataset_info.json').unlink(), 'it has no dataset_info.json'),
  'the info is empty': (lambda path: (path.parent / 'dataset_info.json').write_text(''), 'cannot be understood'),
  'the info is cut': (
    lambda path: (path.parent / 'dataset_info.json').write_text('{"name": "so'),
    'cannot be understood',
  ),
  'the info is no object': (lambda path: (path.parent / 'dataset_info.json').write_text('[5]'), 'cannot be understood'),
  'the info is of nothing': (with_info(lambda info: info.update(splits=[])), 'lacks the splits'),
  'the info has more shards': (with_info(lambda i: i['splits'][0].update(shardLengths=['9'] * 3)), 'is missing'),
}


@pytest.mark.parametrize('what', DAMAGES)
def test_training_does_not_start_and_prepare_mends_it_when(what, root, whole):
  damage, expected = DAMAGES[what]
  damage(random.Random(what).choice(sorted(folder(root).glob('*array_record*'))))
  assert expected in damaged(root)
  said = prepare.prepare('some_greys', str(root))
  assert 'train 40 images; 2 classes; it was damaged, ' in said
  assert said.endswith(', and has been made anew')
  np.testing.assert_array_equal(pictures(root), pictures(whole))
  assert sorted(os.listdir(root / 'some_greys')) == ['1.0.0']
  assert prepare.prepare('some_greys', str(root)).endswith(' 40 images; 2 classes')


def test_a_changed_byte_is_found_or_changes_nothing(root, whole, tmp_path):
  expected, rng, found = pictures(whole), random.Random(0), 0
  files = sorted(folder(root).glob('*array_record*'))
  for _ in range(40):
    path = rng.choice(files)
    content = path.read_bytes()
    used = len(content.rstrip(b'\0'))
    changed = bytearray(content)
    changed[rng.choice((rng.randrange(3000), rng.randrange(used)))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    if shards.damage(tfds.builder('some_greys', data_dir=str(root)), thorough=True):
      damaged(root)
      found += 1
    else:
      np.testing.assert_array_equal(pictures(root), expected)
    path.write_bytes(content)
  assert found >= 10


def test_a_record_of_a_set_that_is_read_as_it_is_drawn_is_named(tmp_path):
  SomeAnimals(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
  path = next((tmp_path / 'some_animals' / '1.0.0').glob('*train*'))
  content = bytearray(path.read_bytes())
  for place in range(5000, 20000, 1000):
    content[place] ^= 1
  path.write_bytes(content)
  dataset = sets.load('some_animals', data_dir=str(tmp_path), image_size=16)
  with pytest.raises(
    ValueError, match=r"^some_animals, split 'train\S*', example \d+ cannot be read \(.*\): run python"
  ):
    for _ in zip(range(4), train_batches(dataset, batch_size=9, seed=0), strict=False):
      pass


def test_what_cannot_be_made_anew_stays_as_it_was(root, monkeypatch):
  sorted(folder(root).glob('*array_record*'))[0].unlink()
  before = {path.name: path.read_bytes() for path in folder(root).iterdir()}

  def fails(*_):
    raise FileNotFoundError(2, 'No such file or directory')

  for name in ('_split_generators', '_generate_examples'):
    with monkeypatch.context() as patch:
      patch.setattr(SomeGreys, name, fails)
      with pytest.raises(ValueError, match=r'stays damaged, .* is missing') as caught:
        prepare.prepare('some_greys', str(root))
    assert str(caught.value).isprintable()
    assert {path.name: path.read_bytes() for path in folder(root).iterdir()} == before


def test_what_is_whole_is_not_written_again(root, monkeypatch):
  monkeypatch.setattr(SomeGreys, '_split_generators', None)
  shown = []
  prepare.prepare('some_greys', str(root), show=lambda done, total: shown.append((done, total)))
  assert shown[-1] == (40, 40)


def test_what_is_written_short_is_no_success(tmp_path, monkeypatch):
  damage, asked = shards.damage, []
  monkeypatch.setattr(shards, 'damage', lambda *args, **how: asked.append(how) or ('' if how else 'x is missing'))
  with pytest.raises(ValueError, match=r'some_greys could not be written whole to .*, x is missing: make room'):
    prepare.prepare('some_greys', str(tmp_path))
  assert not folder(tmp_path).exists()
  monkeypatch.setattr(shards, 'damage', damage)
  assert prepare.prepare('some_greys', str(tmp_path)).endswith('train 40 images; 2 classes')


def test_what_may_not_be_read_is_told(root, monkeypatch):
  def denied(*_, **__):
    raise PermissionError(13, 'Permission denied', '/data/x')

  with monkeypatch.context() as patch:
    patch.setattr(tfds, 'builder', denied)
    with pytest.raises(ValueError, match=r'digits cannot be read, /data/x: Permission denied; mend that or give'):
      sets.load('digits', data_dir=str(root))
  (folder(root) / 'dataset_info.json').write_text('')
  monkeypatch.setattr('builtins.open', denied)
  with pytest.raises(
    ValueError, match=r'some_greys in .* cannot be read: Permission denied; mend that or give another'
  ):
    prepare.prepare('some_greys', str(root))


def test_a_full_disk_is_one_sentence(tmp_path):
  mount = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=1500k', 'none', tmp_path], capture_output=True, check=False
  )
  if mount.returncode:
    pytest.skip('a small disk needs the right to mount one')
  try:
    with pytest.raises(ValueError, match=r'digits cannot be written to .*: No space left on device$'):
      sets.load('digits', data_dir=str(tmp_path))
    with pytest.raises(
      ValueError, match=r'there is no space left for digits in .*: make room or give another --data_dir'
    ):
      prepare.prepare('digits', str(tmp_path))
  finally:
    subprocess.run(['umount', tmp_path], check=True)
