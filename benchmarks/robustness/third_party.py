"""Networks from packages that others wrote, quantized as they are: what is found, counted, learned and exported.

    pip install -e '.[third_party]'
    python benchmarks/robustness/third_party.py --results=third_party.jsonl
    python benchmarks/robustness/third_party.py --only=bert,gpt2
    python benchmarks/robustness/third_party.py --results=third_party.jsonl --report

Every network has a tiny size and random parameters. For each: the parameters that `quantize_model` takes for weights,
and its multiply-accumulates, beside a count of their own over the jaxpr (`benchmarks/shared/count.py`); the distance of
its outputs from the float ones with 8 and with 16 bits everywhere; how many bit-widths have a derivative that is finite
and not zero; what share of a budget of 4 bits is used by a policy, for BitOPs and for size; the time to quantize; and
the formats that it is exported in with the answers of the network.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import traceback
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'XLA_FLAGS', '--xla_backend_optimization_level=0'
)  # each program is compiled and runs a few times
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from benchmarks.robustness import foreign_exports, foreign_networks
from benchmarks.shared import count, foreign
from fracbits_jax import cost, policy
from fracbits_jax.program import coverage


def measure(name: str, formats: tuple[str, ...]) -> dict[str, Any]:
  """Everything that is asked of a network, as a row of the results."""
  network = foreign_networks.build(name)
  function, params, inputs = network.in_float()
  counted = count.count(function, params, inputs)
  expected = foreign.flat(jax.jit(function)(params, inputs))
  begin = time.perf_counter()
  quantized = network.quantized()
  seconds = time.perf_counter() - begin
  found = quantized.network
  covered = coverage.measure(found, quantized.program())
  table = quantized.table()
  weights = {path for weight in found.weights.values() for path in weight.params}
  wanted = counted.weights | counted.tables
  answers = foreign.answers(quantized, expected)
  rng = np.random.default_rng(0)
  drawn = cost.fill_bits(table, lambda layer, which, shape, choices: rng.uniform(2, 6, shape))
  budgets = {}
  for metric in ('bitops', 'size'):
    chosen = policy.discretize(drawn, table, cost.budget(metric, table, equivalent_bits=4))
    budgets[metric] = float(chosen.cost / chosen.target)
  return {
    'network': name,
    'what': foreign_networks.describe(name),
    'weights': sum(len(weight.names()) for weight in found.weights.values() if not weight.is_product),
    'names': [weight.name for weight in found.weights.values() if not weight.is_product],
    'parameters': [len(weights & wanted), len(wanted)],
    'missed': sorted(wanted - weights),
    'beyond': sorted(weights - wanted - counted.merged),
    'macs': [covered.macs, counted.macs],
    'float': {path: size for path, size in covered.left.items() if len(params[path].shape) > 1},
    'notes': list(covered.notes),
    'errors': {f'{width:g}': error for width, error in answers.errors.items()},
    'bits': len(answers.gradients),
    'silent': sorted({*answers.silent} - {*network.silent}),
    'frozen': sorted({*answers.silent} & {*network.silent}),
    'budgets': budgets,
    'seconds': seconds,
    'formats': foreign_exports.verdicts(quantized, formats),
  }


def is_fine(row: dict[str, Any]) -> bool:
  """Whether everything but the formats is as it should be."""
  if 'error' in row:
    return False
  (found, wanted), (macs, counted) = row['parameters'], row['macs']
  return (
    found == wanted
    and not row['beyond']
    and macs == counted
    and not row['silent']
    and row['errors']['16'] < 1e-3
    and all(share <= 1 for share in row['budgets'].values())
  )


def line(row: dict[str, Any]) -> str:
  """A row of the table in the documentation."""
  if 'error' in row:
    return f'| {row["network"]} | {row["error"]} |'
  (found, wanted), (macs, counted) = row['parameters'], row['macs']
  errors, budgets, formats = row['errors'], row['budgets'], row['formats']
  exported = ', '.join(kind for kind, verdict in formats.items() if verdict.startswith('equal')) or '-'
  cells = (
    row['network'], row['what'], f'{found}/{wanted}', f'{macs:,}' if macs == counted else f'{macs:,} of {counted:,}',
    f'{errors["8"]:.1%}', f'{errors["16"]:.1e}', _learned(row),
    f'{budgets["bitops"]:.3f}', f'{budgets["size"]:.3f}', f'{row["seconds"]:.1f}', exported,
  )  # fmt: skip
  return f'| {" | ".join(cells)} |'


def _learned(row: dict[str, Any]) -> str:
  live = row['bits'] - len(row['silent']) - len(row['frozen'])
  return f'{live}/{row["bits"]}' + (f', {len(row["frozen"])} stopped by the network' if row['frozen'] else '')


HEAD = """\
| network | what it is | weights found | multiply-accumulates | error, 8 bits | 16 bits | bits with gradient | \
BitOPs/target | size/target | s to quantize | exported, equal |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
  """Prints a row for each network as it goes; 1 where something is wrong."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--only', default=','.join(foreign_networks.NAMES), help='names, joined by commas')
  parser.add_argument(
    '--formats', default=','.join(foreign_exports.FORMATS), help='formats to export, joined by commas, or none'
  )
  parser.add_argument('--results', type=pathlib.Path, help='a file of JSON lines, to which rows are added')
  parser.add_argument('--report', action='store_true', help='print the table of the results, and measure nothing')
  args = parser.parse_args()
  if args.report:
    rows = {row['network']: row for row in map(json.loads, args.results.read_text().splitlines())}
    print(HEAD, *(line(rows[name]) for name in foreign_networks.NAMES if name in rows), sep='\n')
    return int(not all(map(is_fine, rows.values())))
  fine = True
  print(HEAD)
  for name in args.only.split(','):
    try:
      row = measure(name, tuple(kind for kind in args.formats.split(',') if kind in foreign_exports.FORMATS))
    except Exception as error:
      traceback.print_exc()
      row = {'network': name, 'error': f'{type(error).__name__}: {error}'.split('\n')[0]}
    print(line(row), flush=True)
    for problem in ('missed', 'beyond', 'silent', 'notes'):
      if row.get(problem):
        print(f'  {problem}: {", ".join(row[problem])}')
    fine = is_fine(row) and fine
    if args.results is not None:
      with args.results.open('a') as file:
        file.write(json.dumps(row) + '\n')
    jax.clear_caches()
  return int(not fine)


if __name__ == '__main__':
  sys.exit(main())
