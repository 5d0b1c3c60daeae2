"""Test settings: several virtual CPU devices, strict ranks, a persistent compilation cache, programs compiled fast."""

import gc
import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the time of the tests is compilation: without LLVM's optimizations, without XLA's fusion emitters and in one
# piece it takes half as long.
os.environ['XLA_FLAGS'] = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 '
  f'--xla_force_host_platform_device_count=4 {os.environ.get("XLA_FLAGS", "")}'
)

import jax
import pytest

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and each collection reads those that live
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(__file__).parents[1] / '.cache' / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module')
def no_reports():
  """Runs without a report at their end, whose figures take a quarter of the time of a tiny run."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fracbits_jax.report.write', lambda workdir, result: None)
    yield
