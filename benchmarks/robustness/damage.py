"""Damaged checkpoints: what a run that finds them does.

python benchmarks/robustness/damage.py [--cases=130] [--seed=0]

Of a finished run on the embedded digits one file of the newest checkpoint of a phase is cut short, has one byte changed
or is deleted: every file of it in turn, at random places. The run is then started again. It has to go on from a state
that was saved, exactly, or to refuse in one sentence.
"""

import argparse
import collections
import contextlib
import io
import itertools
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.shared.tiny import TINY  # noqa: E402
from configs import digits  # noqa: E402
from fracbits_jax.run import runner  # noqa: E402
from fracbits_jax.run.checkpoint import Checkpoints  # noqa: E402
from fracbits_jax.train import (  # noqa: E402
  loop,
  placement,
)

KINDS = ('cut short', 'one byte changed', 'deleted')
PHASES = ('pretrain', 'search', 'finetune')


class Started(Exception):
  """Carries where a phase starts: its step and its state."""


def tiny(folder: pathlib.Path) -> ConfigDict:
  config = digits.get_config()
  settings = {**TINY, 'checkpoint_steps': 2, 'data.data_dir': str(folder / 'tfds')}
  config.update_from_flattened_dict(settings)
  return config


def saved(workdir: pathlib.Path, phase: str) -> dict[int, list[np.ndarray]]:
  """The arrays of each checkpoint of a phase, by step."""
  found = {}
  for step in sorted(int(path.name) for path in (workdir / 'checkpoints' / phase).iterdir()):
    with tempfile.TemporaryDirectory() as name:
      shutil.copytree(workdir / 'checkpoints' / phase / str(step), pathlib.Path(name, 'checkpoints', phase, str(step)))
      with contextlib.closing(Checkpoints(name, phase, create=False)) as checkpoints:
        found[step] = arrays(checkpoints.restore()[1])
  return found


def arrays(state: Any) -> list[np.ndarray]:
  """The arrays of a state in an order of their own, whatever holds them."""
  return sorted((np.asarray(x) for x in jax.tree.leaves(state)), key=lambda x: (x.shape, x.tobytes()))


def damage(path: pathlib.Path, kind: str, rng: random.Random) -> None:
  content = bytearray(path.read_bytes())
  if kind == 'deleted' or not content:
    path.unlink()
  elif kind == 'cut short':
    path.write_bytes(content[: rng.randrange(len(content))])
  else:
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def cases(workdir: pathlib.Path, count: int, rng: random.Random) -> Iterator[tuple[str, pathlib.Path, str]]:
  """`(phase, file, kind)`: every file in every way, then again."""
  newest = {phase: max(map(int, (p.name for p in (workdir / 'checkpoints' / phase).iterdir()))) for phase in PHASES}
  every = [
    (phase, path.relative_to(workdir), kind)
    for phase, step in newest.items()
    for path in sorted((workdir / 'checkpoints' / phase / str(step)).rglob('*'))
    if path.is_file()
    for kind in KINDS
  ]
  rng.shuffle(every)
  return itertools.islice(itertools.cycle(every), count)


def restart(workdir: pathlib.Path, phase: str, config: ConfigDict) -> tuple[int, list[np.ndarray]]:
  """Where a run starts its phase again; nothing is trained."""
  original = loop.run_phase

  def stop_at_phase(state, train_step, batches, *, start, steps, **kwargs):
    if stop_at_phase.left == 0:
      raise Started(start, arrays(placement.unreplicate(state)))
    stop_at_phase.left -= 1
    return original(state, train_step, batches, start=start, steps=steps, **kwargs)

  stop_at_phase.left = PHASES.index(phase)
  with mock.patch.object(loop, 'run_phase', stop_at_phase):
    try:
      runner.run(config, workdir)
    except Started as started:
      return started.args
  raise RuntimeError(f'{phase} was not started')


def outcome(
  source: pathlib.Path, case: tuple[str, pathlib.Path, str], states: dict, config: ConfigDict, rng: random.Random
) -> str:
  """What comes of a damage; begins with WRONG where it must not be."""
  phase, file, kind = case
  with tempfile.TemporaryDirectory() as name:
    workdir = pathlib.Path(name) / 'run'
    shutil.copytree(source, workdir)
    (workdir / 'result.json').unlink()
    damage(workdir / file, kind, rng)
    printed = io.StringIO()
    try:
      with contextlib.redirect_stdout(printed):
        step, state = restart(workdir, phase, config)
    except ValueError as error:
      return 'refused in one sentence' if '\n' not in str(error) else f'WRONG: refused by {error}'
    except Exception as error:
      return f'WRONG: {type(error).__name__}: {error}'
  if step not in states[phase]:
    return f'WRONG: starts at step {step}, which was not saved'
  same = all(a.tobytes() == b.tobytes() for a, b in zip(state, states[phase][step], strict=True))
  if not same:
    return f'WRONG: the state of step {step} is not what was saved'
  if step == max(states[phase]):
    return 'of no consequence: the newest state, as it was saved'
  told = f'/{max(states[phase])} is damaged' in printed.getvalue()
  return 'the older state, after a word' if told else 'WRONG: the older state, without a word'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', type=int, default=130)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = tiny(folder)
    runner.run(config, folder / 'run')
    states = {phase: saved(folder / 'run', phase) for phase in PHASES}
    counts = collections.Counter()
    for case in cases(folder / 'run', args.cases, rng):
      what = outcome(folder / 'run', case, states, config, rng)
      counts[case[2], what] += 1
      if what.startswith('WRONG'):
        print(case, what, flush=True)
  for (kind, what), count in sorted(counts.items()):
    print(f'{kind:18} {what}: {count}')
  sys.exit(1 if any(what.startswith('WRONG') for _, what in counts) else 0)


if __name__ == '__main__':
  main()
