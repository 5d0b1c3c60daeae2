"""The codes that a runtime computes for the layers of a LiteRT file, to be compared with those of integer inference."""

import dataclasses

import numpy as np

from benchmarks.shared import litert_runtimes
from fracbits_jax.export import litert_file
from fracbits_jax.export.litert_format import Written
from fracbits_jax.export.litert_plan import Tensor


def layers_of(file: Written) -> dict[str, str]:
  """The name of the layer of each `quantize` node whose codes a file computes."""
  names = {node.output: node.params['layer'] for node in file.graph.nodes if node.op == 'quantize'}
  return {name: names[name] for name in _tensors(file)}


def codes_of(file: Written, runtime: str, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The first output in real numbers, and the codes from 0 to 255 of the layers' inputs, by `quantize` node.

  Args:
    file: as `litert_format.built` gives it.
    runtime: one of `litert_runtimes.RUNTIMES`.
    images: integers from 0 to 255 `[N, ...]`.
  """
  tensors = _tensors(file)
  plan = dataclasses.replace(file.plan, outputs=(*file.plan.outputs, *tensors.values()))
  run = litert_runtimes.loaded(litert_file.serialized(plan, description='with codes'), runtime)
  first, *found = litert_runtimes.in_order(run, as_int8(images))
  found = found[len(file.plan.outputs) - 1 :]
  shapes = {node.output: node.shape[1:] for node in file.graph.nodes}
  codes = {
    name: x.astype(np.int32).reshape(len(images), *shapes[name]) + 128 for name, x in zip(tensors, found, strict=True)
  }
  return real(file, first), codes


def real(file: Written, output: np.ndarray) -> np.ndarray:
  """The real numbers of the first output, int8."""
  quantization = file.plan.outputs[0].quantization
  return quantization.scale * (output.astype(np.float64) - quantization.zero)


def as_int8(images: np.ndarray) -> np.ndarray:
  """Images as a file takes them."""
  return (np.asarray(images, np.int32) - 128).astype(np.int8)


def _tensors(file: Written) -> dict[str, Tensor]:
  """The layers' inputs, but for one that is the file's own input."""
  return {name: tensor for name, tensor in file.plan.codes.items() if tensor not in file.plan.inputs}
