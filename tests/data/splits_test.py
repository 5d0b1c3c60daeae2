import numpy as np

from fracbits_jax.data import splits


def test_no_more_than_10000_images_are_held_out():
  stays, held = splits.hold_out(1_281_167, 1)
  assert len(held) == len(set(held)) == 10_000
  assert len(stays) == 1_271_167
  assert np.diff(held).min() >= 128
  assert [len(part) for part in splits.hold_out(3, 2)] == [1, 1, 1]
