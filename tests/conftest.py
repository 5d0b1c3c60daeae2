"""Test settings: several virtual CPU devices, strict ranks, programs compiled fast and kept.

What is in the environment holds for the processes that tests start as well.
"""

import gc
import os

import xla_flags

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([*xla_flags.of_tests(), os.environ.get('XLA_FLAGS', '')])
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(xla_flags.CACHE / 'jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and each collection reads those that live
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Of two workers that take file by file, one would work alone on a long file that is taken last.
LONGEST = ('resume_test.py', 'notebook_test.py', 'hosts_test.py', 'wheel_test.py', 'run_test.py', 'stacks_test.py')


def pytest_configure(config):
  config.option.loadscopereorder = False  # those with most tests would come first


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
