"""Networks that Qwix serves beside the networks themselves, layer by layer.

    python benchmarks/robustness/qwix_layers.py [--models=resnet20,vit_mini] [--images=64]

The networks have random weights, statistics and 4 or 8 bits drawn for each layer; the images are drawn as well. Each
layer is given the inputs that it has in the network, so that a rounding of the arithmetic is seen, and then what Qwix
gives before it. Ends with status 1 where a layer's outputs for the same inputs are further apart than one step of its
inputs moves them.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fracbits_jax import models
from fracbits_jax.export import qwix_format, qwix_serve
from fracbits_jax.export.source import Source, source_of
from fracbits_jax.fast import platforms
from fracbits_jax.layers import QuantConfig, wrap
from fracbits_jax.layers.linen import Quantized, watch_layers

_MOVED = 1e-4  # of the largest output of a layer: more than roundings of float32
_ONE_STEP = 1e-2


def random_source(name: str, images: np.ndarray) -> Source:
  """A network that comes along, with 4 and 8 bits."""
  model = models.create(name, num_classes=10, small_images=True, quant=QuantConfig(scheme='lsq', alpha_init=2.0))
  variables = jax.jit(model.init)(jax.random.key(0), images)
  if 'batch_stats' in variables:
    step = jax.jit(lambda v: model.apply(v, images, train=True, mutable=['batch_stats'])[1])
    for _ in range(8):
      variables = {**variables, **step(variables)}
  rng = np.random.default_rng(1)
  bits = jax.tree.map(lambda b: rng.choice([4, 8], b.shape).astype(np.float32), variables['bits'])
  return source_of(wrap.with_fixed_bits(model), {**variables, 'bits': bits}, images, name=name, input_range=(0, 255))


def given_the_same(source: Source, net: nn.Module, variables: Any, images: np.ndarray) -> dict[str, float]:
  """By layer, the largest difference of outputs for the inputs that the layer has in the network, of the largest."""
  seen: dict[tuple, tuple[jax.Array, jax.Array]] = {}
  with watch_layers(lambda module, x, y: seen.update({module.path: (x, y)})):
    source.model.apply(source.variables, images)
  found: dict[tuple, Any] = {}

  def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    path = context.module.path
    if context.method_name != '__call__' or path not in seen or path in found:
      return call(*args, **kwargs)
    found[path] = None  # a layer that is extended runs inside ours
    found[path] = call(jnp.asarray(seen[path][0]))
    return found[path]

  with nn.intercept_methods(intercept):
    net.apply(variables, jnp.asarray(images))
  return {'/'.join(path): _gap(found[path], y) for path, (_, y) in seen.items()}


def compare(name: str, images: np.ndarray) -> bool:
  """Prints what agrees; whether all is as it should be."""
  source = random_source(name, images)
  content, model = qwix_format.built(source)
  net, variables = qwix_serve.linen(content, model, images)
  gaps_by_layer = given_the_same(source, net, variables, images[:8])
  same = np.array([gap for layer, gap in gaps_by_layer.items() if f'params/{layer}/kernel' in content.qtypes])
  captured = dict(capture_intermediates=lambda module, _: isinstance(module, Quantized), mutable=['intermediates'])
  run = lambda of: jax.jit(lambda v, x: of.apply(v, x, **captured))
  found, inside = run(net)(variables, jnp.asarray(images))
  expected, expected_inside = run(source.model)(source.variables, jnp.asarray(images))
  moved = [
    np.mean(np.abs(a - b) > _MOVED * np.abs(b).max())
    for a, b in zip(_outputs(inside), _outputs(expected_inside), strict=True)
  ]
  gaps = np.abs(np.asarray(found) - expected).max(-1) / np.abs(expected).max()
  floats = jax.eval_shape(qwix_serve.float_network(model).init, jax.random.key(0), images)
  sizes = [qwix_serve.parameter_bytes(tree['params']) for tree in (variables, floats)]
  print(f'{name}: {len(content.rules)} layers in Qwix; parameters of {sizes[0]:,} bytes, {sizes[1]:,} in float')
  print(
    f'  given the same inputs: {np.sum(same < 2e-6)} of {len(same)} layers differ by less than 2e-6 of their largest '
    f'output, the worst by {same.max():.1e}'
  )
  print(f'  whole: outputs of layers that moved: {np.median(moved):.2%} in the median layer, {max(moved):.2%} at most')
  print(
    f'  logits: of {np.mean(gaps < 1e-5):.0%} of {len(images)} images within 1e-5 of the largest, of all within '
    f'{gaps.max():.1e}; {np.sum(found.argmax(-1) != expected.argmax(-1))} other classes'
  )
  return bool(same.max() < _ONE_STEP)


def _gap(found: Any, expected: Any) -> float:
  return float(np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-30))


def _outputs(tree: Mapping[str, Any]) -> list[np.ndarray]:
  return [np.asarray(x) for x in jax.tree.leaves(tree['intermediates'])]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--models', default='resnet20,vit_mini', help='names of models.create, linked by commas')
  parser.add_argument('--images', type=int, default=64)
  args = parser.parse_args()
  platforms.keep_memory()
  images = np.random.default_rng(0).integers(0, 256, (args.images, 32, 32, 3)).astype(np.float32)
  good = [compare(name, images) for name in args.models.split(',')]
  return 0 if all(good) else 1


if __name__ == '__main__':
  sys.exit(main())
