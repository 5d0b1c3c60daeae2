"""Programs that are started without outputs, without a reader, without a home."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SETTLE = 'from fracbits_jax.system import process\nprocess.settle()\nimport os, sys\n'


def shell(line, code, **environment):
  """Runs a program within a line of bash, in which it is `$RUN`; its status and what came to bash's outputs."""
  variables = {**os.environ, 'RUN': f'{sys.executable} -c "$CODE"', 'CODE': SETTLE + code, **environment}
  variables = {name: value for name, value in variables.items() if value is not None}
  return subprocess.run(['bash', '-c', line], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&-', '>&- 2>&-', '<&- >&- 2>&-', '> /dev/full 2>&1'])
def test_a_program_works_whatever_its_streams_are(closed, tmp_path):
  code = (
    'print("out", flush=True); print("err", file=sys.stderr)\n'
    'file = open("result", "w")\n'
    'assert file.fileno() > 2, file.fileno()\n'
    'print("more"); os.system("echo a child"); file.write("done"); file.close()\n'
  )
  done = shell(f'cd {tmp_path}; PYTHONPATH={ROOT} {sys.executable} -c "$CODE" {closed}', code)
  assert (tmp_path / 'result').read_text() == 'done'
  assert done.returncode == 0
  assert 'Traceback' not in done.stderr
  assert 'Exception' not in done.stderr


def test_a_reader_that_goes_does_not_end_the_program(tmp_path):
  code = (
    'import time\n'
    'for i in range(200): print("x" * 5000)\n'
    'print("y" * 5000, file=sys.stderr); print("the end", flush=True)\n'
    f'open("{tmp_path}/result", "w").write("done")\n'
  )
  done = shell(f'({sys.executable} -c "$CODE" 2>&1; echo $? > {tmp_path}/status) | head -c 10', code)
  assert done.stdout == 'x' * 10
  assert (tmp_path / 'result').read_text() == 'done'
  assert (tmp_path / 'status').read_text() == '0\n'
  assert done.stderr == ''


def test_names_that_are_not_text_come_out_as_they_are():
  command = [sys.executable, '-c', SETTLE + 'print(sys.argv[1]); print(sys.argv[1], file=sys.stderr)', b'a\xff']
  done = subprocess.run(command, cwd=ROOT, env={**os.environ, 'PYTHONUTF8': '1'}, capture_output=True, check=True)
  assert (done.stdout, done.stderr) == (b'a\xff\n', b'a\xff\n')


@pytest.mark.parametrize('home', [None, '/nowhere', '/proc'])
def test_a_user_without_a_home_gets_a_folder_for_caches(home):
  if home is None and os.getuid():
    pytest.skip('a user that has no name needs the right to become one')
  code = (
    'import os, pathlib, pwd, sys, tempfile\n'
    'from fracbits_jax.system import process\n'
    'if os.getuid() == 0: os.setuid(54321)\n'
    'process.settle()\n'
    'for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TFDS_DATA_DIR"): pathlib.Path(os.environ[name]).mkdir()\n'
    'print(pathlib.Path(os.environ["XDG_CACHE_HOME"]).parent, pathlib.Path.home().is_dir())\n'
  )
  tmp_path = pathlib.Path(tempfile.mkdtemp(dir='/tmp'))  # those of pytest are closed to other users
  tmp_path.chmod(0o777)
  variables = {**os.environ, 'HOME': home, 'TMPDIR': str(tmp_path)}
  own = ('XDG_CACHE_HOME', 'MPLCONFIGDIR', 'TFDS_DATA_DIR')
  variables = {name: value for name, value in variables.items() if value is not None and name not in own}
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
  folder, exists = done.stdout.split() or ('nothing', '')
  folder = pathlib.Path(folder)
  assert (folder.parent, folder.name) == (tmp_path, f'fracbits_jax-{os.getuid() or 54321}'), done.stderr
  assert exists == 'True'
  assert folder.stat().st_mode & 0o777 == 0o700
  assert done.stderr.count('\n') == 1
  shutil.rmtree(tmp_path)
