"""Whether a network that others wrote is exported in a format, and its file gives the network's answers there."""

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from benchmarks.shared import foreign
from fracbits_jax.export import onnx_check, onnx_format, packed, qonnx_format, stablehlo
from fracbits_jax.export.source import Source, source_of
from fracbits_jax.graph.graph import evaluate
from fracbits_jax.layers import wrap
from fracbits_jax.layers.examples import is_array
from fracbits_jax.program import nnx_adapter

FORMATS = ('packed', 'stablehlo', 'qonnx', 'onnx')
_BITS = 8.0


def verdicts(quantized: foreign.Quantized, formats: tuple[str, ...]) -> dict[str, str]:
  """By format: `equal`, `equal but for ties`, or one sentence on what is wrong. The network is left at 8 bits."""
  if not formats:
    return {}
  try:
    source, expected = _source(quantized)
  except Exception as error:
    return dict.fromkeys(formats, _sentence(error))
  found = {}
  for kind in formats:
    try:
      found[kind] = _verdict(kind, source, quantized.foreign, expected)
    except Exception as error:  # whatever an export or a runtime raises is what is looked for
      found[kind] = _sentence(error)
  return found


def _sentence(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.split('\n')[0][:400]


def _source(quantized: foreign.Quantized) -> tuple[Source, jax.Array]:
  """The network with 8 bits everywhere, as something to export, and its outputs."""
  network = quantized.foreign
  bits = jax.tree.map(lambda b: jnp.full_like(b, _BITS), quantized.bits)
  expected = foreign.flat(jax.jit(quantized.run())(quantized.state(), bits))
  if quantized.variables is None:
    nnx_adapter.set_bits(quantized.net, bits, fixed=True)
    return source_of(quantized.net, None, network.inputs, **network.call), expected
  net = wrap.with_fixed_bits(quantized.net)
  return source_of(net, {**quantized.variables, 'bits': bits}, network.inputs, **network.call), expected


def _verdict(kind: str, source: Source, network: foreign.Foreign, expected: jax.Array) -> str:
  if kind == 'stablehlo':
    return _near(_of_stablehlo(source, network), expected)
  arrays = dict(zip(source.call.names, filter(is_array, jax.tree.leaves((network.inputs, network.call))), strict=True))
  x = {one.name: arrays[one.name] for one in source.graph.inputs}
  if kind == 'packed':
    with tempfile.TemporaryDirectory() as folder:
      packed.write(source, pathlib.Path(folder) / 'network')
      return _near(evaluate(packed.read(pathlib.Path(folder) / 'network').graph, x)[0], expected)
  wrong = _near(evaluate(source.graph, x)[0], expected)
  if wrong != 'equal':
    return wrong
  examples = source.graph.count(x)
  file = onnx_format.built(source) if kind == 'onnx' else qonnx_format.built(source, examples)
  run = lambda content: _run(kind, content, file.orders, x)
  answers = [np.asarray(y) for y in jax.tree.leaves(evaluate(source.graph, x)[0])]
  if all(map(onnx_check.close, run(file.content), answers)):
    return 'equal'
  found = run(file.with_codes())
  codes = dict(zip(file.places, found[len(answers) :], strict=True))
  return onnx_check.differences_of_codes(file, x, found[: len(answers)], codes) or 'equal but for ties'


def _run(kind: str, content: bytes, orders: Any, x: Any) -> list[Any]:
  if kind == 'onnx':
    return onnx_check.run(content, orders=orders, inputs=x, entries=(onnx_format.EXACT_ON_X64,))
  model = ModelWrapper(onnx.load_from_string(content))
  found = execute_onnx(model, {name: np.transpose(np.asarray(x[name]), order) for name, order in orders.items()})
  return [found[output.name] for output in model.graph.output]


def _of_stablehlo(source: Source, network: foreign.Foreign) -> Any:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'network'
    stablehlo.write(source, path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
  arrays = {name: value for name, value in network.call.items() if is_array(value)}
  return program.call(*(x for x in network.inputs if x is not None), **arrays)


def _near(outputs: Any, expected: jax.Array) -> str:
  error = float(jnp.linalg.norm(foreign.flat(outputs) - expected) / jnp.linalg.norm(expected))
  return 'equal' if error < 1e-5 else f'the outputs differ by {error:.2g} of their norm'
