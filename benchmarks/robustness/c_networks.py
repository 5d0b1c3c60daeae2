"""C code of random small networks beside integer inference: layers, strides, paddings, pools, sums, bits per channel.

    python benchmarks/robustness/c_networks.py --networks=100 --out=/tmp/c_networks

Each network is written as C, compiled with warnings as errors and both sanitizers, and run on random images; its
outputs have to be those of integer inference, to the last bit.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.robustness import random_networks
from fracbits_jax.export import c_format
from fracbits_jax.export.source import Source, source_of
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

FLAGS = ('-std=c99', '-pedantic', '-Wall', '-Wextra', '-Werror')
SANITIZERS = ('-fsanitize=address,undefined', '-fno-sanitize-recover=all')
EXAMPLES = 4


class Network(nn.Module):
  """A network that a seed draws: blocks of convolutions, sums, pools and moves, and a dense layer."""

  seed: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    rng = np.random.default_rng(self.seed)
    scheme, granularity = str(rng.choice(['original', 'modified', 'lsq'])), str(rng.choice(['layer', 'kernel']))
    how = dict(kernel_ranges=random_networks.ranges_of(self.seed, scheme))
    how['kernel_levels'] = random_networks.levels_of(self.seed, scheme)
    how['input_offset'] = random_networks.has_offset(self.seed, scheme)
    quant = QuantConfig(scheme=scheme, granularity=granularity, **how)

    def conv(x: jax.Array, features: int, **how: Any) -> jax.Array:
      signed = bool(rng.random() < 0.3)
      return QuantConv(features, quant=dataclasses.replace(quant, signed_input=signed), **how)(x)

    def norm(x: jax.Array) -> jax.Array:
      return nn.BatchNorm(use_running_average=True)(x) if rng.random() < 0.7 else x

    whole = dataclasses.replace(quant, granularity='layer', kernel_bits=8)
    first = dataclasses.replace(whole, input_bits=8, weight_only=True)
    x = QuantConv(int(rng.integers(2, 9)), (3, 3), quant=first, name='stem')(x)
    x = nn.relu(norm(x))
    for _ in range(int(rng.integers(1, 4))):
      channels = x.shape[-1]
      kind = rng.choice(['conv', 'pointwise', 'depthwise', 'grouped', 'residual', 'max', 'average', 'two', 'pad'])
      size, stride = int(rng.choice([1, 2, 3, 5])), int(rng.choice([1, 1, 2]))
      padding = str(rng.choice(['SAME', 'VALID'])) if min(x.shape[1:3]) > 5 else 'SAME'
      if kind == 'conv':
        dilation = int(rng.choice([1, 1, 2]))
        x = conv(x, int(rng.integers(1, 40)), kernel_size=(size, 3), strides=stride, padding=padding,
                 kernel_dilation=dilation if padding == 'SAME' else 1, use_bias=bool(rng.random() < 0.5))  # fmt: skip
      elif kind == 'pointwise':
        x = conv(x, int(rng.integers(1, 70)), kernel_size=(1, 1))
      elif kind == 'depthwise':
        times = int(rng.choice([1, 1, 2]))
        x = conv(x, channels * times, kernel_size=(size, size), strides=stride, feature_group_count=channels)
      elif kind == 'grouped':
        groups = 2 if channels % 2 == 0 else 1
        x = conv(x, 6 * groups, kernel_size=(3, 3), feature_group_count=groups, padding=((2, 0), (0, 1)))
      elif kind == 'residual':
        y = nn.relu(norm(conv(x, channels, kernel_size=(3, 3))))
        x = x + norm(conv(y, channels, kernel_size=(1, 1)))
      elif kind == 'two':
        x = conv(x, 12, kernel_size=(1, 1)) + norm(conv(x, 12, kernel_size=(3, 3)))
      elif kind == 'max':
        x = nn.max_pool(nn.relu(x), (2, 3), strides=(stride, 2), padding='SAME')
      elif kind == 'average':
        x = nn.avg_pool(nn.relu(x), (2, 2), strides=(2, 2), padding='SAME')
      else:
        x = jnp.pad(x[:, ::2], ((0, 0), (0, 1), (1, 0), (0, 2)))
      x = nn.relu(norm(x)) if rng.random() < 0.7 else norm(x)
    x = x.mean((1, 2)) if rng.random() < 0.5 else x.reshape(x.shape[0], -1)
    return QuantDense(3, quant=dataclasses.replace(whole, signed_input=True), name='classifier')(x)


def network(seed: int) -> Source:
  """A network with drawn weights, statistics, clips, and bits from 1 to 8, with some channels at 0."""
  rng = np.random.default_rng((seed, 1))
  shape = (1, int(rng.integers(5, 12)), int(rng.integers(5, 12)), int(rng.choice([1, 3])))
  model = Network(seed)
  variables = model.init(jax.random.key(seed), jnp.zeros(shape))

  def drawn(path: Any, x: jax.Array) -> jax.Array:
    name = path[-1].key
    if path[0].key == 'bits':
      least = 0 if name == 'kernel' and x.ndim else 1
      return jnp.asarray(rng.integers(least, 9, x.shape), jnp.float32)
    if name == 'var':
      return jnp.asarray(rng.uniform(0.5, 4, x.shape) * 100, jnp.float32)
    if name in ('mean', 'bias'):
      return jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
    if name == 'scale':
      return jnp.asarray(rng.uniform(-1.5, 3, x.shape) * 4, jnp.float32)
    if name == 'alpha':
      alpha = rng.uniform(0.5, 6)
      return jnp.asarray([alpha, alpha * rng.uniform(-1.2, 1.2)] if x.ndim else alpha, jnp.float32)
    return x

  variables = jax.tree_util.tree_map_with_path(drawn, variables)
  source = source_of(model, variables, jnp.zeros(shape), name=f'network{seed}')
  return source


def differs(source: Source, folder: pathlib.Path, seed: int, compiler: str = 'gcc', flags: Sequence[str] = ()) -> str:
  """Writes, compiles and runs a network; says what is wrong, or nothing."""
  shape = source.graph.input_shape[1:]
  examples = np.random.default_rng(seed).integers(0, 256, (EXAMPLES, *shape))
  c_format.write(source, folder, examples=examples)
  program = folder / 'program'
  command = [compiler, *FLAGS, *flags, '-o', str(program), *map(str, sorted(folder.glob('*.c')))]
  compiled = subprocess.run(command, capture_output=True, text=True)
  if compiled.returncode:
    return compiled.stderr[:400]
  run = subprocess.run([str(program)], capture_output=True, text=True)
  return '' if run.returncode == 0 else (run.stdout + run.stderr)[:400]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--networks', type=int, default=100)
  parser.add_argument('--first', type=int, default=0, help='the first seed')
  parser.add_argument('--out', required=True, help='a folder for the code')
  args = parser.parse_args()
  wrong = refused = 0
  for seed in range(args.first, args.first + args.networks):
    try:
      problem = differs(network(seed), pathlib.Path(args.out) / str(seed), seed, flags=('-O1', *SANITIZERS))
    except ValueError as error:
      refused += 1
      print(f'{seed}: refused: {error}', flush=True)
      continue
    if problem:
      wrong += 1
      print(f'{seed}: {problem}', flush=True)
  print(f'{args.networks} networks: {args.networks - wrong - refused} equal, {refused} refused, {wrong} different')
  return wrong > 0


if __name__ == '__main__':
  sys.exit(main())
