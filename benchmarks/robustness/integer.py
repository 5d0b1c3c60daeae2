"""Integer inference of random networks beside float64.

    python benchmarks/robustness/integer.py [--networks=200] [--seed=0]

Small networks of convolutions with all kinds of padding, groups, dilations and strides, transposed ones, pools, slices,
pads, reshapes, concatenations, sums, branches of squeeze and excitation. Their batch norms have variances from 1e-12 to
1e12, channel by channel, and gammas of either sign and 0. Clips are where some channel of the inputs has its values, so
that codes are not all the first or the last. Each layer is given the codes of float64, and its own are compared with
those: they have to be equal, unless float64 is within `rescale.TOLERANCE` of a step of a tie, or the network has to be
refused by one sentence. Prints the counts; ends with status 1 where anything else came about.
"""

import argparse
import collections
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

from benchmarks.robustness import random_networks  # noqa: E402
from fracbits_jax.export import comparison, integer, rescale  # noqa: E402
from fracbits_jax.fast import platforms  # noqa: E402
from fracbits_jax.graph.capture import capture  # noqa: E402
from fracbits_jax.graph.graph import Graph, Node  # noqa: E402
from fracbits_jax.graph.grid import Grid  # noqa: E402
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense, quantized_class  # noqa: E402

SHAPE = (2, 8, 8, 3)
CHANNELS = 4
BLOCKS = (
  'same', 'circular', 'reflect', 'valid', 'strided', 'grouped', 'depthwise', 'dilated', 'transposed', 'max_pool',
  'avg_pool', 'residual', 'difference', 'scaled residual', 'concatenated', 'sliced', 'padded', 'edge', 'to_depth',
  'flipped', 'shuffled', 'squeeze', 'relu6', 'norm', 'upsampled', 'largest', 'twice',
)  # fmt: skip


class Net(nn.Module):
  """A network of blocks; `bits` and `scheme` are those of all inner layers."""

  blocks: tuple[str, ...]
  scheme: str = 'original'
  granularity: str = 'layer'
  ranges: str = 'layer'
  offset: bool = False
  levels: str = 'twos_complement'
  signed: bool = False
  bits: int = 8
  mean: float = 0.0
  head: str = 'mean'
  epsilon: float = 0.0

  def setup(self):
    how = dict(scheme=self.scheme, granularity=self.granularity, kernel_ranges=self.ranges, input_offset=self.offset)
    how['kernel_levels'] = self.levels
    self.quant = QuantConfig(**how, signed_input=self.signed, init_bits=self.bits)

  @nn.compact
  def __call__(self, x):
    on_images = QuantConfig(scheme=self.scheme, kernel_bits=8, input_bits=8, weight_only=True)
    x = QuantConv(CHANNELS, (3, 3), padding=1, use_bias=False, quant=on_images)(x - self.mean if self.mean else x)
    x = self.end(x)
    for name in self.blocks:
      x = self.block(name, x)
    if self.head == 'mean':
      x = x.mean((1, 2))
    elif self.head == 'max':
      x = x.max((1, 2))
    else:
      x = x.reshape(x.shape[0], -1)
    return QuantDense(3, quant=dataclasses.replace(self.quant, kernel_bits=8))(x)

  def norm(self, x):
    return nn.BatchNorm(use_running_average=True, epsilon=self.epsilon)(x)

  def end(self, x):
    x = self.norm(x)
    return x if self.signed else nn.relu(x)

  def conv(self, x, size=3, features=None, padding='SAME', kind=QuantConv, **how):
    return kind(features or x.shape[-1], (size, size), padding=padding, use_bias=False, quant=self.quant, **how)(x)

  def block(self, name: str, x: jax.Array) -> jax.Array:
    """One block."""
    conv, end, c = self.conv, self.end, x.shape[-1]
    if name in ('same', 'circular', 'reflect', 'valid'):
      return end(conv(x, padding=name.upper())) if min(x.shape[1:3]) > 2 else end(conv(x, 1))
    simple = {
      'strided': lambda: end(conv(x, strides=2)),
      'grouped': lambda: end(conv(x, feature_group_count=2 if c % 2 == 0 else 1)),
      'depthwise': lambda: end(conv(x, feature_group_count=c)),
      'dilated': lambda: end(conv(x, kernel_dilation=2)),
      'transposed': lambda: end(conv(x, 2, kind=quantized_class(nn.ConvTranspose), strides=(2, 2))),
      'max_pool': lambda: nn.max_pool(x, (2, 2), (2, 2), 'SAME'),
      'avg_pool': lambda: nn.avg_pool(x, (2, 2), (2, 2), 'SAME'),
      'residual': lambda: x + self.norm(conv(x)),
      'difference': lambda: nn.relu(self.norm(conv(x)) - x),
      'scaled residual': lambda: end(x + 0.1 * self.norm(conv(x, 1))),
      'concatenated': lambda: jnp.concatenate([x, end(conv(x, 1, 2))], -1),
      'sliced': lambda: x[:, 1:, :, : max(2, c - 1)] if x.shape[1] > 1 else x,
      'padded': lambda: jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))),
      'edge': lambda: jnp.concatenate([x[:, :1], x, x[:, -1:]], 1),
      'flipped': lambda: x[:, ::-1],
      'shuffled': lambda: x[..., jnp.arange(c)[::-1]] if c % 2 else _shuffled(x),
      'to_depth': lambda: _to_depth(x),
      'squeeze': lambda: x * nn.sigmoid(conv(nn.relu(conv(x.mean((1, 2), keepdims=True), 1, 2)), 1, c)),
      'relu6': lambda: jnp.minimum(nn.relu(x), 6.0),
      'norm': lambda: self.norm(x),
      'upsampled': lambda: jnp.repeat(x[:, :3], 2, axis=1),
      'largest': lambda: end(conv(x - x.max((1, 2), keepdims=True), 1)),
      'twice': lambda: end(conv(jnp.concatenate([x, x[..., :1]], -1), 1, CHANNELS)),
    }
    return simple[name]()


def _shuffled(x: jax.Array) -> jax.Array:
  n, h, w, c = x.shape
  return x.reshape(n, h, w, 2, c // 2).swapaxes(3, 4).reshape(n, h, w, c)


def _to_depth(x: jax.Array) -> jax.Array:
  n, h, w, c = x.shape
  if h % 2 or w % 2 or c > 8:
    return x
  return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)


def random_net(seed: int, blocks: Sequence[str] = BLOCKS) -> Net:
  """A network with one to four blocks."""
  rng = np.random.default_rng(seed)
  names = tuple(str(name) for name in rng.choice(blocks, rng.integers(1, 5)))
  scheme = str(rng.choice(['original', 'modified', 'lsq']))
  return Net(
    blocks=names,
    scheme=scheme,
    ranges=random_networks.ranges_of(seed, scheme),
    offset=random_networks.has_offset(seed, scheme),
    levels=random_networks.levels_of(seed, scheme),
    granularity=str(rng.choice(['layer', 'kernel'])),
    signed=bool(rng.random() < 0.3),
    bits=int(rng.choice([1, 2, 4, 8])),
    mean=float(rng.choice([0.0, 0.0, 103.5])),
    head=str(rng.choice(['mean', 'max', 'flat'])),
    epsilon=float(rng.choice([0.0, 1e-5])),
  )


def random_variables(net: nn.Module, seed: int, exponent: float) -> Any:
  """Variables of a network, with variances from 10^-exponent to 10^exponent.

  Half of the batch norms have one such channel, the others draw it for each channel.
  """
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(SHAPE))

  def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name, shape = str(path[-1].key), leaf.shape
    if name == 'var':
      var = 10.0 ** rng.uniform(-exponent, exponent, shape) if rng.random() < 0.5 else rng.uniform(0.5, 2, shape)
      var.flat[rng.integers(var.size)] = 10.0 ** rng.choice([-exponent, exponent, 0])
      found = var
    elif name == 'scale':
      found = rng.choice([1.0, 1.0, -1.0, 0.0], shape) * rng.uniform(0.5, 2, shape)
    elif name == 'mean':
      found = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 3, shape)
    elif path[0].key == 'bits':
      found = rng.integers(1, 9, shape) if shape else np.asarray(net.bits)
    elif name == 'alpha' and shape:
      found = np.array([1, rng.uniform(-1.2, 1.2)])
    elif name == 'kernel_alpha' and shape:
      found = 2 ** rng.uniform(-3, 1, shape)
    elif len(shape) > 1 or name == 'bias':
      found = rng.normal(size=shape)
    else:
      found = np.ones(shape)
    return np.asarray(found, np.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def images(seed: int) -> np.ndarray:
  """Images, integers from 0 to 255."""
  return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.float32)


def with_clips(graph: Graph, inputs: np.ndarray, seed: int) -> Graph:
  """The graph with clips where the values of some channel of the inputs lie."""
  rng = np.random.default_rng(seed)
  chosen: dict[str, Grid] = {}

  def choose(node: Node, before: np.ndarray) -> Grid:
    channels = np.abs(before.reshape(-1, before.shape[-1]))
    found = np.quantile(channels[:, rng.integers(channels.shape[1])], rng.choice([0.5, 0.9, 1.0]))
    alpha = float(np.float32(found if found > 0 and np.isfinite(found) else 1.0))
    chosen[node.output] = dataclasses.replace(node.params['grid'], alpha=alpha or 1.0)
    return chosen[node.output]

  comparison.in_doubles(graph, inputs, choose)
  with_grid = lambda node: {**node.params, 'grid': chosen[node.output]}
  nodes = [dataclasses.replace(node, params=with_grid(node)) if node.output in chosen else node for node in graph.nodes]
  return dataclasses.replace(graph, nodes=tuple(nodes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """How the codes of a network compare.

  Attributes:
    codes: how many were compared.
    different: how many of them are others.
    wrong: how many of those are further from a tie than they may be.
    farthest: for the different ones, the largest distance from a tie, in steps of their grid.
    in_float: operations in floating point.
    refusal: what a refused network is told.
  """

  codes: int = 0
  different: int = 0
  wrong: int = 0
  farthest: float = 0.0
  in_float: int = 0
  refusal: str = ''


def compared(graph: Graph, inputs: np.ndarray, *, compiled: bool = True) -> Found:
  """Compares the integers of a graph with float64; codes behind operations in float32 only within their rounding."""
  values, codes = comparison.in_doubles(graph, inputs)
  nodes = {node.output: node for node in graph.nodes if node.op == 'quantize'}
  try:
    if compiled:
      _, found = integer.inference(graph, keep=tuple(nodes))(inputs, codes)
    else:
      with jax.enable_x64(True):
        _, found = integer.Interpreter(graph, True)(inputs, tuple(nodes), codes)
  except ValueError as error:
    return Found(refusal=str(error).split('\n')[0])
  in_float = integer.float_operations(graph)
  exact = _not_behind(graph, set(in_float))
  total = collections.Counter()
  farthest = 0.0
  for name, node in nodes.items():
    if name not in exact:
      continue
    other = np.asarray(found[name]) != codes[name]
    distance = comparison.distance_from_tie(values[node.inputs[0]][other], node.params['grid'])
    total.update(codes=other.size, different=int(other.sum()), wrong=int((distance > rescale.TOLERANCE).sum()))
    farthest = max(farthest, float(distance.max(initial=0.0)))
  return Found(**total, farthest=farthest, in_float=len(in_float))


def _not_behind(graph: Graph, in_float: set[str]) -> set[str]:
  """The quantizers before which nothing is computed in float32, behind the last quantizers before them."""
  rough = set()
  for node in graph.nodes:
    from_rough = any(isinstance(x, str) and x in rough for x in node.inputs)
    if node.output in in_float or (from_rough and node.op != 'quantize'):
      rough.add(node.output)
  return {node.output for node in graph.nodes if node.op == 'quantize' and node.inputs[0] not in rough}


def study(seed: int, exponent: float, compiled: bool = True) -> tuple[Net, Found]:
  """One random network."""
  net, inputs = random_net(seed), images(seed)
  graph = capture(net, random_variables(net, seed, exponent), inputs)
  with np.errstate(all='ignore'):
    return net, compared(with_clips(graph, inputs, seed), inputs, compiled=compiled)


def main() -> int:
  """Prints the counts."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--networks', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--exponent', type=float, default=12.0, help='variances are from 10^-exponent to 10^exponent')
  args = parser.parse_args()
  platforms.keep_memory()
  total, reasons, farthest = collections.Counter(), collections.Counter(), 0.0
  for seed in range(args.seed, args.seed + args.networks):
    net, found = study(seed, args.exponent, compiled=False)
    total.update(networks=1, refused=bool(found.refusal), codes=found.codes, different=found.different)
    total.update(wrong=found.wrong, in_float=found.in_float > 0)
    farthest = max(farthest, found.farthest)
    if found.refusal:
      reasons[' '.join(found.refusal.split()[-8:])] += 1
    if found.refusal or found.different:
      print(f'{seed}: {net.blocks} {net.head}: {found}', flush=True)
  print(
    f'| {total["networks"]} | {total["refused"]} | {total["codes"]:,} | {total["different"]} | {farthest:.2g} | '
    f'{total["wrong"]} | {total["in_float"]} |'
  )
  for reason, count in reasons.items():
    print(f'{count} refused: ... {reason}')
  return int(total['wrong'] > 0)


if __name__ == '__main__':
  sys.exit(main())
