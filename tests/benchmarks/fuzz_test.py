import dataclasses
import gc
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from benchmarks.robustness import fuzz


@pytest.fixture(autouse=True, scope='module')
def _others_garbage_is_not_counted():
  """A reader has a second; looking through what other tests in this process have left can take longer."""
  gc.collect()
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.mark.parametrize('name', fuzz.NAMES)
def test_any_broken_file_is_read_or_refused_in_one_clean_line(name, tmp_path):
  reader = fuzz.reader_of(name)
  verdicts = []

  @hypothesis.settings(max_examples=150 if 'packed' in name else 400, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.randoms(use_true_random=True))
  def check(rng):
    content = reader.change(rng)
    verdicts.append(fuzz.judge(reader, tmp_path / 'file', content).verdict)
    assert verdicts[-1] in ('accepted', 'refused'), content[:2000]

  check()
  # Else nothing but noise was fed; of packed files the checksum tells all that are not as they were.
  assert {'refused'} | ({'accepted'} if name != 'packed' else set()) <= set(verdicts)


@pytest.mark.parametrize('name', fuzz.NAMES)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode('utf-8', 'replace')))
def test_any_bytes_are_refused_in_one_clean_line(tmp_path_factory, name, content):
  path = tmp_path_factory.getbasetemp() / 'noise'
  assert fuzz.judge(fuzz.reader_of(name), path, content).verdict == 'refused'


@pytest.mark.parametrize('name', fuzz.NAMES)
def test_every_valid_file_is_accepted(name, tmp_path):
  reader = fuzz.reader_of(name)
  for content in reader.files:
    assert fuzz.judge(reader, tmp_path / 'file', content).verdict == 'accepted'


def test_what_a_reader_should_not_do_is_told_apart(tmp_path):
  reader = fuzz.reader_of('policy')
  content = reader.files[0]

  def told(read, own_bytes=None):
    return fuzz.judge(dataclasses.replace(reader, read=read, own_bytes=own_bytes), tmp_path / 'file', content).verdict

  def fails(error):
    def read(path):
      raise error

    return read

  def hangs(path):
    while True:
      pass

  assert told(fails(ValueError('it is broken'))) == 'refused'
  assert told(fails(ValueError('two\nlines'))).startswith('ValueError')
  assert told(fails(ValueError('x' * 2000))).startswith('ValueError')
  assert told(fails(UnicodeError('no sentence'))).startswith('UnicodeError')
  assert told(fails(RecursionError('deep'))).startswith('RecursionError')
  assert told(fails(MemoryError())).startswith('MemoryError')
  assert told(hangs).startswith('Hang')
  first = reader.read(tmp_path / 'file')
  odd = dataclasses.replace(first, cost=float('nan'))
  assert told(lambda path: odd) == 'accepted, but not true: costs are finite'
  filled = lambda path: bytearray(70_000_000) and first
  assert told(filled, own_bytes=lambda found: 10_000_000) == 'accepted'
  assert told(filled, own_bytes=lambda found: 0) == 'accepted, with 70 MB'


def test_another_network_than_was_written_is_told_apart(tmp_path):
  reader = fuzz.reader_of('packed')
  sealed = [fuzz.reader_of('packed, sealed').change(random.Random(i)) for i in range(60)]
  verdicts = {fuzz.judge(reader, tmp_path / 'file', content).verdict for content in sealed}
  assert verdicts == {'refused', 'accepted, but not true: it is another network than was written'}
