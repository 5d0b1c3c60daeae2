"""Ranges of groups in packed files: of any shape as they were, and refused where they do not fit their kernel."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracbits_jax.export import packed, packed_arrays
from fracbits_jax.graph.grid import Kernel
from fracbits_jax.layers.quant_config import WITH_RANGES
from fracbits_jax.quantize import groups


def _kernel(shape, size, range_bits, bits, seed=0, scheme='lsq'):
  rng = np.random.default_rng(seed)
  number = groups.count(math.prod(shape[:-1]), size)
  alpha = rng.uniform(1e-3, 9, (number, shape[-1])).astype(np.float16 if range_bits == 16 else np.float32)
  codes = rng.integers(0, np.broadcast_to(2**bits, shape)).astype(np.int32)
  how = dict(group_size=size, range_bits=range_bits)
  return Kernel(codes=codes, bits=bits, scheme=scheme, alpha=alpha.astype(np.float32), **how)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_kernel_is_read_as_it_was_written(data):
  shape = (*data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)), data.draw(st.integers(1, 5)))
  size, range_bits = data.draw(st.integers(1, 50)), data.draw(st.sampled_from([16, 32]))
  several = data.draw(st.booleans())
  bits = np.asarray(data.draw(st.lists(st.integers(0, 8), min_size=shape[-1], max_size=shape[-1])) if several else 3)
  scheme = data.draw(st.sampled_from(WITH_RANGES))
  kernel = _kernel(shape, size, range_bits, bits.astype(np.int32), data.draw(st.integers(0, 99)), scheme)
  writer = packed_arrays.Writer()
  at = writer.add_kernel(kernel)
  reader = packed_arrays.Reader(json.loads(json.dumps(writer.specs)), memoryview(b''.join(writer.chunks)))
  found = reader.take(at, kernel=True)
  reader.check_used()
  assert packed._same(found, kernel)
  np.testing.assert_array_equal(found.value, kernel.value)
  ranges = groups.count(math.prod(shape[:-1]), size) * shape[-1]
  of_kernel = -(-int(np.broadcast_to(bits, shape[-1:]).sum()) * math.prod(shape[:-1]) // 8)
  assert sum(map(len, writer.chunks)) == of_kernel + ranges * range_bits // 8


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda array, kernel: kernel.__setitem__(4, 0), 'groups of a size that is no positive integer'),
    (lambda array, kernel: kernel.__setitem__(4, True), 'groups of a size that is no positive integer'),
    (lambda array, kernel: kernel.__setitem__(4, None), 'groups of a size that is no positive integer'),
    (lambda array, kernel: kernel.__setitem__(4, 2), 'not one number for each group of its channels'),
    (lambda array, kernel: kernel.__setitem__(0, 'original'), 'a kernel has groups, and no ranges for them'),
    (lambda array, kernel: kernel.__setitem__(3, 1.0), 'a kernel has groups, and no ranges for them'),
    (lambda array, kernel: kernel.pop(), 'not one number for each of its channels'),
    (lambda array, kernel: kernel.append(1), 'not of 4 entries'),
    (lambda array, kernel: array.__setitem__(0, 'int16'), 'not one number for each group of its channels'),
    (lambda array, kernel: array.__setitem__(0, 'bfloat16'), 'not one number for each group of its channels'),
  ],
)
def test_groups_that_do_not_fit_their_kernel_are_refused(change, said):
  writer = packed_arrays.Writer()
  at = writer.add_kernel(_kernel((9, 2), 4, 16, np.asarray(4, np.int32)))
  array, kernel = json.loads(json.dumps(writer.specs))
  change(array, kernel)
  with pytest.raises(ValueError, match=said):
    packed_arrays.Reader([array, kernel], memoryview(b''.join(writer.chunks))).take(at, kernel=True)
