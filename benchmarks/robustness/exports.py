"""Exports: what packed files take on disk, and whether their integers are those of the trained network.

    python benchmarks/robustness/exports.py sizes
    python benchmarks/robustness/exports.py run --workdir=runs/digits

`sizes` packs MobileNetV1, MobileNetV2 and ResNet-18 for 224 x 224 images with policies that a search could find: random
bit-widths, discretized to the BitOPs of 3 bits. `run` exports a finished run in every format that its bit-widths allow
and compares it with the trained network on the whole test split.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from fracbits_jax import cost, models, policy
from fracbits_jax.data.batches import eval_batches
from fracbits_jax.export import comparison, integer, onnx_format, packed, qonnx_format, stablehlo
from fracbits_jax.export.source import Source, source_of, source_of_run
from fracbits_jax.fast import platforms
from fracbits_jax.layers import QuantConfig
from fracbits_jax.run import finished

NETWORKS = ('mobilenet_v1', 'mobilenet_v2', 'resnet18')
_BATCH = 100


def sizes(granularity: str, name: str, folder: pathlib.Path) -> str:
  """Packs a network of full size; a row of the table."""
  quant = QuantConfig(granularity=granularity, choices=range(2, 9))
  model, shape = models.create(name, quant=quant), (1, 224, 224, 3)
  table, rng = cost.trace(model, shape), np.random.default_rng(0)
  budget = cost.budget('bitops', table, equivalent_bits=3)
  found = policy.discretize(
    cost.fill_bits(table, lambda layer, which, shape, choices: rng.uniform(2, 5, shape)), table, budget
  )
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape))
  # Norms as training leaves them: those of a new network are all alike, and stored once.
  drawn = lambda x: jnp.asarray(x + rng.uniform(0.1, 1, x.shape), x.dtype) if x.ndim == 1 else x
  trained = {name: jax.tree.map(drawn, variables[name]) for name in ('params', 'batch_stats')}
  variables = {**trained, 'bits': jax.tree.map(jnp.float32, found.bits())}
  source = source_of(model, variables, shape, name=name, input_range=(0, 255))
  path = folder / 'network.fracbits'
  packed.write(source, path)
  reported, total = found.size_mb * 1e6, path.stat().st_size
  rescale = sum(
    sum(np.asarray(x).nbytes for x in node.inputs[1:]) for node in packed.read(path).graph.nodes if node.op == 'affine'
  )
  rest = total - rescale - reported
  return (
    f'| {name}, {granularity}-wise | {reported:,.0f} | {total:,} | {rescale:,} ({rescale / reported:.2%}) | '
    f'{rest:,.0f} ({rest / reported:.2%}) | {total / (4 * sum(layer.weights for layer in table)):.3f} |'
  )


def compare_run(workdir: str, folder: pathlib.Path) -> None:
  """Prints how each exported file of a run compares with its trained network on the whole test split."""
  source, dataset = source_of_run(workdir), finished.load(workdir).experiment.dataset
  batches = list(eval_batches(dataset, 'test', batch_size=_BATCH))
  kept = np.concatenate([batch['mask'] for batch in batches]) > 0
  images, labels = (np.concatenate([batch[key] for batch in batches])[kept] for key in ('image', 'label'))
  images, apply = images.astype(np.float32), jax.jit(source.model.apply)
  trained = in_batches(lambda x: apply(source.variables, x), images)
  print(f'trained network: {np.mean(trained.argmax(-1) == labels):.2%} of {len(labels)} test images')
  for name, export in EXPORTS.items():
    try:
      said, answer = export(source, folder / name)
    except ValueError as error:
      print(f'\n{name}: {error}')
      continue
    found = in_batches(answer, images)
    print(f'\n{name}: {said}')
    print(
      f'{np.mean(found.argmax(-1) == labels):.2%}; {np.sum(found.argmax(-1) != trained.argmax(-1))} different answers, '
      f'largest difference {np.abs(found - trained).max():.2g} of logits up to {np.abs(trained).max():.3g}; '
      f'{np.sum(np.abs(found - trained).max(-1) > 1e-3)} images with more than 0.001'
    )
    if name == 'packed':
      graph = packed.read(folder / name).graph
      print(comparison.compare(graph, images, reference=source.graph))
      print(f'operations in floating point: {len(integer.float_operations(graph))}')


def in_batches(function: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
  """What a function gives for all images, `_BATCH` of which it takes at once."""
  return np.concatenate([np.asarray(function(part)) for part in np.split(images, range(_BATCH, len(images), _BATCH))])


def _packed(source: Source, path: pathlib.Path) -> tuple[str, Callable]:
  said = packed.write(source, path)
  run = integer.inference(packed.read(path).graph)
  return said, lambda x: run(x)[0]


def _qonnx(source: Source, path: pathlib.Path) -> tuple[str, Callable]:
  said = qonnx_format.write(source, path, batch_size=_BATCH)
  network = ModelWrapper(str(path))
  return said, lambda x: execute_onnx(network, {'input': x.transpose(0, 3, 1, 2)})['output']


def _onnx(source: Source, path: pathlib.Path) -> tuple[str, Callable]:
  said = onnx_format.write(source, path)
  options = onnxruntime.SessionOptions()
  options.add_session_config_entry(*onnx_format.EXACT_ON_X64)
  session = onnxruntime.InferenceSession(str(path), options)
  return said, lambda x: session.run(None, {'input': x.transpose(0, 3, 1, 2)})[0]


def _stablehlo(source: Source, path: pathlib.Path) -> tuple[str, Callable]:
  said = stablehlo.write(source, path)
  return said, jax.export.deserialize(path.read_bytes()).call


EXPORTS = {'packed': _packed, 'qonnx': _qonnx, 'onnx': _onnx, 'stablehlo': _stablehlo}


def main() -> None:
  """Runs one of the two parts."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('part', choices=('sizes', 'run'))
  parser.add_argument('--workdir', default='runs/digits')
  args = parser.parse_args()
  platforms.keep_memory()
  with tempfile.TemporaryDirectory() as folder:
    if args.part == 'run':
      compare_run(args.workdir, pathlib.Path(folder))
      return
    print('| network | reported, bytes | on disk | rescaling | graph and bit-widths | of float32 |')
    print('|---|---|---|---|---|---|')
    for name in NETWORKS:
      for granularity in ('layer', 'kernel'):
        print(sizes(granularity, name, pathlib.Path(folder)), flush=True)
        jax.clear_caches()


if __name__ == '__main__':
  main()
