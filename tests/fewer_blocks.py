"""MobileNets with fewer blocks, each kind of them still there: those that follow take as long and show nothing new."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from fracbits_jax.models import efficientnet_lite, mobilenet_v1, mobilenet_v2

V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2))
V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2))  # not widened, with a stride, with a sum, with a stride

LITE_STAGES = ((3, 1, 16, 1, 1), (5, 6, 24, 2, 2), (3, 6, 32, 1, 2))


@contextlib.contextmanager
def mobilenets() -> Iterator[None]:
  """`models.create` makes them while this holds."""
  jax.clear_caches()  # what is traced is kept by the network's arguments, which are the same
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mobilenet_v1, '_BLOCKS', V1_BLOCKS)
    patch.setattr(mobilenet_v2, '_STAGES', V2_STAGES)
    patch.setattr(efficientnet_lite, '_STAGES', LITE_STAGES)
    yield
  jax.clear_caches()
