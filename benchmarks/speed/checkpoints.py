"""What checkpoints cost: the digits recipe's search with one every so many steps beside one without any.

python benchmarks/speed/checkpoints.py [--rounds=3] [--epochs=40] [--steps=100]

Both by turns, each in a process of its own; the time is the run's own, without what comes before its first step.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEVER = 1e9


def seconds(workdir: pathlib.Path, epochs: float, steps: int | None) -> tuple[float, int]:
  """Seconds that the run took, and its steps; a checkpoint after every so many of them."""
  settings = {'phases': '("search",)', 'search.epochs': epochs, 'checkpoint_seconds': NEVER, 'eval_epochs': NEVER}
  settings['data.data_dir'] = workdir.parent / 'tfds'
  if steps is not None:
    settings['checkpoint_steps'] = steps
  flags = [f'--config.{name}={value}' for name, value in settings.items()]
  command = [sys.executable, 'main.py', f'--workdir={workdir}', *flags]
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  result = json.loads((workdir / 'result.json').read_text())
  return result['seconds'], result['steps']


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--epochs', type=float, default=40)
  parser.add_argument('--steps', type=int, default=100)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    seconds(folder / 'warm', args.epochs, None)  # compiles
    ratios = []
    for i in range(args.rounds):
      without, steps = seconds(folder / f'without{i}', args.epochs, None)
      with_them, _ = seconds(folder / f'with{i}', args.epochs, args.steps)
      ratios.append(with_them / without)
      print(
        f'{steps} steps: {without:.1f} s without, {with_them:.1f} s with {steps // args.steps} checkpoints', flush=True
      )
    print(f'ratio {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}')


if __name__ == '__main__':
  main()
