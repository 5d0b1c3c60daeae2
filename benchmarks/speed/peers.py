"""What quantization-aware training costs beside float training: here, in Qwix, in Brevitas and in HGQ2.

    pip install -e '.[peers]'
    python benchmarks/speed/peers.py [--peers=fracbits,qwix] [--out=DIR]     # DIR keeps what other peers gave

| peer | float step | quantized steps |
|---|---|---|
| fracbits | `tiny_resnet8` of this project | search over 2 to 8 bits by layer, under BitOPs; finetuning at integers |
| qwix | the same in Flax | 8 bits by `QtProvider`, in integers; by `OdmlQatProvider`, in rounded floats |
| brevitas | the same in PyTorch, run eagerly | 8 bits, learned scales of activations |
| hgq | the same in Keras on JAX | bits of each layer or of each weight and input element, learned under EBOPs |

The network is the ResNet-8 of MLPerf Tiny: 16 channels, a residual block for each of 16, 32 and 64, 1x1 convolutions
as shortcuts, batch norm, which stays in float everywhere; images of 32 x 32 x 3, 10 classes, 64 images a step, SGD with
Nesterov's momentum. Each peer quantizes kernels and inputs of convolutions and of the classifier by its own defaults.

A peer has a process of its own on one core, in which its steps take turns within a round, after some rounds that do not
count. A step's ratio to the float step of the same framework is taken within a round; its median, least and largest
value are given. The ratio is one of processor time, which on one core is the step's own, whoever else waits for the
core; by the clock stands beside it. Memory is measured in one process for each step: how far it grows during a step
(Linux), the most it holds with all it imports, and what XLA plans for temporaries.

Its limits: one small network, one core of a CPU. Ratios say what quantization adds within a framework and not which
framework is fast; for that the last column has each step in multiples of this project's float step, of two processes
that did not run at the same time. What a step learns differs, as the table says: integers of 8 bits that are given cost
less than bits that are learned. PyTorch and JAX are used as they come, this project with its own compiler options.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import peers_measure  # noqa: E402
from benchmarks.speed.peers_measure import ratios, reason  # noqa: E402
from benchmarks.speed.speed_tables import markdown  # noqa: E402

PEERS = {'fracbits': 'this project', 'qwix': 'Qwix', 'brevitas': 'Brevitas', 'hgq': 'HGQ2'}
HEADER = ('step', 'time of float', 'least to most', 'by the clock', 'growth in a step', 'planned by XLA')
HEADER += ('whole process', "of this project's float step")


def measure(name: str, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
  """Time and memory of a peer's steps: `versions`, `labels` and `rows`, or why it `failed`."""
  try:
    labels = peers_measure.peer(name).METHODS
  except Exception as error:
    return {'failed': reason(error)}
  held = {method: forked(name, method, batch) for method in labels}
  result = peers_measure.times(name, batch, rounds, seconds)
  for method, row in result['rows'].items():
    row.update({key: value for key, value in held[method].items() if 'failed' not in row or key == 'failed'})
  return {**result, 'labels': labels}


def forked(name: str, method: str, batch: int) -> dict[str, Any]:
  """`peers_measure.memory` in a process of its own, which has imported the framework and done nothing else."""
  context = multiprocessing.get_context('fork')
  ours, theirs = context.Pipe(duplex=False)
  child = context.Process(target=lambda: theirs.send(peers_measure.memory(name, method, batch)))
  child.start()
  theirs.close()
  try:
    return ours.recv()
  except EOFError:
    return {}
  finally:
    child.join()


def in_own_process(name: str, arguments: Sequence[str], core: int | None, timeout: float) -> dict[str, Any]:
  """What `measure` finds in a new process that has one core."""
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / 'result.json'
    command = [sys.executable, __file__, *arguments, f'--worker={name}', f'--result={out}']
    if core is not None:
      command.append(f'--core={core}')
    alone = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
    # The programs that a process compiles to measure memory are there when time is measured.
    cache = {'JAX_COMPILATION_CACHE_DIR': folder, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    platform = {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    try:
      done = subprocess.run(command, env={**os.environ, **alone, **cache, **platform}, timeout=timeout)
    except subprocess.TimeoutExpired:
      return {'failed': f'not done after {timeout:.0f} s'}
    if not out.exists():
      return {'failed': f'its process ended with status {done.returncode}'}
    return json.loads(out.read_text())


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """One row for each step of each peer; a peer or a step that does not run says why."""
  base = found.get('fracbits', {}).get('rows', {}).get('float')
  lines = []
  for name, result in found.items():
    if 'failed' in result:
      lines.append((PEERS[name], f'not run: {result["failed"]}', *[''] * (len(HEADER) - 2)))
      continue
    for method, row in ratios(result['rows'], None if base is None or 'failed' in base else base).items():
      label = result['labels'][method] + (', float' if method == 'float' else '')
      if 'failed' in row:
        lines.append((label, f'not run: {row["failed"]}', *[''] * (len(HEADER) - 2)))
        continue
      time = least = clock = ''
      if 'cpu' in row:
        time, least, clock = f'{row["cpu"][0]:.2f}', '{1:.2f} to {2:.2f}'.format(*row['cpu']), f'{row["wall"][0]:.2f}'
      lines.append((label, time, least, clock, *(_times(row.get(key)) for key in _FURTHER)))
  return markdown(HEADER, [tuple(cell.replace('|', '\\|') for cell in line) for line in lines])


_FURTHER = ('step_bytes', 'temp_bytes', 'process_bytes', 'of_base')


def _times(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def report(about: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
  """Everything that was measured, as markdown."""
  versions: dict[str, str] = {}
  for peer in found.values():
    versions |= peer.get('versions', {})
  named = ', '.join(f'{name} {version}' for name, version in versions.items())
  how = f'{about["date"]}, medians of {about["rounds"]} rounds, {about["batch"]} images a step'
  return f'`{about["command"]}`: one core of {about["device"]}, {how}. {named}.\n\n{table(found)}\n'


def device_name() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    return 'a CPU'


def worker(name: str, args: argparse.Namespace) -> None:
  if args.core is not None:
    os.sched_setaffinity(0, {args.core})
  args.result.write_text(json.dumps(measure(name, args.batch, args.rounds, args.seconds)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  names = lambda text: tuple(text.split(','))
  parser.add_argument('--peers', type=names, default=tuple(PEERS), help=', '.join(PEERS))
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--seconds', type=float, default=0.3, help='of the steps of one method in a round')
  parser.add_argument('--timeout', type=float, default=1800, help='seconds that a peer may take')
  parser.add_argument('--core', type=int, help='on which the processes run; the last one unless given')
  parser.add_argument(
    '--out', type=pathlib.Path, help='folder for a .json by peer and for peers.md, of all that are there'
  )
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  parser.add_argument('--result', type=pathlib.Path, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker is not None:
    return worker(args.worker, args)
  if unknown := [name for name in args.peers if name not in PEERS]:
    parser.error(f'{", ".join(unknown)} unknown: choose from {", ".join(PEERS)}')
  core = args.core
  if core is None and hasattr(os, 'sched_getaffinity'):
    core = max(os.sched_getaffinity(0))
  about = {
    'command': ' '.join(['python benchmarks/speed/peers.py', *sys.argv[1:]]),
    'device': device_name(),
    'date': datetime.date.today().isoformat(),
    'batch': args.batch,
    'rounds': args.rounds,
  }
  arguments = [f'--batch={args.batch}', f'--rounds={args.rounds}', f'--seconds={args.seconds}']
  found = {}
  for name in args.peers:
    found[name] = in_own_process(name, arguments, core, args.timeout)
    if args.out is not None:
      args.out.mkdir(parents=True, exist_ok=True)
      (args.out / f'{name}.json').write_text(json.dumps({**about, **found[name]}, indent=1) + '\n')
      files = [(peer, args.out / f'{peer}.json') for peer in PEERS]
      found = {peer: json.loads(file.read_text()) for peer, file in files if file.exists()}
      (args.out / 'peers.md').write_text(report(about, found))
  print(report(about, found))


if __name__ == '__main__':
  main()
