"""Test settings: several virtual CPU devices, strict ranks, a persistent compilation cache, programs compiled fast."""

import gc
import os

import xla_flags

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([*xla_flags.of_tests(), os.environ.get('XLA_FLAGS', '')])

import jax

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and each collection reads those that live
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(xla_flags.CACHE / 'jax'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
