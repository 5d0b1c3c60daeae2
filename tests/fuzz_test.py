import dataclasses
import gc

import hypothesis
import pytest
from hypothesis import strategies as st

from benchmarks import fuzz


@pytest.fixture(autouse=True, scope='module')
def _others_garbage_is_not_counted():
  """A reader has a second; looking through what other tests in this process have left can take longer."""
  gc.collect()
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.mark.parametrize('name', fuzz.readers())
def test_any_broken_file_is_read_or_refused_in_one_clean_line(name, tmp_path):
  reader = fuzz.readers()[name]
  verdicts = []

  @hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
  @hypothesis.given(st.randoms(use_true_random=True))
  def check(rng):
    content = fuzz.broken_file(rng, reader)
    verdicts.append(fuzz.judge(reader, tmp_path / 'file', content))
    assert verdicts[-1] in ('accepted', 'refused'), content[:2000]

  check()
  assert {'accepted', 'refused'} <= set(verdicts)  # else nothing but noise was fed


@pytest.mark.parametrize('name', fuzz.readers())
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode('utf-8', 'replace')))
def test_any_bytes_are_refused_in_one_clean_line(tmp_path_factory, name, content):
  path = tmp_path_factory.getbasetemp() / 'noise'
  assert fuzz.judge(fuzz.readers()[name], path, content) == 'refused'


@pytest.mark.parametrize('name', fuzz.readers())
def test_every_valid_file_is_accepted(name, tmp_path):
  reader = fuzz.readers()[name]
  for text in reader.files:
    assert fuzz.judge(reader, tmp_path / 'file', text.encode()) == 'accepted'


def test_what_a_reader_should_not_do_is_told_apart(tmp_path):
  reader = fuzz.readers()['policy']
  content = reader.files[0].encode()

  def told(read):
    return fuzz.judge(dataclasses.replace(reader, read=read), tmp_path / 'file', content)

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
