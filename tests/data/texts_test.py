"""Texts: their parts, their vocabulary, their windows, and what is said of files that will not do."""

import itertools

import numpy as np
import pytest

from fracbits_jax.data import batches, sets

TEXT = 'abcdefghij' * 40  # 400 characters


def load(path, **how):
  return sets.load('text', data_dir=str(path), **{'context': 8, **how})


@pytest.fixture
def path(tmp_path):
  (tmp_path / 'text.txt').write_text(TEXT)
  return tmp_path / 'text.txt'


def test_the_parts_follow_one_another(path):
  found = load(path)
  codes = [split.tokens for split in (found.train, found.validation, found.test)]
  assert [len(x) for x in codes] == [360, 20, 20]
  assert ''.join(found.class_names[i] for i in np.concatenate(codes)) == TEXT
  assert (found.tokens, found.context, found.num_classes) == ('characters', 8, 11)
  assert load(path.parent).contents == found.contents  # a folder with one text
  assert load(path, tokens='bytes').num_classes == 256


def test_every_token_but_the_first_of_a_part_is_told_once(path):
  found = load(path)
  for count in (1, 2):
    parts = [list(batches.eval_batches(found, 'test', batch_size=2, shard=(i, count))) for i in range(count)]
    told = [
      (batch['tokens'][i, 1:][batch['mask'][i] > 0], batch['tokens'].shape)
      for turn in zip(*parts, strict=True)
      for i in range(2 // count)
      for batch in turn
    ]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in told]), found.test.tokens[1:])
    assert {shape for _, shape in told} == {(2 // count, 9)}


def test_training_windows_follow_the_seed_and_the_step_alone(path):
  found = load(path)
  whole = list(itertools.islice(batches.train_batches(found, batch_size=4, seed=3), 30))
  reader = batches.train_batches(found, batch_size=4, seed=3)
  next(reader)
  again = batches.train_batches(found, batch_size=4, seed=3)
  again.set_state({'next_index': 20})  # within the second epoch
  np.testing.assert_array_equal(next(again)['tokens'], whole[20]['tokens'])
  shards = [batches.train_batches(found, batch_size=4, seed=3, shard=(i, 2)) for i in range(2)]
  for batch in whole[:3]:
    np.testing.assert_array_equal(np.stack([next(s)['tokens'] for s in shards], 1).reshape(4, 9), batch['tokens'])
  text = found.train.tokens
  windows = {text[i : i + 9].tobytes() for i in range(len(text) - 8)}
  rows = np.concatenate([batch['tokens'] for batch in whole])
  assert rows.dtype == np.int32
  assert all(row.astype(text.dtype).tobytes() in windows for row in rows)
  assert len({row[0] for row in rows}) == 10  # they begin anywhere
  other = next(batches.train_batches(found, batch_size=4, seed=4))
  assert (other['tokens'] != whole[0]['tokens']).any()


def test_a_character_that_training_has_not_is_the_unknown_token(tmp_path):
  (tmp_path / 'a.txt').write_text('ab\n€' * 95 + 'ü' * 10 + 'ab' * 5)
  found = load(tmp_path)
  assert found.class_names == ('\n', 'a', 'b', '€', '\ufffd')
  assert [int((s.tokens == 4).sum()) for s in (found.train, found.validation, found.test)] == [0, 0, 10]
  assert found.notes == ('10 of 20 characters to test are not in the part that trains: they are one token, \ufffd',)
  (tmp_path / 'a.txt').write_text('a\ufffd' * 200)
  assert load(tmp_path).class_names == ('a', '\ufffd')


@pytest.mark.parametrize(
  ('content', 'how', 'said'),
  [
    (b'ab\xffcd' * 100, {}, r'is no UTF-8, at byte 2: give it in UTF-8, or set data\.tokens=bytes, which takes any'),
    (b'abcde' * 4, {'context': 18}, r'has 20 characters, of which 18 train, too few for data\.context=18: give a long'),
    (b'', {'tokens': 'bytes'}, r'has 0 bytes, of which 0 train, too few'),
    (b'ab', {'tokens': 'words'}, r"data\.tokens='words' is unknown: give one of characters, bytes"),
    (b'ab', {'image_size': 32}, r'data\.image_size=32 is not for text, which are taken as they are: leave it at None'),
  ],
)
def test_what_a_text_lacks_is_said_in_one_sentence(content, how, said, tmp_path):
  (tmp_path / 'a.txt').write_bytes(content)
  with pytest.raises(ValueError, match=said) as caught:
    load(tmp_path / 'a.txt', **how)
  assert '\n' not in str(caught.value)


def test_bytes_take_any_file_and_missing_files_are_told(tmp_path):
  (tmp_path / 'a.bin').write_bytes(bytes(range(256)) * 4)
  found = load(tmp_path / 'a.bin', tokens='bytes')
  np.testing.assert_array_equal(found.train.tokens[:300], np.arange(300) % 256)
  with pytest.raises(ValueError, match=r'none\.txt cannot be read \(No such file or directory\): give a text in UTF-8'):
    load(tmp_path / 'none.txt')
  with pytest.raises(ValueError, match=r'holds 0 files whose names end in \.txt: give a folder with one, or a file'):
    load(tmp_path)
  with pytest.raises(ValueError, match=r'data\.dataset=text needs data\.data_dir: give a text in UTF-8'):
    sets.load('text')
