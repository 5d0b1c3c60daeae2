"""Flags of XLA with which programs compile fast, as far as the XLA that is installed knows them."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

# Most of the time of the tests is compilation: without LLVM's optimizations, without XLA's fusion emitters and in one
# piece it takes half as long.
FAST_COMPILATION = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
  'xla_cpu_parallel_codegen_split_count': 1,
}

CACHE = pathlib.Path(__file__).parents[1] / '.cache'

_ASK = """
import json, sys, jax
known = []
for name, value in json.loads(sys.argv[1]).items():
  try:
    jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    known.append(name)
  except jax.errors.JaxRuntimeError:
    pass
print(json.dumps(known))
"""


def of_tests() -> list[str]:
  """The flags that the tests run with: programs compiled fast, four devices."""
  return [*known(FAST_COMPILATION, CACHE), '--xla_force_host_platform_device_count=4']


def known(options: Mapping[str, int | bool], cache: pathlib.Path) -> list[str]:
  """The flags among `options` that the installed XLA knows, as `XLA_FLAGS` takes them.

  XLA aborts the process on a flag that it does not know, but refuses a compiler option of that name with an error. So
  a process of its own asks, once for each version.

  Args:
    options: by name, without dashes.
    cache: a folder, where the answer is kept.
  """
  answer = cache / f'xla_flags_{importlib.metadata.version("jaxlib")}.json'
  try:
    names = json.loads(answer.read_text())[json.dumps(options)]
  except (OSError, ValueError, KeyError):
    names = _asked(options)
    cache.mkdir(parents=True, exist_ok=True)
    answer.write_text(json.dumps({json.dumps(options): names}))
  return [f'--{name}={str(options[name]).lower()}' for name in names]


def _asked(options: Mapping[str, int | bool]) -> list[str]:
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  ask = [sys.executable, '-c', _ASK, json.dumps(options)]
  return json.loads(subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout)
