"""LiteRT files run by what others wrote: LiteRT's interpreter, with XNNPACK and without it, and tflite-micro's."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

try:
  from tflite_micro.python.tflite_micro import runtime as micro
except ImportError:  # it has wheels for Linux on x86-64 alone, made each night and not always whole
  micro = None

_KERNELS = {
  'XNNPACK': OpResolverType.AUTO,
  'LiteRT': OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
MICRO = 'tflite-micro'
RUNTIMES = (*_KERNELS, *((MICRO,) if micro is not None else ()))

Run = Callable[[np.ndarray], list[np.ndarray]]


def loaded(content: bytes, runtime: str) -> Run:
  """A function of one example, int8 with its batch axis, that gives the outputs of a file, int8.

  Args:
    content: the file.
    runtime: one of `RUNTIMES`.
  """
  if runtime == MICRO:
    interpreter = micro.Interpreter.from_bytes(content, arena_size=64 * 2**20)
    return _MicroRun(interpreter, _outputs(content))
  interpreter = Interpreter(model_content=content, experimental_op_resolver_type=_KERNELS[runtime], num_threads=1)
  interpreter.allocate_tensors()
  place = interpreter.get_input_details()[0]['index']
  outputs = [found['index'] for found in interpreter.get_output_details()]

  def run(example: np.ndarray) -> list[np.ndarray]:
    interpreter.set_tensor(place, example)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(output)) for output in outputs]

  return run


class _MicroRun:
  def __init__(self, interpreter, outputs: int):
    self.interpreter, self.outputs = interpreter, outputs

  def __call__(self, example: np.ndarray) -> list[np.ndarray]:
    self.interpreter.set_input(example, 0)
    self.interpreter.invoke()
    return [np.array(self.interpreter.get_output(i)) for i in range(self.outputs)]


def _outputs(content: bytes) -> int:
  return len(Interpreter(model_content=content, num_threads=1).get_output_details())


def in_order(run: Run, examples: np.ndarray) -> list[np.ndarray]:
  """Each output for all examples, int8 without their batch axis."""
  found = [run(example[None]) for example in examples]
  return [np.concatenate(outputs) for outputs in zip(*found, strict=True)]


def arena_bytes(content: bytes) -> int:
  """What tflite-micro takes of its arena for a file, by its own recording allocator, on this machine of 64 bits."""
  interpreter = micro.Interpreter.from_bytes(content, arena_size=64 * 2**20)
  interpreter.invoke()
  with _standard_error() as said:
    interpreter.print_allocations()
  found = re.search(r'Arena allocation total (\d+) bytes', said())
  if found is None:
    raise ValueError(f'tflite-micro says other things of its arena than it did: {said()[:300]}')
  return int(found[1])


@contextlib.contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
  """What this process writes to its standard error, C++ included."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    text: list[str] = []
    try:
      yield lambda: text[0] if text else ''
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      text.append(file.read().decode())
