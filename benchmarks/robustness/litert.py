"""LiteRT files beside integer inference, layer by layer: which codes differ, and by how much.

    python benchmarks/robustness/litert.py --workdir=runs/digits [--images=100]
    python benchmarks/robustness/litert.py --model=mobilenet_v2 --kernel_bits=4

The codes of each layer's inputs that a runtime computes are compared with those of integer inference: where both go on
from the runtime's codes before them, so that one step of rounding is seen, and where each goes on from its own. A
float run is written with 8 bits everywhere. A network that comes along has random weights and calibrated ranges; with
kernels of 8 bits gammas of either sign, as no channel with -8 can be negated in four. Ends with status 1 where what a
convolution or a dense layer gives of codes is more than one code off.
"""

import argparse
import collections
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared import litert_codes, litert_runtimes
from benchmarks.shared.after_training import images_of, source_and_run
from fracbits_jax import models
from fracbits_jax.export import integer, litert_format
from fracbits_jax.export.litert_format import Written
from fracbits_jax.export.source import Source, source_of
from fracbits_jax.fast import platforms
from fracbits_jax.layers import QuantConfig, calibrate, wrap

_SHAPES = {'ds_cnn': (49, 10, 1), 'autoencoder': (640,)}
_MEANS = {'ds_cnn': (128,), 'autoencoder': (128,) * 640}


def random_source(name: str, *, kernel_bits: int, width: float, side: int, seed: int) -> tuple[Source, np.ndarray]:
  """A network that comes along, and images, at inputs of 8 bits and kernels of some."""
  rng = np.random.default_rng(seed)
  shape = (32, *_SHAPES.get(name, (side, side, 3)))
  images = rng.integers(0, 256, shape).astype(np.float32)
  plain = {} if name in _SHAPES else {'small_images': True}
  model = models.create(name, num_classes=10, width=width, image_mean=_MEANS.get(name, ()), **plain)
  quant = QuantConfig(scheme='lsq', choices=(kernel_bits, 8) if kernel_bits < 8 else (8,), input_choices=(8,))
  model = model.clone(quant=dataclasses.replace(quant, quantize_residuals=model.has_residuals()))
  variables = jax.jit(model.init)(jax.random.key(seed), images)
  step = jax.jit(lambda v: model.apply(v, images, train=True, mutable=['batch_stats'])[1])
  for _ in range(20):
    variables = {**variables, **step(variables)}
  signs = [1.0, 1.0, 1.0, 1.0 if kernel_bits < 8 else -1.0]
  gamma = lambda x: x * rng.choice(signs, x.shape) + 0.1 * rng.standard_normal(x.shape)
  params = jax.tree.map(lambda x: gamma(x).astype(np.float32) if x.ndim == 1 else x, variables['params'])
  bits = jax.tree_util.tree_map_with_path(
    lambda path, b: np.full(b.shape, 8 if path[-1].key == 'input' else kernel_bits, np.float32), variables['bits']
  )
  configs = calibrate.quant_configs(model, jax.ShapeDtypeStruct(shape, jnp.float32))
  params = calibrate.kernel_ranges(params, bits, configs)
  samples = calibrate.sample_inputs(model, {**variables, 'params': params, 'bits': bits}, [(images,)], train=False)
  variables = {**variables, 'bits': bits, 'params': calibrate.clips(params, bits, samples, configs)}
  source = source_of(wrap.with_fixed_bits(model), variables, images, name=name, input_range=(0, 255))
  return dataclasses.replace(source, training=lambda: images), images


def table(file: Written, images: np.ndarray) -> bool:
  """Prints a row for each layer; whether all is as it should be."""
  layers = litert_codes.layers_of(file)
  run = integer.inference(file.graph, keep=tuple(layers))
  logits, own = run(images.astype(np.float32))
  found = {}
  for runtime in litert_runtimes.RUNTIMES:
    outputs, codes = litert_codes.codes_of(file, runtime, litert_codes.as_int8(images))
    _, given = run(images.astype(np.float32), codes)
    found[runtime] = codes, given
    other = np.sum(outputs.argmax(-1) != logits.argmax(-1))
    step = file.plan.outputs[0].quantization.scale
    print(
      f'{runtime}: {other} other answers; outputs differ by up to {np.abs(outputs - logits).max() / step:.1f} steps'
    )
  print('\n| inputs of | made by | ' + ' | '.join(f'{name}, given | {name}, whole' for name in found) + ' |')
  print('|---' * (2 + 2 * len(found)) + '|')
  given_codes = collections.defaultdict(list)  # by what made them
  for name, layer in layers.items():
    made, cells = litert_codes.made_by(file.plan, file.plan.codes[name]), []
    for codes, given in found.values():
      for expected in (given, own):
        other = np.abs(codes[name] - expected[name])
        cells.append(f'{np.mean(other > 0):.2%}, {other.max()}')
      given_codes[made].append(np.abs(codes[name] - given[name]).reshape(-1))
    print(f'| {layer} | {made} | ' + ' | '.join(cells) + ' |')
  print('\nGiven the same codes, over all runtimes:')
  for made, parts in given_codes.items():
    other = np.concatenate(parts)
    more = f', of them {np.sum(other > 1):,} by 2 or more' if other.max() > 1 else ''
    print(f'{made}: {np.mean(other > 0):.3%} of {other.size:,} codes differ, by up to {other.max()}{more}')
  return all(part.max() <= 1 for made in litert_codes.EXACT for part in given_codes[made])


def main() -> int:
  """Writes the file and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir')
  parser.add_argument('--images', type=int, default=100)
  parser.add_argument('--model', default='mobilenet_v2')
  parser.add_argument('--kernel_bits', type=int, default=8)
  parser.add_argument('--width', type=float, default=0.35)
  parser.add_argument('--side', type=int, default=32)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  platforms.keep_memory()
  if args.workdir is not None:
    source, run = source_and_run(args.workdir)
    images, _ = images_of(run, 'test', args.images)
  else:
    how = dict(kernel_bits=args.kernel_bits, width=args.width, side=args.side, seed=args.seed)
    source, images = random_source(args.model, **how)
  file = litert_format.built(source)
  print(f'{source.name}: {len(file.content):,} bytes, weights {file.weights}, {file.narrowed} of -128 made -127')
  return int(not table(file, images))


if __name__ == '__main__':
  sys.exit(main())
