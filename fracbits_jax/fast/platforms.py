"""The platform at hand: what it is, and settings of compiler, memory and Python with which a run is fastest on it."""

import ctypes
import functools
import gc
import os
import pathlib
import platform
import sys

import flax
import jax

import fracbits_jax
from fracbits_jax.system import process

# XLA's CPU backend hands convolutions to YNNPACK, whose gradients of kernels take up to five times as long as those of
# Eigen; products and reductions are well off with it.
_CPU_OPTIONS = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
}

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def description() -> dict[str, str]:
  """The devices, and the versions of Python and of the libraries that results depend on."""
  kind = jax.devices()[0].device_kind
  hosts = f' on {jax.process_count()} hosts' if jax.process_count() > 1 else ''
  return {
    'devices': f'{jax.device_count()} \u00d7 {f"{kind} ({platform.machine()})" if kind == "cpu" else kind}{hosts}',
    'fracbits_jax': fracbits_jax.__version__,
    'jax': jax.__version__,
    'flax': flax.__version__,
    'python': platform.python_version(),
  }


def compiler_options(platform: str | None = None) -> dict[str, str]:
  """Options for `jax.jit(..., compiler_options=...)`, of the default platform unless one is given.

  What this version of XLA does not know is left out.
  """
  return _known_options() if (platform or jax.default_backend()) == 'cpu' else {}


@functools.cache
def _known_options() -> dict[str, str]:
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU_OPTIONS


def keep_memory() -> bool:
  """Lets this process keep the memory that it has freed; for a program to call before JAX does anything.

  A step on the CPU takes its memory anew each time. The pages go back to the system in between and come again one by
  one, which can be a third of the step. The price is that the process stays at the size of its largest moment, and
  that steps on the CPU run in the thread that calls them: only its memory glibc extends without mapping it anew.

  Returns:
    Whether it took effect: only with Linux and glibc.
  """
  if not sys.platform.startswith('linux'):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])


def collect_garbage_rarely() -> None:
  """Has Python look for garbage less often; for a program to call once, when it has imported what it needs.

  Tracing a network makes objects by the million, nearly all of which stay, and each collection goes through them again:
  a quarter of the time that it takes to trace a step. What is there already is not looked at any more.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 20, 20)


def cache_compilations(folder: str | os.PathLike | None = None) -> None:
  """Keeps compiled programs on disk, so that a run started again compiles nothing.

  Args:
    folder: where to keep them; the user's cache folder by default. Nothing is changed if JAX has been given a folder
      already, as by the environment variable `JAX_COMPILATION_CACHE_DIR`.
  """
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # JAX adds its options as it loads
    base = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or process.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(folder or base / 'fracbits_jax'))
