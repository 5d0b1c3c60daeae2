"""Runs that are killed at random moments and started again, beside one that nothing disturbs.

python benchmarks/robustness/kills.py [--runs=40] [--seed=0] [--signal=SIGKILL]

A tiny network on the embedded digits, a checkpoint every second step. Half of the runs are killed once, the others two
to four times. Each has to end with the parameters, bits, statistics, optimizer, metrics, policy and result of the
undisturbed run, bit for bit. With SIGTERM there are no checkpoints but those that it asks for, and every stop has to
exit with its status and to leave one of the last step that was made.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.shared.tiny import TINY  # noqa: E402
from fracbits_jax.run import progress  # noqa: E402
from fracbits_jax.run.checkpoint import Checkpoints, newest_step  # noqa: E402
from fracbits_jax.train import preemption  # noqa: E402

# What differs from the digits recipe: it is over in seconds, and all that a state can carry is in use.
_ITS_OWN = ('seconds', 'images_per_second', 'seconds_left', 'made_with')  # of each run, whatever it computes


@dataclasses.dataclass
class Counts:
  """What happened to a run."""

  kills: int = 0
  while_saving: int = 0
  saved: int = 0
  phases: tuple[str, ...] = ()


def start(workdir: pathlib.Path, *arguments: str) -> subprocess.Popen:
  """`main.py` on the tiny settings, with its data and compiled programs beside the run's folder."""
  settings = {**TINY, 'checkpoint_steps': 2, 'data.data_dir': str(workdir.parent / 'tfds')}
  flags = [f'--config.{name}={value}' for name, value in settings.items()]
  return subprocess.Popen(
    [sys.executable, 'main.py', f'--workdir={workdir}', *flags, *arguments],
    cwd=ROOT,
    env={'JAX_COMPILATION_CACHE_DIR': str(workdir.parent / 'compiled'), **os.environ},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  """Waits for a run that has to end well; what it printed."""
  output, _ = process.communicate(timeout=600)
  if process.returncode:
    raise RuntimeError(f'exit status {process.returncode}: {output[-2000:]}')
  return output


def left(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a finished run leaves, but for the times and the command."""
  found: dict[str, Any] = {}
  for phase in ('pretrain', 'search', 'finetune', 'best'):
    with contextlib.closing(Checkpoints(workdir, phase, create=False)) as checkpoints:
      step, state, meta = checkpoints.restore()
    found |= {f'{phase}{jax.tree_util.keystr(path)}': x for path, x in jax.tree_util.tree_leaves_with_path(state)}
    found[phase] = {'step': step} | {name: value for name, value in meta.items() if name not in _ITS_OWN}
  found['rows'] = [
    {name: value for name, value in row.items() if name not in _ITS_OWN} for row in progress.read_rows(workdir)
  ]
  for name in ('policy.json', 'result.json', 'config.json'):
    content = json.loads((workdir / name).read_text())
    found[name] = {key: value for key, value in content.items() if key not in _ITS_OWN}
  return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """The names of what is not the same bit for bit."""
  same = lambda x, y: (
    np.asarray(x).tobytes() == np.asarray(y).tobytes() if hasattr(x, 'dtype') and hasattr(y, 'dtype') else x == y
  )
  return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not same(a[name], b[name]))


def stop(process: subprocess.Popen, number: signal.Signals, workdir: pathlib.Path, counts: Counts) -> None:
  """Stops a run and takes down where it was."""
  process.send_signal(number)
  process.communicate(timeout=120)
  folder = workdir / 'checkpoints'
  counts.kills += 1
  counts.while_saving += any('tmp' in path.name for path in folder.glob('*/*'))
  phases = [phase for phase in ('pretrain', 'search', 'finetune') if (folder / phase).is_dir()]
  counts.phases += (phases[-1] if phases else 'start',)


def has_saved(process: subprocess.Popen, workdir: pathlib.Path, rows_before: int) -> bool:
  """Whether a run that was asked to stop has saved the last step that it has a row of, or one that has none yet.

  It need not where the signal came before the program could listen, or after its result.

  Raises:
    RuntimeError: it should have.
  """
  rows = progress.read_rows(workdir)
  if process.returncode == -signal.SIGTERM and (len(rows) <= rows_before or (workdir / 'result.json').exists()):
    return False
  saved = newest_step(workdir, rows[-1]['phase']) if rows else None
  done = rows[-1]['step'] if rows else None
  if process.returncode != preemption.EXIT_STATUS or (saved or 0) < (done or 0):
    raise RuntimeError(f'exit status {process.returncode} after SIGTERM at step {done}, saved {saved}')
  return True


def disturbed(
  workdir: pathlib.Path,
  kills: int,
  seconds: float,
  rng: random.Random,
  number: signal.Signals,
  arguments: Sequence[str],
) -> Counts:
  """A run that is stopped so many times, at moments drawn from its time, and then left alone."""
  counts = Counts()
  while counts.kills < kills:
    rows_before = len(progress.read_rows(workdir))
    process = start(workdir, *arguments)
    try:
      process.wait(timeout=rng.uniform(0.05, 1) * seconds)
    except subprocess.TimeoutExpired:
      stop(process, number, workdir, counts)
      if number == signal.SIGTERM:
        counts.saved += has_saved(process, workdir, rows_before)
      continue
    finish(process)
    if counts.kills:
      break
    shutil.rmtree(workdir)  # it was over before its time came
    seconds *= 0.8
  finish(start(workdir, *arguments))
  return counts


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--runs', type=int, default=40)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--signal', choices=('SIGKILL', 'SIGTERM'), default='SIGKILL')
  args = parser.parse_args()
  rng, number = random.Random(args.seed), signal.Signals[args.signal]
  # A row for every step, and no checkpoint but those that a phase ends with or SIGTERM asks for.
  arguments = ('--config.report_steps=1', '--config.checkpoint_steps=1000000') if number == signal.SIGTERM else ()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    finish(start(folder / 'first', *arguments))  # compiles
    began = time.monotonic()
    finish(start(folder / 'undisturbed', *arguments))
    seconds = time.monotonic() - began
    expected = left(folder / 'undisturbed')
    if differences(expected, left(folder / 'first')):
      sys.exit('two undisturbed runs differ')
    print(f'undisturbed: {seconds:.1f} s, {len(expected)} arrays and files')
    totals, wrong = Counts(), 0
    for i in range(args.runs):
      workdir = folder / f'run{i}'
      counts = disturbed(workdir, 1 if i % 2 == 0 else rng.randint(2, 4), seconds, rng, number, arguments)
      differing = differences(expected, left(workdir))
      wrong += bool(differing)
      totals.kills += counts.kills
      totals.while_saving += counts.while_saving
      totals.saved += counts.saved
      totals.phases += counts.phases
      what = f'differs: {differing[:5]}' if differing else 'the same'
      print(f'run {i}: stopped in {", ".join(counts.phases)}; {what}', flush=True)
    by_phase = {phase: totals.phases.count(phase) for phase in ('start', 'pretrain', 'search', 'finetune')}
    print(f'{args.runs} runs, {totals.kills} times {number.name} ({by_phase})')
    print(f'{totals.while_saving} left a checkpoint half written')
    if number == signal.SIGTERM:
      print(f'{totals.saved} ended with status {preemption.EXIT_STATUS} and their last step saved')
    print(f'{args.runs - wrong} runs ended as the undisturbed one, bit for bit')
  sys.exit(1 if wrong else 0)


if __name__ == '__main__':
  main()
