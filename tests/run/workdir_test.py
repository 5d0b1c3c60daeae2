import json

import pytest
from tiny import tiny

from fracbits_jax.run import workdir


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'run'
  workdir.claim(folder, tiny(), accept_changes=False, say=print)
  return folder


def claim(folder, accept_changes=False, **changes):
  workdir.claim(folder, tiny(**changes), accept_changes=accept_changes, say=print)


def test_the_same_configuration_goes_on_without_a_word(folder, capsys):
  claim(folder)
  assert capsys.readouterr().out == ''


def test_a_change_of_schedule_is_told_and_recorded(folder, capsys):
  claim(folder, **{'search.epochs': 5.0, 'data.workers': 2})
  assert capsys.readouterr().out == (
    'goes on with a changed configuration: data.workers is 2 and was 0; search.epochs is 5.0 and was 3.0\n'
  )
  assert json.loads((folder / 'config.json').read_text())['search']['epochs'] == 5.0


@pytest.mark.parametrize(
  ('name', 'value'),
  [('model.name', 'resnet20'), ('quant.choices', (2, 4, 8)), ('seed', 3), ('data.batch_size', 64)],
)
def test_what_would_make_the_state_meaningless_is_refused_unless_told_otherwise(folder, name, value, capsys):
  before = (folder / 'config.json').read_text()
  with pytest.raises(ValueError, match=rf'{name} is .*; choose another --workdir, or give --accept_changes'):
    claim(folder, **{name: value, 'search.epochs': 5.0})
  assert (folder / 'config.json').read_text() == before
  claim(folder, accept_changes=True, **{name: value})
  assert f'{name} is' in capsys.readouterr().out


def test_a_finished_run_is_not_changed(folder):
  (folder / 'result.json').write_text('{}')
  with pytest.raises(ValueError, match=r'holds a finished run of another configuration: search\.epochs is 5\.0'):
    claim(folder, accept_changes=True, **{'search.epochs': 5.0})


def test_a_broken_configuration_file_is_one_sentence(folder):
  (folder / 'config.json').write_text('[' * 100_000)
  with pytest.raises(ValueError, match=r'config.json is broken: choose another --workdir, or remove the file'):
    claim(folder)
