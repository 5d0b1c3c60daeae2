"""Test settings: several virtual CPU devices, strict ranks, a persistent compilation cache, programs compiled fast."""

import os
import pathlib

os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the time of the tests is compilation; without LLVM's optimizations it takes a quarter less.
os.environ['XLA_FLAGS'] = (
  f'--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 {os.environ.get("XLA_FLAGS", "")}'
)

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(__file__).parents[1] / '.cache' / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='module')
def no_reports():
  """Runs without a report at their end, whose figures take a quarter of the time of a tiny run."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('fracbits_jax.report.write', lambda workdir, result: None)
    yield
