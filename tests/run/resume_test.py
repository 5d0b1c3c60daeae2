"""Runs that are stopped, moved and damaged: the benchmarks `kills` and `damage`, shorter."""

import collections
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiny import flags, tiny

from benchmarks.robustness import damage, kills
from fracbits_jax import cost, policy
from fracbits_jax.run import begin, experiment, monitor, progress, runner
from fracbits_jax.run.checkpoint import newest_step
from fracbits_jax.train import preemption


def start(workdir, *arguments):
  """`main.py` as the benchmark starts it, on the smallest network."""
  return kills.start(workdir, *flags(), *arguments)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  kills.finish(start(folder / 'undisturbed'))
  return folder


def stop_behind(process, workdir, phase, step, number):
  """Sends a signal at some moment after a step of a phase was saved."""
  while (newest_step(workdir, phase) or 0) < step and process.poll() is None:
    time.sleep(0.02)
  time.sleep(random.Random(step).uniform(0, 0.1))
  process.send_signal(number)
  return process.communicate(timeout=300)[0]


def test_a_run_that_is_killed_in_each_phase_and_stopped_once_ends_as_the_undisturbed_one(undisturbed):
  workdir = undisturbed / 'killed'
  for phase, step in (('pretrain', 18), ('search', 14), ('finetune', 6)):
    process = start(workdir)
    output = stop_behind(process, workdir, phase, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
  assert 'pretrain is done' in output
  assert re.search('search continues at step 1[0-9] of 27', output)  # between two rows
  process = start(workdir, '--config.checkpoint_steps=100')  # of no consequence for the state
  while not (output := process.stdout.readline()).startswith('finetune continues'):
    assert output, 'it ended before'
  process.send_signal(signal.SIGTERM)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == preemption.EXIT_STATUS, output
  assert 'stopped by SIGTERM: the same command goes on from here' in output
  output = kills.finish(start(workdir))
  assert 'pretrain is done' in output
  assert 'search is done' in output
  assert kills.differences(kills.left(undisturbed / 'undisturbed'), kills.left(workdir)) == []


def test_the_same_seed_gives_the_same_search_bit_for_bit(tmp_path):
  ends = []
  for name in ('first', 'second'):
    runner.run(tiny(**{'phases': ('search',), 'search.epochs': 1.0}), tmp_path / name)
    ends.append(damage.saved(tmp_path / name, 'search'))
    jax.clear_caches()  # compiled anew, as in another process
  assert list(ends[0]) == list(ends[1]) == [9]
  assert [x.tobytes() for x in ends[0][9]] == [x.tobytes() for x in ends[1][9]]


def test_sigterm_leaves_a_checkpoint_of_the_step_at_which_it_came(undisturbed, monkeypatch):
  config = tiny(**{'phases': ('pretrain',), 'checkpoint_seconds': 1000.0, 'report_steps': 1})
  reported = []
  monkeypatch.setattr(preemption, '_asked', None)

  def row(self, row, **kwargs):
    reported.append(row['step'])
    if row['step'] == 14:
      preemption._ask(signal.SIGTERM, None)

  monkeypatch.setattr('fracbits_jax.run.progress.Progress.row', row)
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  try:
    with pytest.raises(preemption.Preempted, match='SIGTERM'):
      runner.run(config, undisturbed / 'stopped')
  finally:
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
      signal.signal(number, handler)
  assert reported[-1] == 14
  assert newest_step(undisturbed / 'stopped', 'pretrain') == 14


def test_a_search_goes_on_with_other_settings_of_the_bits_optimizer(tmp_path, monkeypatch):
  config = tiny(phases=('search',), **{'search.epochs': 1.0, 'quant.granularity': 'kernel', 'checkpoint_steps': 3})

  def stops(self, *arguments):
    raise preemption.Preempted

  with monkeypatch.context() as patch:
    patch.setattr(monitor.Monitor, '_validate', stops)
    with pytest.raises(preemption.Preempted):
      runner.run(config, tmp_path / 'run')
  assert newest_step(tmp_path / 'run', 'search') > 0
  changes = {
    'optimizer.bits_clip': 0.1,
    'optimizer.bits_balance': 0.5,
    'optimizer.channel_bits_rate': 3.0,
    'optimizer.clip_norm': 5.0,
    'search.weights_rate': 0.5,
  }
  config.update_from_flattened_dict(changes)
  runner.run(config, tmp_path / 'run')
  assert newest_step(tmp_path / 'run', 'search') == 9
  config.optimizer.bits_name = 'adam'
  config.optimizer.bits_balance = 0.0
  (tmp_path / 'run' / 'result.json').unlink()
  with pytest.raises(ValueError, match=r"another configuration: .*optimizer\.bits_name is 'adam' and was 'sgd'"):
    runner.run(config, tmp_path / 'run')


def test_a_report_whose_evaluation_was_interrupted_is_made_again(undisturbed, monkeypatch):
  config = tiny(**{'phases': ('pretrain',), 'pretrain.epochs': 1.0})

  def interrupted(self, state):
    raise preemption.Preempted

  with monkeypatch.context() as patch:
    patch.setattr(monitor.Monitor, '_validate', interrupted)
    with pytest.raises(preemption.Preempted):
      runner.run(config, undisturbed / 'interrupted')
  assert progress.read_rows(undisturbed / 'interrupted') == []
  runner.run(config, undisturbed / 'interrupted')
  assert [row['step'] for row in progress.read_rows(undisturbed / 'interrupted')] == [9]


def test_damaged_checkpoints_are_told_and_the_older_ones_are_taken(undisturbed):
  source, rng = undisturbed / 'undisturbed', random.Random(0)
  states = {phase: damage.saved(source, phase) for phase in damage.PHASES}
  counts = collections.Counter()
  for case in damage.cases(source, 10, rng):
    counts[damage.outcome(source, case, states, tiny(checkpoint_steps=2), rng)] += 1
  assert not [what for what in counts if what.startswith('WRONG')], counts
  assert counts['the older state, after a word'] > 0


def test_where_every_checkpoint_of_a_phase_is_damaged_the_phase_starts_anew(undisturbed, capsys):
  workdir = undisturbed / 'broken'
  shutil.copytree(undisturbed / 'undisturbed', workdir)
  (workdir / 'result.json').unlink()
  for file in (workdir / 'checkpoints' / 'search').glob('*/meta/metadata'):
    file.write_text('{}')
  step, _ = damage.restart(workdir, 'search', tiny(checkpoint_steps=2))
  assert step == 0
  assert capsys.readouterr().out.count('is damaged') == 2
  assert len(list((workdir / 'checkpoints' / 'damaged').iterdir())) == 2


def test_another_policy_in_the_folder_is_refused(undisturbed):
  workdir = undisturbed / 'mixed'
  shutil.copytree(undisturbed / 'undisturbed', workdir)
  (workdir / 'result.json').unlink()
  config = tiny(checkpoint_steps=2)
  found = experiment.prepare(config)
  less = cost.budget('bitops', found.layers, equivalent_bits=2.5)
  policy.discretize(begin.initial_bits(found), found.layers, less).save(workdir / 'policy.json')
  with pytest.raises(ValueError, match='is not the policy that was finetuned in this folder'):
    runner.run(config, workdir)


def test_values_that_are_not_finite_are_found_in_their_layer(tmp_path, monkeypatch):
  original = begin.quantized_variables

  def planted(*args, **how):
    variables = original(*args, **how)
    flat = traverse_util.flatten_dict(variables['params'], sep='/')
    flat['stage1_block1_conv1/kernel'] = jnp.asarray(flat['stage1_block1_conv1/kernel']).at[0, 0, 0, 0].set(np.nan)
    return {**variables, 'params': traverse_util.unflatten_dict(flat, sep='/')}

  monkeypatch.setattr(begin, 'quantized_variables', planted)
  config = tiny(**{'phases': ('search',)})
  with pytest.raises(FloatingPointError) as caught:
    runner.run(config, tmp_path / 'run')
  assert re.search('at step [1-9] of search', str(caught.value))
  assert 'not finite: params/stage1_block1_conv1/kernel before step 1;' in str(caught.value)
  assert 'search has no checkpoint yet' in str(caught.value)


def test_values_that_overflow_are_found_in_their_layer_and_the_last_good_checkpoint_stays(tmp_path):
  config = tiny(**{'phases': ('pretrain',), 'pretrain.warmup_epochs': 0.0})
  runner.run(tiny(**{'phases': ('pretrain',), 'pretrain.epochs': 1.0}), tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  config.pretrain.learning_rate = 1e30
  with pytest.raises(FloatingPointError) as caught:
    runner.run(config, tmp_path / 'run')
  assert re.search('not finite: (the (in|out)puts of layer )?[a-z0-9_/]+ at step 1[0-9];', str(caught.value))
  assert 'the last good checkpoint is that of step 9' in str(caught.value)
  assert newest_step(tmp_path / 'run', 'pretrain') == 9


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(undisturbed):
  disk = undisturbed / 'disk'
  disk.mkdir()
  mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=250k', 'none', disk], capture_output=True, check=False)
  if mount.returncode:
    pytest.skip('a small disk needs the right to mount one')
  process = start(disk / 'run', '--config.phases=("pretrain",)')
  try:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith('error: no checkpoint can be written to ')
    assert '(the disk is full): the earlier ones are untouched' in output
    assert 'Traceback' not in output
    subprocess.run(['mount', '-o', 'remount,size=50m', disk], check=True)
    assert 'pretrain continues at step ' in kills.finish(start(disk / 'run', '--config.phases=("pretrain",)'))
  finally:
    process.kill()  # or the disk is busy
    process.wait()
    subprocess.run(['umount', disk], check=True)


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'file/run cannot be written: Not a directory; choose another --workdir'):
    runner.run(tiny(), tmp_path / 'file' / 'run')


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
def test_a_second_signal_stops_at_once():
  script = (
    'import os, signal, time\n'
    'from fracbits_jax.train import preemption\n'
    'with preemption.watched():\n'
    '  for _ in range(2):\n'
    '    os.kill(os.getpid(), signal.SIGTERM)\n'
    '    time.sleep(0.1)\n'
    '    print(preemption.asked(), flush=True)\n'
  )
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, '-c', script], cwd=root, capture_output=True, text=True, check=False)
  assert done.returncode == -signal.SIGTERM
  assert done.stdout == 'True\n'
  assert 'SIGTERM: saves at the next step and stops' in done.stderr
