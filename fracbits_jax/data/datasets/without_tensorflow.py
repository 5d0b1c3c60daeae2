"""Preparing TFDS data sets where TensorFlow is not installed.

Most TFDS builders, and TFDS itself for sets above a gigabyte, use TensorFlow for nothing but reading and writing local
files (`tf.io.gfile`) and for encoding images. `stand_in` gives them Python's own functions for that. A builder that
needs more of TensorFlow fails with an `AttributeError`.
"""

import contextlib
import glob
import importlib.util
import os
import shutil
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import cv2
  from tensorflow_datasets.core import utils
  from tensorflow_datasets.core.features import image_feature
  from tensorflow_datasets.core.utils import lazy_imports_utils


def is_installed() -> bool:
  """Whether the real TensorFlow is there."""
  return importlib.util.find_spec('tensorflow') is not None


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
  """TFDS's lazily imported `tensorflow` is a module of file functions, for as long as a preparation takes."""
  encode = mock.patch.object(image_feature._ImageEncoder, '_encode_image', _encode)
  tensorflow = mock.patch.dict(vars(lazy_imports_utils.tensorflow), {'_module': _module()})
  # ImageNet's few CMYK and PNG images are stored as they are: they are decoded as well as any other.
  as_it_is = [
    mock.patch.object(utils, name, lambda data, quality=100: data) for name in ('jpeg_cmyk_to_rgb', 'png_to_jpeg')
  ]
  with encode, tensorflow, as_it_is[0], as_it_is[1]:
    yield


def _module() -> types.ModuleType:
  gfile = types.SimpleNamespace(
    GFile=open,
    exists=os.path.exists,
    isdir=os.path.isdir,
    listdir=os.listdir,
    glob=glob.glob,
    makedirs=lambda path: os.makedirs(path, exist_ok=True),
    remove=os.remove,
    rename=lambda source, target, overwrite=False: os.replace(source, target),
    rmtree=shutil.rmtree,
    walk=os.walk,
  )
  module: Any = types.ModuleType('tensorflow')
  module.io = types.SimpleNamespace(gfile=gfile)
  module.errors = types.SimpleNamespace(ResourceExhaustedError=_NeverRaised)
  module.compat = types.SimpleNamespace(
    as_text=lambda text: text.decode() if isinstance(text, bytes) else text,
    as_bytes=lambda text: text.encode() if isinstance(text, str) else text,
  )
  return module


class _NeverRaised(Exception):
  pass


def _encode(encoder: image_feature._ImageEncoder, image: np.ndarray) -> bytes:
  """An array as TFDS hands it over, in the format of the feature, RGB or grey."""
  if image.ndim == 3 and image.shape[2] >= 3:
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
  suffix = {'png': '.png', 'jpeg': '.jpg'}[encoder.encoding_format]
  return cv2.imencode(suffix, image)[1].tobytes()
