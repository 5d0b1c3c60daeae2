"""Whether onnxruntime, at its defaults, gives a network's answers with a file before that is written.

Where the answers are those of the network within rounding, nothing else is asked. Where they are not, a value may lie
in the middle between two codes and have gone the other way. So each code of the file is then compared with what the
network computes from the codes before it, and the answers with what it computes from all of them.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.export.onnx_build import Builder, Tensor
from fracbits_jax.graph import ops
from fracbits_jax.graph.graph import Graph, Node, evaluate
from fracbits_jax.layers.examples import arguments_of
from fracbits_jax.system import extras

EXAMPLES = 2
# A session option of onnxruntime. Without it, its products of uint8 and int8 saturate at 16 bits on x86 processors that
# lack VNNI, and the answers are wrong.
EXACT_ON_X64 = ('session.x64quantprecision', '1')
_OF_LOGITS = 1e-4  # of the largest one
_OF_A_CODE = 0.02  # on top of half a code; what differs by more was rounded from another value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
  """A file that is about to be written.

  Attributes:
    content: the file.
    with_codes: gives the same file with the inputs of all layers among its outputs.
    orders: the axes of each input by its name, as the network counts them.
    places: each of these outputs by the name that it has in `graph`.
    graph: what the file was written from, quantizers in the same places.
    opset: version of ONNX's operator set.
  """

  content: bytes
  with_codes: Callable[[], bytes]
  orders: Mapping[str, tuple[int, ...]]
  places: Mapping[str, Tensor]
  graph: Graph
  opset: int


def written(b: Builder, graph: Graph) -> Written:
  """What a builder holds, all of a graph's nodes added."""
  quantizers = (node for node in graph.nodes if node.op == 'quantize' and node.params['grid'].bits)
  values = {node.output: b.values[node.output] for node in quantizers}
  places = {name: value for name, value in values.items() if isinstance(value, Tensor)}  # which all of them are
  return Written(
    content=b.serialized(),
    with_codes=lambda: b.serialized(places.values()),
    orders={x.name: x.order for x in b.inputs},
    places=places,
    graph=graph,
    opset=b.opset,
  )


def is_possible() -> bool:
  """Whether onnxruntime is installed."""
  return importlib.util.find_spec('onnxruntime') is not None


def inputs_like(graph: Graph, input_range: tuple[int, int] | None, examples: int = EXAMPLES) -> dict[str, np.ndarray]:
  """Random inputs of a network: integers in their range, zeros and ones where indices are taken, normal ones else."""
  rng, found = np.random.default_rng(0), {}
  for x in graph.inputs:
    shape, dtype = (examples, *x.shape[1:]) if x.is_batched else x.shape, np.dtype(x.dtype)
    if dtype.kind in 'fu' and input_range is not None:
      found[x.name] = rng.integers(input_range[0], input_range[1] + 1, shape).astype(dtype)
    elif dtype.kind != 'f':
      found[x.name] = rng.integers(0, 2, shape).astype(dtype)
    else:
      found[x.name] = rng.standard_normal(shape).astype(dtype)
  return found


def differences(network: Graph, written: Written, inputs: Any) -> str | None:
  """What is wrong with a file, in a few words; `None` where it gives the network's answers.

  Args:
    network: the network.
    written: the file.
    inputs: as for `evaluate`.
  """
  expected = results_of(network, inputs)
  try:
    if all_close(run(written.content, written.orders, inputs), expected):
      return None
    found = run(written.with_codes(), written.orders, inputs)
  except Exception as error:  # onnxruntime's own classes, which derive from nothing else
    return f'does not load it: {_first_line(error)}'
  count = len(expected)
  return differences_of_codes(written, inputs, found[:count], dict(zip(written.places, found[count:], strict=True)))


def results_of(graph: Graph, inputs: Any) -> list[np.ndarray]:
  """What a graph gives, in a list."""
  return [np.asarray(x) for x in jax.tree.leaves(evaluate(graph, inputs)[0])]


def differences_of_codes(
  written: Written, inputs: Any, found: Sequence[np.ndarray], values: Mapping[str, np.ndarray]
) -> str | None:
  """What is wrong with a file's answers to inputs, given the `values` of its `places`; `None` where they are right."""
  given = {name: np.transpose(value, np.argsort(written.places[name].order)) for name, value in values.items()}
  expected, wrong = _from_codes(written.graph, inputs, given)
  if wrong is not None:
    return f'computes other inputs for {wrong}'
  return None if all_close(found, expected, 10 * _OF_LOGITS) else 'computes other answers from the same codes'


def run(
  content: bytes,
  orders: Mapping[str, Sequence[int]],
  inputs: Any,
  *,
  entries: Sequence[tuple[str, str]] = (EXACT_ON_X64,),
  **options: Any,
) -> list[np.ndarray]:
  """What onnxruntime gives for a file, on the CPU.

  Args:
    content: the file.
    orders: the axes of its inputs, as the network counts them.
    inputs: one array, several in the order of `orders`, or arrays by name, as the network takes them.
    entries: names and values of session options; the others have their defaults.
    **options: fields of `onnxruntime.SessionOptions` that do not have theirs.
  """
  with extras.needed():
    import onnxruntime

  settings = onnxruntime.SessionOptions()
  settings.log_severity_level = 4  # what fails is raised as well
  for entry in entries:
    settings.add_session_config_entry(*entry)
  for name, value in options.items():
    setattr(settings, name, value)
  session = onnxruntime.InferenceSession(content, settings, providers=['CPUExecutionProvider'])
  return session.run(None, as_read(orders, inputs))


def as_read(orders: Mapping[str, Sequence[int]], inputs: Any) -> dict[str, np.ndarray]:
  """Inputs as a file takes them, by name."""
  if not isinstance(inputs, Mapping):
    inputs = dict(zip(orders, arguments_of(inputs), strict=True))
  return {name: np.transpose(np.asarray(inputs[name]), order) for name, order in orders.items()}


def all_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = _OF_LOGITS) -> bool:
  """Whether all answers are the same within rounding."""
  return all(close(a, b, tolerance) for a, b in zip(found, expected, strict=True))


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = _OF_LOGITS) -> bool:
  """Whether answers are the same within rounding."""
  if expected.dtype.kind not in 'f':
    return np.array_equal(found, expected)
  finite = expected[np.isfinite(expected)]
  return np.allclose(found, expected, rtol=0, atol=tolerance * np.abs(finite).max(initial=1e-6), equal_nan=True)


def _from_codes(graph: Graph, inputs: Any, given: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], str | None]:
  """The answers from given inputs of all layers, and the first layer whose inputs are not what its quantizer gives."""
  values = {name: jnp.asarray(x) for name, x in graph.given(inputs).items()}
  count = graph.count(values)
  read = lambda x: values[x] if isinstance(x, str) else jnp.asarray(x)
  for node in graph.nodes:
    if node.output in given:
      if not _is_rounded(node, np.asarray(read(node.inputs[0])), given[node.output]):
        return [], node.params['layer']
      values[node.output] = jnp.asarray(given[node.output])
    else:
      values[node.output] = ops.apply(node.op, node.params, [read(x) for x in node.inputs], count)
  return [np.asarray(values[name]) for name in graph.outputs], None


def _is_rounded(node: Node, x: np.ndarray, found: np.ndarray) -> bool:
  """Whether each value on a grid is the nearest one to what was quantized, or about as near as that."""
  grid = node.params['grid']
  real = np.clip(np.float64(x) / grid.scale + grid.zero, 0, 2**grid.bits - 1)
  codes = np.float64(found) / grid.scale + grid.zero
  on_grid = np.abs(codes - np.round(codes)) < _OF_A_CODE
  return bool(np.all(on_grid & (np.abs(codes - real) <= 0.5 + _OF_A_CODE) | np.isnan(real)))


def _first_line(error: Exception) -> str:
  words = str(error).replace('\n', ' ').split(' : ')[-1].strip()
  return words if len(words) < 300 else f'{words[:300]} ...'
