"""The codes that a runtime computes for the layers of a LiteRT file, to be compared with those of integer inference."""

import dataclasses

import numpy as np

from benchmarks.shared import litert_runtimes
from fracbits_jax.export import litert_file
from fracbits_jax.export.litert_format import Written
from fracbits_jax.export.litert_plan import Plan, Tensor

# What gives codes of codes with one rounding, and what moves integers.
EXACT = ('CONV_2D', 'DEPTHWISE_CONV_2D', 'FULLY_CONNECTED')
_MOVES = ('CONCATENATION', 'MAX_POOL_2D', 'PAD', 'PADV2', 'RESHAPE', 'STRIDED_SLICE', 'TRANSPOSE')


def layers_of(file: Written) -> dict[str, str]:
  """The name of the layer of each `quantize` node whose codes a file computes."""
  names = {node.output: node.params['layer'] for node in file.graph.nodes if node.op == 'quantize'}
  return {name: names[name] for name in _tensors(file)}


def codes_of(file: Written, runtime: str, examples: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The first output in real numbers, and the codes from 0 to 255 of the layers' inputs, by `quantize` node.

  Args:
    file: as `litert_format.built` gives it.
    runtime: one of `litert_runtimes.RUNTIMES`.
    examples: what the file takes, int8 `[N, ...]`, see `as_int8`.
  """
  tensors = _tensors(file)
  plan = dataclasses.replace(file.plan, outputs=(*file.plan.outputs, *tensors.values()))
  run = litert_runtimes.loaded(litert_file.serialized(plan, description='with codes'), runtime)
  first, *found = litert_runtimes.in_order(run, examples)
  found = found[len(file.plan.outputs) - 1 :]
  shapes = {node.output: node.shape[1:] for node in file.graph.nodes}
  codes = {
    name: x.astype(np.int32).reshape(len(examples), *shapes[name]) + 128 for name, x in zip(tensors, found, strict=True)
  }
  return real(file, first), codes


def real(file: Written, output: np.ndarray) -> np.ndarray:
  """The real numbers of the first output, int8."""
  quantization = file.plan.outputs[0].quantization
  return quantization.scale * (output.astype(np.float64) - quantization.zero)


def as_int8(images: np.ndarray) -> np.ndarray:
  """Images, integers from 0 to 255, as a file takes them."""
  return (np.asarray(images, np.int32) - 128).astype(np.int8)


def quantized(file: Written, inputs: np.ndarray) -> np.ndarray:
  """Real inputs as a file takes them."""
  to = file.plan.inputs[0].quantization
  return np.clip(np.round(np.asarray(inputs, np.float64) / to.scale) + to.zero, -128, 127).astype(np.int8)


def made_by(plan: Plan, tensor: Tensor) -> str:
  """The operations that compute a tensor from codes of layers' inputs, or from a sum of them."""
  makers = {operation.output: operation for operation in plan.operations}
  codes = {*plan.inputs, *plan.codes.values()}

  def before(tensor: Tensor) -> str:
    made = makers.get(tensor)
    if made is None:
      return ''
    own = '' if made.op in _MOVES else made.op
    inputs = made.inputs[: {'CONCATENATION': None, 'ADD': 0}.get(made.op, 1)]
    found = dict.fromkeys(before(x) for x in inputs if x not in codes)
    return ', '.join(part for part in (' and '.join(filter(None, found)), own) if part)

  return before(tensor)


def _tensors(file: Written) -> dict[str, Tensor]:
  """The layers' inputs, but for one that is the file's own input."""
  return {name: tensor for name, tensor in file.plan.codes.items() if tensor not in file.plan.inputs}
