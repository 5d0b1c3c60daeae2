"""Broken packed networks, and what one that is read has to hold.

Files are damaged as they are, which their checksum has to tell; or their header, its compressed bytes or the arrays are
changed and the checksum is made right again, as by somebody who means harm.
"""

import functools
import hashlib
import json
import math
import pathlib
import random
import struct
import tempfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.robustness import fuzz_hostile, fuzz_text
from fracbits_jax.export import packed, packed_header, shape_values, shapes
from fracbits_jax.export.source import source_of
from fracbits_jax.layers import QuantConfig, QuantConv, QuantDense

_HEAD = struct.Struct('<8sIIQ32s')
_QUANT = {'init_bits': 3, 'alpha_init': 2.0}
_STRANGERS = [
  *fuzz_text.ANYWHERE, *map(json.dumps, fuzz_text.ANYWHERE), *fuzz_text.DEEP, *map(str, fuzz_hostile.HUGE),
  *(json.dumps(op) for op in shapes.RULES), '[[]]', '[{}]', '[0]', '[0, 0]', '[-1]', '[-1, 1]', '[-2, 4]', '["input"]',
  '["float32", 0.5]', '["float32", NaN]', '["int32", 1]', '["bool", true]', '["int8", 300]', '["float16", 1e300]',
  '"input"', '"float32"', '"float16"', '"int32"', '"int64"', '"bool"', '"float64"', '"object"', '"V8"', '"original"',
  '"modified"', '"lsq"', '"balanced"', '"layer"', '"shape"', '"clip"',
]  # fmt: skip


class _Images(nn.Module):
  """Convolutions of several kinds, a pool, a resize, bits by channel."""

  @nn.compact
  def __call__(self, x):
    quant = QuantConfig(granularity='kernel', **_QUANT)
    x = nn.relu(nn.BatchNorm(use_running_average=True)(QuantConv(4, (3, 3), padding=1, quant=quant)(x)))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = QuantConv(4, (3, 3), padding='CIRCULAR', feature_group_count=4, quant=quant)(x)
    x = jax.image.resize(x, (x.shape[0], 4, 4, 4), 'nearest')
    x = jnp.concatenate([nn.relu(x), jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)))], -1)
    return QuantDense(3, quant=QuantConfig(**_QUANT))(nn.relu(x.mean((1, 2))))


class _Words(nn.Module):
  """An embedding, attention, and learned steps."""

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(11, 4)(x)
    x = x + nn.softmax(x @ jnp.swapaxes(x, 1, 2)) @ x
    grouped = QuantConfig(scheme='lsq', kernel_levels='balanced', group_size=2, weight_only=True, **_QUANT)
    x = QuantDense(4, quant=grouped)(nn.LayerNorm()(x))
    x = QuantDense(4, quant=QuantConfig(scheme='lsq', signed_input=True, **_QUANT))(x)
    return QuantDense(3, quant=QuantConfig(**_QUANT))(nn.relu(x[:, 0])).argmax(-1)


@functools.cache
def files() -> tuple[bytes, ...]:
  """Valid files."""
  images, words = np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 3), np.int32)
  with tempfile.TemporaryDirectory() as folder:
    return tuple(
      _file(model, x, seed, pathlib.Path(folder) / 'file')
      for seed, (model, x) in enumerate(((_Images(), images), (_Words(), words)))
    )


def _file(model: nn.Module, x: np.ndarray, seed: int, path: pathlib.Path) -> bytes:
  rng = np.random.default_rng(seed)
  variables = jax.tree.map(
    lambda s: rng.uniform(0.5, 1.5, s.shape).astype(s.dtype), jax.eval_shape(model.init, jax.random.key(0), x)
  )
  bits = jax.tree.map(lambda b: rng.integers(0, 9, b.shape).astype(b.dtype), variables['bits'])
  packed.write(source_of(model, {**variables, 'bits': bits}, x), path)
  return path.read_bytes()


@functools.cache
def _bodies() -> tuple[bytes, ...]:
  return tuple(bytes(packed_header.unseal(content)[1]) for content in files())


@functools.cache
def _headers() -> fuzz_text.Texts:
  texts = tuple(json.dumps(packed_header.unseal(content)[0]) for content in files())
  return fuzz_text.Texts(files=texts, parts=fuzz_text.json_parts, strangers=_STRANGERS)


def damaged_file(rng: random.Random) -> bytes:
  """A file whose bytes went through something, and whose checksum did not follow."""
  return fuzz_text.damaged(rng, rng.choice(files())) if rng.randrange(20) else fuzz_text.noise(rng)


def sealed_file(rng: random.Random) -> bytes:
  """A file that is not what was written, and whose checksum is right."""
  if rng.randrange(25) == 0:
    version = rng.choice(packed_header.VERSIONS)
    return _sealed(zlib.compress(fuzz_hostile.header(rng, version), 1), bytes(rng.randrange(2)), version)
  how, which = rng.randrange(9), rng.randrange(len(files()))
  header, body = json.loads(_headers().files[which]), _bodies()[which]
  if how == 0:  # the compressed header itself
    compressed = zlib.compress(json.dumps(header).encode(), rng.choice((0, 1, 9)))
    return _sealed(fuzz_text.damaged(rng, compressed), body)
  if how < 4:
    text = fuzz_text.broken_text(rng, _headers())
  else:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
      _change(rng, header)
    text = json.dumps(header)
    body = _fitting(rng, header, body)
  body = fuzz_text.damaged(rng, body) if rng.randrange(12) == 0 else body
  return _sealed(zlib.compress(text.encode('utf-8', 'surrogatepass'), 1), body)


def _sealed(compressed: bytes, body: bytes, version: int = packed.VERSION) -> bytes:
  head = lambda digest: _HEAD.pack(packed.MAGIC, version, len(compressed), len(body), digest)
  return head(hashlib.sha256(head(bytes(32)) + compressed + body).digest()) + compressed + body


def _change(rng: random.Random, header: Any) -> None:
  """Changes one value somewhere in a header, for another of its kind more often than not."""
  place = header
  while True:
    keys = list(place) if isinstance(place, dict) else range(len(place))
    key = rng.choice(keys) if keys else None
    if key is None or not isinstance(place[key], list | dict) or not place[key] or rng.randrange(12) == 0:
      break
    place = place[key]
  if key is None or (isinstance(place, list) and rng.randrange(10) == 0):
    place[:] = place * rng.choice((0, 2, 2, 3, 1000)) if isinstance(place, list) else place
  else:
    place[key] = _other(rng, place[key])


def _other(rng: random.Random, value: Any) -> Any:
  if isinstance(value, bool) or rng.randrange(8) == 0:
    return rng.choice((True, False, None, 0, -1, 0.5, math.nan, math.inf, 'input', [], {}, [[]], 10**400))
  if isinstance(value, int):
    return rng.choice(
      (value + 1, value - 1, -value, 0, 1, 2, 3, 16, rng.choice(fuzz_hostile.HUGE), -rng.choice(fuzz_hostile.HUGE))
    )
  if isinstance(value, float):
    return rng.choice((-value, 0.0, 1e-40, 1e38, 1e39, 1e300, math.nan, -math.inf))
  if isinstance(value, str):
    return rng.choice((*shapes.RULES, 'input', 'float32', 'int32', 'bfloat16', 'uint8', 'bool', 'lsq', 'x' * 2000))
  if value is None:
    return rng.choice(([0, 255], [255, 0], [-1], [0, 2**40], [0.5, 1]))
  return rng.choice((list(value) * 2, list(value)[::-1], list(value)[1:], []))


def _fitting(rng: random.Random, header: Any, body: bytes) -> bytes:
  """A body as long as the arrays of a header need, if they are possible and it is not too long."""
  lengths = [_length(spec) for spec in header['arrays']] if isinstance(header.get('arrays'), list) else [None]
  if None in lengths or sum(lengths) > 10**6:
    return body
  return body[: sum(lengths)] + rng.randbytes(max(0, sum(lengths) - len(body)))


def _length(spec: Any) -> int | None:
  """The bytes that an array needs; `None` if it is no array."""
  integers = lambda values: isinstance(values, list) and all(type(x) is int and x >= 0 for x in values)
  if not isinstance(spec, list) or len(spec) < 2 or not isinstance(spec[0], str) or not integers(spec[1]):
    return None
  if spec[0] in shape_values.DTYPES:
    return math.prod(spec[1]) * np.dtype(spec[0]).itemsize
  bits = spec[2] if len(spec) > 2 else None
  if not spec[1] or not (integers(bits) or integers([bits])):
    return None
  widths = sum(bits) if isinstance(bits, list) else bits * spec[1][-1]
  return -(-math.prod(spec[1][:-1]) * widths // 8)
