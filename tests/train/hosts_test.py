"""Two processes with two virtual devices each, in the place of two hosts."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import tiny

from configs import text_gpt
from fracbits_jax import policy, tasks
from fracbits_jax.run import progress, runner
from fracbits_jax.run.checkpoint import Checkpoints
from fracbits_jax.train import hosts, placement

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {
  **os.environ,
  'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=2',
}
SEARCH = {'phases': ('search', 'finetune'), 'search.epochs': 4 / 9, 'finetune.epochs': 0.0, 'report_steps': 2}
PRETRAIN = {'phases': ('pretrain',), 'pretrain.epochs': 1e3, 'eval_epochs': 1e3, 'checkpoint_steps': 5}


def decoder():
  """Weights in groups, blocks in a loop, on the embedded text."""
  config = text_gpt.get_config()
  config.update_from_flattened_dict(
    {
      'model.width': 0.125,
      'model.decoder.depth': 2,
      'model.decoder.head_dim': 8,
      'model.decoder.scan': True,
      'data.context': 16,
      'data.batch_size': 16,
      'quant.calibration_batches': 2,
      'quant.group_size': 8,
      **SEARCH,
      'search.epochs': 4 / 3375,
    }
  )
  return config


class TwoHosts:
  """`main.py` on two hosts; each has a folder of its own that the other does not see."""

  def __init__(self, folder, config, *extra):
    """`extra` are flags of host 1 alone."""
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    (folder / 'recipe.py').write_text(
      f'import sys\n\nfrom ml_collections import ConfigDict\n\n'
      f'sys.path.append({str(ROOT / "tests")!r})\nimport tiny  # so that its network is known\n\n\n'
      f'def get_config():\n  return ConfigDict({config.to_dict()!r})\n'
    )
    self.workdirs = [folder / f'run-{i}' for i in range(2)]
    self._outputs = [folder / f'output-{i}' for i in range(2)]
    self.processes = []
    for i in range(2):
      arguments = (f'--config={folder / "recipe.py"}', f'--workdir={self.workdirs[i]}')
      where = (f'--coordinator=localhost:{port}', '--hosts=2', f'--host={i}')
      with self._outputs[i].open('w') as output:
        command = [sys.executable, 'main.py', *arguments, *where, *(extra if i else ())]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
      self.processes.append(process)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()

  def output(self, host):
    lines = self._outputs[host].read_text().splitlines()
    of_gloo = re.compile(r'^\[Gloo\]|connected peer ranks is')  # whose lines of two threads mix
    return '\n'.join(line for line in lines if not of_gloo.search(line))

  def wait_for_checkpoint(self, after):
    folder, until = self.workdirs[0] / 'checkpoints' / 'pretrain', time.monotonic() + 300
    while time.monotonic() < until and all(process.poll() is None for process in self.processes):
      if any(p.name.isdigit() and int(p.name) > after for p in folder.glob('*')):
        return
      time.sleep(0.1)
    raise AssertionError(f'no checkpoint: {self.output(0)}\n{self.output(1)}')

  def wait(self, seconds=300):
    """The exit statuses."""
    until = time.monotonic() + seconds
    return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]


def last(workdir, phase):
  checkpoints = Checkpoints(workdir, phase, create=False)
  found = checkpoints.restore()
  checkpoints.close()
  return found


@pytest.mark.parametrize(('make', 'metric'), [(lambda: tiny(**SEARCH), 'accuracy'), (decoder, 'bits_per_character')])
def test_two_hosts_do_what_one_with_all_devices_does_and_one_folder_holds_it(make, metric, tmp_path, monkeypatch):
  config = make()
  with TwoHosts(tmp_path, config) as two:
    assert two.wait() == [0, 0], two.output(0) + two.output(1)
  assert '4 cpu device(s) of 2 hosts' in two.output(0)
  assert two.output(1) == ''
  assert not two.workdirs[1].exists()

  # In the order in which two hosts have the examples: rounded sums would differ, and so would some activations' levels.
  shard = placement.shard
  by_host = lambda x: np.concatenate([x[0::2], x[1::2]])
  monkeypatch.setattr(placement, 'shard', lambda batch: shard({name: by_host(x) for name, x in batch.items()}))
  result = runner.run(config, tmp_path / 'one')
  ours, theirs = last(tmp_path / 'one', 'search'), last(two.workdirs[0], 'search')
  assert ours[0] == theirs[0] == 4
  for part in ('params', 'bits', 'batch_stats', 'opt_state', 'multiplier'):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours[1][part], theirs[1][part])
  task = tasks.of_result(result)
  rows, others = (progress.read_rows(workdir, task) for workdir in (tmp_path / 'one', two.workdirs[0]))
  assert [row['step'] for row in others] == [2, 4]
  for name in ('loss', metric, 'cost', 'multiplier'):
    np.testing.assert_allclose([r[name] for r in rows], [r[name] for r in others], rtol=1e-5, atol=1e-6, err_msg=name)
  validated = [found[-1][f'validation_{metric}'] for found in (rows, others)]
  np.testing.assert_allclose(*validated, rtol=1e-5)
  assert task.metric.text(result[f'test_{metric}']) in two.output(0)
  assert policy.load(tmp_path / 'one' / 'policy.json') == policy.load(two.workdirs[0] / 'policy.json')


def test_a_host_that_is_killed_or_asked_to_stop_ends_both_and_one_process_goes_on(tmp_path):
  config = tiny(**PRETRAIN)
  with TwoHosts(tmp_path, config) as two:
    two.wait_for_checkpoint(after=0)
    two.processes[1].kill()
    assert two.wait() == [1, -signal.SIGKILL]
    assert 'error: another host was lost: the same command, given to every host, goes on' in two.output(0)
    assert 'Traceback' not in two.output(0)
  killed = last(two.workdirs[0], 'pretrain')[0]
  with TwoHosts(tmp_path, config) as two:
    two.wait_for_checkpoint(after=killed)
    two.processes[1].terminate()
    assert two.wait() == [75, 75], two.output(0) + two.output(1)
    assert re.search(rf'pretrain continues at step {killed} of 9000\n', two.output(0))
    for host in range(2):
      assert 'stopped by SIGTERM: the same command goes on from here' in two.output(host)
  stopped = last(two.workdirs[0], 'pretrain')[0]
  assert stopped > killed
  config.pretrain.epochs = (stopped + 2) / 9
  assert runner.run(config, two.workdirs[0])['steps'] == stopped + 2


def test_a_users_mistake_is_said_on_both_hosts(tmp_path):
  (tmp_path / 'run-0').write_text('a file in the place of the folder')
  with TwoHosts(tmp_path, tiny(**SEARCH)) as two:
    assert two.wait() == [1, 1]
  for host in range(2):
    assert re.search('^error: .*run-0 cannot be written: File exists; choose another', two.output(host), re.MULTILINE)
    assert 'Traceback' not in two.output(host)


def test_hosts_with_other_settings_end_with_the_same_sentence(tmp_path):
  with TwoHosts(tmp_path, tiny(**SEARCH), '--config.search.learning_rate=0.123', '--config.seed=4') as two:
    assert two.wait() == [1, 1]
  for host in range(2):
    (line,) = [line for line in two.output(host).splitlines() if line.startswith('error: ')]
    assert 'search.learning_rate is ' in line
    assert '0.123 on host 1; seed is 0 on host 0 and 4 on host 1; give all of them the same command' in line
    assert 'Traceback' not in two.output(host)
  assert not two.workdirs[0].exists()


@pytest.mark.parametrize('address', ['127.0.0.1', '0.0.0.0', '::1', '::'])
def test_a_port_that_is_taken_is_refused_in_one_sentence(address, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **arguments: pytest.fail('it would end by a signal'))
  with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as taken:
    try:
      taken.bind((address, 0))
    except OSError:
      pytest.skip(f'this machine has no {address}')
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f'port {port} of this machine cannot be used .*: give all hosts another one'):
      hosts.start(f'localhost:{port}', 2, 0)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('node0:0', 2, 1), '--coordinator=node0:0 has no port: give HOST:PORT with one from 1 to 65535'),
    (('node0:70000', 2, 1), 'has no port'),
    (('node0:1234', 2, None), '--coordinator, --hosts and --host belong together'),
    (('node0', 2, 1), '--coordinator=node0 is no address: give HOST:PORT of host 0'),
    (('node0:1234', 2, 2), '--host=2 is none of 2 hosts: give a number from 0 to 1'),
    (('node0:1234', 2, -1), '--host=-1 is none of 2 hosts'),
  ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    hosts.start(*arguments)


@pytest.mark.parametrize(
  ('variables', 'expected'),
  [
    ({}, False),
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_NODELIST': 'node1'}, False),
    ({'SLURM_NTASKS': '4'}, False),
    ({'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_NODELIST': 'node[1-4]'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:5'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': '10.0.0.1,10.0.0.2'}, True),
  ],
)
def test_only_several_tasks_are_several_hosts(variables, expected, monkeypatch):
  started = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **arguments: started.append(arguments))
  monkeypatch.setattr(hosts, '_end_in_words', lambda: None)
  monkeypatch.setattr(hosts, '_connected', False)
  for name in ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  hosts.start()
  assert len(started) == expected
