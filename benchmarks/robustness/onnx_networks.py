"""ONNX and QONNX files of small random networks: whether they load, and give the networks' answers.

    python benchmarks/robustness/onnx_networks.py --networks=300
    python benchmarks/robustness/onnx_networks.py --networks=100 --format=qonnx

An `onnx` file is run by onnxruntime at its defaults, at them with the option for exact products, and without any
optimization; a `qonnx` file by the package qonnx, as it is and after that package's `cleanup`.
"""

import argparse
import collections
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import onnx
import onnxruntime
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.robustness import random_networks
from fracbits_jax.export import onnx_check, onnx_format, qonnx_format
from fracbits_jax.export.floats import in_float32
from fracbits_jax.export.onnx_check import EXACT_ON_X64, Written
from fracbits_jax.export.source import Source
from fracbits_jax.graph.graph import Graph, evaluate

ONNX_WIDTHS, QONNX_WIDTHS = (2, 4, 8), (1, 2, 3, 4, 5, 8)
_OFF = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
SESSIONS = {
  'defaults': {'entries': ()},
  'exact': {'entries': (EXACT_ON_X64,)},
  'no optimization': {'entries': (EXACT_ON_X64,), 'graph_optimization_level': _OFF},
}
CLEANED = {'as it is': lambda model: model, 'cleaned up': cleanup_model}


def onnx_verdicts(source: Source, x: np.ndarray) -> Iterator[tuple[str, str]]:
  """How the file of a network runs, and `equal`, `equal but for ties`, or what is wrong."""
  file, expected = onnx_format.built(source), _results(in_float32(source.graph), x)
  for how, options in SESSIONS.items():
    run = functools.partial(onnx_check.run, orders=file.orders, inputs=x, **options)
    yield how, _verdict(file, x, expected, run)


def qonnx_verdicts(source: Source, x: np.ndarray) -> Iterator[tuple[str, str]]:
  """The same of its QONNX file."""
  graph = in_float32(source.graph)
  file, expected = qonnx_format.built(source, graph.count(graph.given(x))), _results(graph, x)
  for how, clean in CLEANED.items():
    yield how, _verdict(file, x, expected, functools.partial(_run_qonnx, file.orders, x, clean))


def _results(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
  """What a graph gives, as one program: by themselves its operations take longer to compile than all together."""
  return [np.asarray(y) for y in jax.tree.leaves(jax.jit(lambda x: evaluate(graph, x)[0])(x))]


def _run_qonnx(orders: Mapping[str, Sequence[int]], x: np.ndarray, clean: Callable, content: bytes) -> list[np.ndarray]:
  model = clean(ModelWrapper(onnx.load_from_string(content)))
  given = zip(model.graph.input, onnx_check.as_read(orders, x).values(), strict=True)  # which `cleanup` names anew
  found = execute_onnx(model, {value.name: array for value, array in given})
  return [found[output.name] for output in model.graph.output]


def _verdict(file: Written, x: np.ndarray, expected: list[np.ndarray], run: Callable[[bytes], list[np.ndarray]]) -> str:
  try:
    if onnx_check.all_close(run(file.content), expected):
      return 'equal'
    found = run(file.with_codes())
  except Exception as error:  # whatever a runtime raises is what is looked for
    return f'{type(error).__name__}: {error}'
  codes = dict(zip(file.places, found[len(expected) :], strict=True))
  wrong = onnx_check.differences_of_codes(file, x, found[: len(expected)], codes)
  return wrong or 'equal but for ties'


VERDICTS = {'onnx': (onnx_verdicts, ONNX_WIDTHS), 'qonnx': (qonnx_verdicts, QONNX_WIDTHS)}


def main() -> int:
  """Prints a line for each wrong file, and the counts."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--networks', type=int, default=300)
  parser.add_argument('--first', type=int, default=0, help='the first seed')
  parser.add_argument('--format', choices=tuple(VERDICTS), default='onnx')
  args = parser.parse_args()
  verdicts, widths = VERDICTS[args.format]
  counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  used: collections.Counter = collections.Counter()
  begin, wrong = time.perf_counter(), 0
  for seed in range(args.first, args.first + args.networks):
    source, x = random_networks.draw(seed, widths=widths)
    used.update(set(source.model.operations))
    for how, verdict in verdicts(source, x):
      fine = verdict in ('equal', 'equal but for ties')
      counts[how][verdict if fine else 'wrong'] += 1
      wrong += not fine
      if not fine:
        print(f'seed {seed}, {how}: {verdict[-300:]} {source.model.quant.scheme} {source.model.operations}', flush=True)
    if seed % 50 == 49:
      jax.clear_caches()
  print(f'{args.networks} networks of {len(used)} kinds of operations, each in {min(used.values())} or more')
  for how, found in counts.items():
    print(f'{how}: ' + ', '.join(f'{count} {verdict}' for verdict, count in found.items()))
  print(f'{time.perf_counter() - begin:.0f} s')
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
