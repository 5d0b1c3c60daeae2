import os
import subprocess
import sys

import xla_flags


def test_flags_that_this_xla_does_not_know_are_left_out(tmp_path):
  options = {'xla_of_another_version': True, 'xla_backend_optimization_level': 0}
  assert xla_flags.known(options, tmp_path) == ['--xla_backend_optimization_level=0']


def test_an_answer_is_kept_and_one_that_is_cut_is_asked_for_again(tmp_path, monkeypatch):
  options = {'xla_backend_optimization_level': 0}
  asked = []
  monkeypatch.setattr(xla_flags, '_asked', lambda options: asked.append(options) or list(options))
  for _ in range(2):
    assert xla_flags.known(options, tmp_path) == ['--xla_backend_optimization_level=0']
  assert asked == [options]
  (answer,) = tmp_path.iterdir()
  answer.write_text('{"xla')
  xla_flags.known(options, tmp_path)
  assert asked == [options, options]


def test_the_flags_of_these_tests_start_a_process():
  program = 'import jax; print(len(jax.devices()))'
  done = subprocess.run([sys.executable, '-c', program], env=os.environ, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, '4\n'), done.stderr
