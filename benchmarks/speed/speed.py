"""Time and memory of a training step: what a search costs beside float training and beside a supernet.

python benchmarks/speed/speed.py [--platform=cpu] [--networks=mobilenet_v1,resnet18] [--growth] [--roofline] [--out=DIR]

| method | step |
|---|---|
| float | the network without quantization |
| uniform | every kernel and input at 4 bits, fixed when the step is compiled |
| layer | a search over 2 to 8 bits, one bit-width for each kernel and input, with a penalty on the BitOPs |
| kernel | the same with a bit-width for each output channel |
| finetune | after a search: integer bits in the collection `bits`, which do not change |
| supernet | the search by layer as a mixture of all allowed bit-widths, softmax-weighted (DNAS, EdMIPS) |
| supernet_remat | a supernet under `jax.checkpoint`, by which compilers may compute the copies again, not keep them |
| torch, torch_last | the float network in PyTorch, run eagerly, by channels first and by channels last |

A supernet has for each kernel and each input one quantized copy x_i at every allowed bit-width b_i, and computes with
sum_i softmax(l)_i x_i. Here its logits are l_i = -(b - b_i)^2 of one learned b, which costs what free logits do, up to
a few scalars. Gradients are straight-through, each copy's as in this project, and autodiff does the rest.

All methods make one step of SGD with Nesterov's momentum on the same shapes, and take turns within a round, as many
steps each as fill a fifth of a second, after some rounds that do not count. The ratio to float is taken within a round;
its median, least and largest value over the rounds are given. Memory is what XLA plans for the compiled step: its
temporaries, and its peak with parameters, optimizer state and batch. Nothing else should run: PyTorch's threads wait
for each other in a loop, and on a CPU that is shared its rows can be tens of times too slow.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks.shared.supernet import mixtures  # noqa: E402
from benchmarks.speed.speed_tables import LABELS, picture, report  # noqa: E402
from fracbits_jax import cost, models  # noqa: E402
from fracbits_jax.fast import platforms  # noqa: E402
from fracbits_jax.layers import QuantConfig  # noqa: E402
from fracbits_jax.train.penalty import Penalty  # noqa: E402

CHOICES = tuple(range(2, 9))
BITS = 4
DEFAULT_METHODS = tuple(m for m in LABELS if m != 'supernet_remat')
MIN_SECONDS = 0.2
WARM_UP = 2  # steps of a method, then rounds of all of them: on a CPU the memory kept grows for some steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What a step is measured at."""

  network: str
  batch: int
  image_size: int
  dtype: str
  choices: tuple[int, ...] = CHOICES
  num_classes: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A compiled step: `run(steps)` makes that many, waits for them and returns the last loss."""

  run: Callable[[int], float]
  facts: dict[str, float]  # seconds to compile, bytes, what XLA counts


def quant_config(method: str, choices: tuple[int, ...]) -> QuantConfig | None:
  searched = QuantConfig(choices=choices, init_bits=BITS + 0.5)
  return {
    'float': lambda: None,
    'uniform': lambda: QuantConfig(kernel_bits=BITS, input_bits=BITS),
    'kernel': lambda: dataclasses.replace(searched, granularity='kernel'),
    'finetune': lambda: dataclasses.replace(searched, init_bits=BITS, learned=False),
  }.get(method, lambda: searched)()


def supernet(remat: bool) -> contextlib.AbstractContextManager:
  """While this context is open, layers with learned bits are mixtures of all allowed bit-widths."""
  nearness = lambda bits, choices: jax.nn.softmax(-jnp.square(bits - jnp.asarray(choices, jnp.float32)))
  return mixtures(nearness, remat=remat)


def make_step(method: str, setting: Setting) -> Step:
  """Compiles the training step of a method and makes its state."""
  quant = quant_config(method, setting.choices)
  model = models.create(setting.network, setting.num_classes, quant, dtype=jnp.dtype(setting.dtype))
  shape = (setting.batch, setting.image_size, setting.image_size, 3)
  learns = method in ('layer', 'kernel', 'supernet', 'supernet_remat')
  penalty = None
  if learns:
    table = cost.trace(model, shape)
    penalty = Penalty(budget=cost.budget('bitops', table, equivalent_bits=BITS), layers=table, kappa=1.0)
    lowest, highest = cost.bits_range(table)
  optimizer = optax.sgd(0.01, 0.9, nesterov=True)

  def split(state):
    """What is trained, and what is only held."""
    params, bits = {'params': state['params']}, {'bits': state['bits']}
    return ({**params, **bits}, {}) if learns else (params, bits)

  def step(state, images, labels):
    trained, held = split(state)

    def loss_function(trained):
      variables = {**trained, **held, 'batch_stats': state['batch_stats']}
      logits, updated = model.apply(variables, images, train=True, mutable=['batch_stats'])
      loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels))
      if penalty is not None:
        loss += penalty(trained['bits'], jnp.float32(0))[0]
      return loss, updated['batch_stats']

    (loss, batch_stats), gradients = jax.value_and_grad(loss_function, has_aux=True)(trained)
    updates, opt_state = optimizer.update(gradients, state['opt_state'], trained)
    trained = optax.apply_updates(trained, updates)
    if learns:
      trained['bits'] = jax.tree.map(jnp.clip, trained['bits'], lowest, highest)
    return {**trained, **held, 'batch_stats': batch_stats, 'opt_state': opt_state}, loss

  images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.float32)
  labels = jnp.arange(setting.batch) % setting.num_classes
  is_supernet = method in ('supernet', 'supernet_remat')
  with supernet(method == 'supernet_remat') if is_supernet else contextlib.nullcontext():
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    state = {'bits': {}, **variables}
    state['opt_state'] = optimizer.init(split(state)[0])
    jitted = jax.jit(step, donate_argnums=0, compiler_options=platforms.compiler_options())
    start = time.perf_counter()
    compiled = jitted.lower(state, images, labels).compile()
    compile_seconds = time.perf_counter() - start
  held = [state]

  def run(steps: int) -> float:
    for _ in range(steps):
      held[0], loss = compiled(held[0], images, labels)
    jax.block_until_ready(held[0])
    return float(loss)

  return Step(run=run, facts={'compile_s': compile_seconds, **plan(compiled)})


def plan(compiled: Any) -> dict[str, float]:
  """What XLA plans for and counts in a compiled step, as far as the platform tells."""
  memory = compiled.memory_analysis()
  total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  peak = getattr(memory, 'peak_memory_in_bytes', 0)  # on the CPU without the temporaries
  counted = compiled.cost_analysis() or {}
  return {
    'temp_bytes': memory.temp_size_in_bytes,
    'peak_bytes': peak if peak >= memory.temp_size_in_bytes else total - memory.alias_size_in_bytes,
    **{
      key: counted[name] for key, name in (('flops', 'flops'), ('bytes_accessed', 'bytes accessed')) if name in counted
    },
  }


def torch_networks() -> Any:
  """The module with PyTorch's networks; `None` where PyTorch is missing."""
  try:
    from benchmarks.speed import torch_networks as module
  except ImportError:
    return None
  return module


def measure(setting: Setting, methods: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
  """Rows by method: what was planned, the seconds of each round, and what they come to."""
  steps = {}
  for method in methods:
    if method in ('torch', 'torch_last'):
      module = torch_networks()
      if module is None or setting.network not in module.names() or module.device(jax.default_backend()) is None:
        continue
      how = {name: getattr(setting, name) for name in ('batch', 'image_size', 'dtype')}
      how |= {'platform': jax.default_backend(), 'channels_last': method == 'torch_last'}
      run = module.make_run(setting.network, **how)
      steps[method] = Step(run=run, facts={})
    else:
      steps[method] = make_step(method, setting)
    log(f'{setting.network} {method}: ' + ', '.join(f'{k} {v:.3g}' for k, v in steps[method].facts.items()))
  counts, seconds = {}, {method: [] for method in steps}
  for method, step in steps.items():
    step.run(WARM_UP)
    counts[method] = math.ceil(MIN_SECONDS / timed(step.run, 1))
  for i in range(-WARM_UP, rounds):
    for method in list(steps)[:: 1 if i % 2 == 0 else -1]:
      taken = timed(steps[method].run, counts[method])
      if i >= 0:
        seconds[method].append(taken)
  rows = {}
  for method, step in steps.items():
    ratios = [s / f for s, f in zip(seconds[method], seconds['float'], strict=True)]
    median = statistics.median(seconds[method])
    rows[method] = {
      **step.facts,
      'steps_per_round': counts[method],
      'seconds': seconds[method],
      'median_s': median,
      'images_per_s': setting.batch / median,
      'ratio': statistics.median(ratios),
      'ratio_min': min(ratios),
      'ratio_max': max(ratios),
      'loss': step.run(1),
    }
    if not math.isfinite(rows[method]['loss']):
      log(f'{setting.network} {method}: the loss is {rows[method]["loss"]}')
  steps.clear()
  gc.collect()
  jax.clear_caches()
  return rows


def timed(run: Callable[[int], Any], count: int) -> float:
  """Seconds of one of `count` steps."""
  start = time.perf_counter()
  run(count)
  return (time.perf_counter() - start) / count


def growth(base: Setting, batches: Sequence[int], sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
  """Search and supernet beside float, where one of batch, image size and allowed bit-widths differs from `base`."""
  settings = [dataclasses.replace(base, batch=b) for b in batches]
  settings += [dataclasses.replace(base, image_size=s) for s in sizes]
  settings += [dataclasses.replace(base, choices=c) for c in ((4, 8), (2, 4, 6, 8), CHOICES)]
  settings = list(dict.fromkeys([*settings, base]))
  settings.sort(key=lambda s: (len(s.choices), s.image_size, s.batch))
  found = []
  for setting in settings:
    log(f'growth: batch {setting.batch}, images {setting.image_size}, {len(setting.choices)} bit-widths')
    rows = measure(setting, ('float', 'layer', 'supernet'), rounds)
    found.append({'setting': dataclasses.asdict(setting), 'rows': rows})
  return found


def roofline(dtype: str) -> dict[str, Any]:
  """What the device does at most: operations per second of a matrix product, bytes per second of an addition."""
  on_cpu = jax.default_backend() == 'cpu'
  rates = {}
  for n in (1024, 2048, 4096, *(() if on_cpu else (8192,))):
    a = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul, compiler_options=platforms.compiler_options()).lower(a, a).compile()
    rates[n] = 2 * n**3 / best(lambda product=product, a=a: product(a, a))
  size = 2 ** (26 if on_cpu else 28)
  add = jax.jit(lambda x: x + 1, donate_argnums=0, compiler_options=platforms.compiler_options())
  held = [jnp.zeros(size, jnp.float32)]

  def add_once():
    held[0] = add(held[0])
    return held[0]

  bandwidth = 2 * 4 * size / best(add_once)
  return {'flops_per_s': max(rates.values()), 'bytes_per_s': bandwidth, 'flops_per_s_by_size': rates}


def best(call: Callable[[], jax.Array], rounds: int = 5) -> float:
  """Seconds of one call, the least over some rounds."""

  def run(count: int) -> None:
    for _ in range(count):
      result = call()
    jax.block_until_ready(result)

  run(WARM_UP)
  count = math.ceil(MIN_SECONDS / timed(run, 1))
  return min(timed(run, count) for _ in range(rounds))


def bounds(setting: Setting, row: dict[str, Any], limits: dict[str, Any]) -> dict[str, float]:
  """The least time that a float step could take, by its operations and by the bytes that XLA counts."""
  model = models.create(setting.network, quant=QuantConfig())
  macs = sum(l.macs for l in cost.trace(model, (1, setting.image_size, setting.image_size, 3)))
  flops = 3 * 2 * macs * setting.batch
  times = {'flops_s': flops / limits['flops_per_s']}
  if 'bytes_accessed' in row:
    times['bytes_s'] = row['bytes_accessed'] / limits['bytes_per_s']
  bound = max(times.values())
  return {'flops': flops, **times, 'bound_s': bound, 'of_bound': row['median_s'] / bound}


def log(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def device_name() -> str:
  """The device, and for a CPU its model and how many cores this process may use."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    return kind
  with contextlib.suppress(OSError, StopIteration):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kind = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return f'{kind}, {cores} cores'


def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
  def parse(text: str) -> tuple[str, ...]:
    given = tuple(text.split(','))
    if unknown := [name for name in given if name not in known]:
      raise argparse.ArgumentTypeError(f'{", ".join(unknown)} unknown: choose from {", ".join(known)}')
    return given

  return parse


def numbers(text: str) -> tuple[int, ...]:
  return tuple(int(part) for part in text.split(','))


def main() -> None:
  platforms.keep_memory()
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--platform', choices=('cpu', 'gpu', 'tpu'), help="JAX's default unless given")
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='in which layers compute')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--networks', type=names(models.names()), default=('mobilenet_v1', 'mobilenet_v2', 'resnet18'))
  parser.add_argument('--methods', type=names(tuple(LABELS)), default=DEFAULT_METHODS, help=', '.join(LABELS))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--roofline', action='store_true', help='how far the float step is from what the device can do')
  parser.add_argument('--growth', action='store_true', help='by batch, image size and number of allowed bit-widths')
  parser.add_argument('--growth_network', choices=models.names(), default='mobilenet_v1')
  parser.add_argument('--growth_batches', type=numbers, default=(8, 16, 32))
  parser.add_argument('--growth_sizes', type=numbers, default=(96, 160, 224))
  parser.add_argument('--out', type=pathlib.Path, help='folder for speed.json, speed.md and speed.png')
  args = parser.parse_args()
  if args.platform is not None:
    jax.config.update('jax_platforms', {'gpu': 'cuda'}.get(args.platform, args.platform))
  jax.config.update('jax_enable_compilation_cache', False)  # or what it takes to compile would be what it takes to read
  module = torch_networks()
  if module is not None and module.device('gpu') is not None:
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch needs memory of the same device
  result = {
    'command': ' '.join(['python benchmarks/speed/speed.py', *sys.argv[1:]]),
    'device': device_name(),
    'jax': jax.__version__,
    'torch': None if module is None else module.version(),
    'date': datetime.date.today().isoformat(),
    **{name: getattr(args, name) for name in ('batch', 'image_size', 'dtype', 'rounds')},
    'networks': {},
  }

  def save() -> None:
    if args.out is not None:
      args.out.mkdir(parents=True, exist_ok=True)
      (args.out / 'speed.json').write_text(json.dumps(result, indent=1) + '\n')
      (args.out / 'speed.md').write_text(report(result))

  at = functools.partial(Setting, batch=args.batch, image_size=args.image_size, dtype=args.dtype)
  if args.roofline:
    result['roofline'] = {**roofline(args.dtype), 'networks': {}}
  methods = tuple(dict.fromkeys(('float', *args.methods)))
  for network in args.networks:
    rows = result['networks'][network] = measure(at(network=network), methods, args.rounds)
    if args.roofline:
      result['roofline']['networks'][network] = bounds(at(network=network), rows['float'], result['roofline'])
    save()
  if args.growth:
    base = at(network=args.growth_network)
    result['growth'] = growth(base, args.growth_batches, args.growth_sizes, args.rounds)
    save()
  print(report(result))
  if args.out is not None:
    try:
      picture(result, args.out / 'speed.png')
    except ImportError:
      log('no picture: matplotlib is missing')


if __name__ == '__main__':
  main()
