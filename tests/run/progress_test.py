import os
import pty
import random
import sys

import pytest

from fracbits_jax.run import progress
from fracbits_jax.system import terminal


def made_up(rng, **changes):
  budgets = [{'cost': rng.uniform(0, 50), 'target': 12.5, 'unit': unit} for unit in ('GBitOPs', 'MB')]
  return {
    'phase': rng.choice(('pretrain', 'search', 'finetune')),
    'step': rng.randint(1, 10**6),
    'steps': 10**6,
    'epoch': round(rng.uniform(0, 150), 2),
    'epochs': 150.0,
    'loss': rng.uniform(0, 9),
    'accuracy': rng.random(),
    'images_per_second': rng.uniform(1, 10**5),
    'seconds_left': rng.uniform(0, 10**6),
    **({'validation_accuracy': rng.random()} if rng.random() < 0.5 else {}),
    **({'cost': 1.0, 'budgets': budgets[: rng.randint(1, 2)]} if rng.random() < 0.7 else {}),
    **changes,
  }


def test_a_line_is_as_wide_as_there_is_room_and_keeps_what_matters():
  rng = random.Random(0)
  for _ in range(300):
    row = made_up(rng)
    whole = progress.line(row)
    for width in range(1, 160):
      text = progress.line(row, width)
      assert len(text) <= width
      assert text == whole or len(whole) > width
      if width >= 60:
        assert f'epoch {row["epoch"]:g}/150' in text
        assert ('validation' in text) == ('validation_accuracy' in row)
        assert ('cost' in text) == ('cost' in row)


class Screen:
  """What a terminal of some columns shows, of the sequences that progress uses."""

  def __init__(self):
    self.lines, self.at = [''], 0

  def feed(self, text, columns):
    for part in text.replace('\x1b[K', '\0').replace('\r\n', '\n'):
      line = self.lines[-1]
      if part == '\n':
        self.lines.append('')
      elif part == '\r':
        self.at = 0
        continue
      elif part == '\0':
        self.lines[-1] = line[: self.at]
        continue
      else:
        assert len(line) < columns, f'{line + part!r} goes on in the next line'
        self.lines[-1] = line[: self.at] + part
      self.at = len(self.lines[-1])


@pytest.fixture
def screen(monkeypatch):
  """A terminal whose width can be set, as a function that gives what it shows."""
  leader, follower = pty.openpty()
  stream = os.fdopen(follower, 'w')
  monkeypatch.setenv('TERM', 'xterm')
  shown = Screen()

  def look(columns):
    monkeypatch.setattr(sys, 'stdout', stream)  # here, since pytest sets its own before the test
    monkeypatch.setattr(os, 'get_terminal_size', lambda fd: os.terminal_size((columns, 24)))
    os.set_blocking(leader, False)
    text = b''
    while True:
      try:
        text += os.read(leader, 10_000)
      except BlockingIOError:
        break
    shown.feed(text.decode(), columns)
    return shown.lines

  yield look
  stream.close()
  os.close(leader)


def test_on_a_terminal_there_is_one_line_which_follows_its_width(screen, tmp_path):
  rows, rng = progress.Progress(tmp_path, ('pretrain', 'search')), random.Random(1)
  look = lambda columns: list(screen(columns))
  look(80)
  rows.say('a run')
  rows.doing('pretrain: compiling')
  assert look(80) == ['a run', 'pretrain: compiling']
  for columns in (80, 60, 133, 40):
    look(columns)
    row = made_up(rng, phase='pretrain', step=1)
    rows.row(row, global_step=1, last=False)
    assert look(columns) == ['a run', progress.line(row, columns - 1)]
  rows.row(row, global_step=1, last=True)
  rows.doing('search: compiling')
  rows.say('search continues')
  assert look(40) == ['a run', progress.line(row, 39), 'search continues', '']
  rows.close()


def test_where_there_is_no_terminal_rows_are_whole_and_what_is_done_is_said_once(tmp_path, capsys):
  rows, row = progress.Progress(tmp_path, ('pretrain',)), made_up(random.Random(2), phase='pretrain')
  rows.doing('pretrain: compiling')
  rows.doing('pretrain: compiling')
  rows.row(row, global_step=1, last=True)
  assert capsys.readouterr().out == f'pretrain: compiling\n{progress.line(row)}\n'
  rows.close()


def test_rows_after_the_point_of_return_are_forgotten_and_those_of_phases_that_are_gone(tmp_path):
  rows, rng = progress.Progress(tmp_path, ('search', 'finetune')), random.Random(3)
  for phase, step in (('pretrain', 1), ('search', 1), ('search', 2), ('finetune', 1), ('finetune', 2)):
    rows.row(made_up(rng, phase=phase, step=step), global_step=step, last=False)
  left = lambda: [(row['phase'], row['step']) for row in progress.read_rows(tmp_path)]
  rows.rewind('finetune', 1)
  assert left() == [('search', 1), ('search', 2), ('finetune', 1)]
  rows.rewind('search', 1)
  assert left() == [('search', 1)]
  rows.close()


class Gone:
  """An output that nobody reads any more."""

  encoding = 'utf-8'

  def isatty(self):
    return False

  def write(self, text):
    raise BrokenPipeError

  flush = write


@pytest.mark.parametrize('output', ['closed', 'none', 'gone', 'ascii'])
def test_rows_are_kept_whatever_the_output_is(output, tmp_path, monkeypatch):
  path = tmp_path / 'output'
  stream = path.open('w', encoding='ascii')
  if output == 'closed':
    stream.close()
  monkeypatch.setattr(sys, 'stdout', {'none': None, 'gone': Gone()}.get(output, stream))
  rows = progress.Progress(tmp_path, ('pretrain',))
  rows.say('a folder \udcff, 1 \u00d7 cpu')
  rows.doing('compiling')
  rows.row(made_up(random.Random(4), phase='pretrain'), global_step=1, last=True)
  rows.close()
  assert not terminal.is_there()
  assert len(progress.read_rows(tmp_path)) == 1
  stream.close()
  assert ('a folder \\udcff, 1 \\xd7 cpu' in path.read_text()) == (output == 'ascii')
