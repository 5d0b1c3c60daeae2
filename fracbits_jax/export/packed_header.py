"""The frame of a packed file: what is read of it before anything in it is believed.

| bytes | content |
| --- | --- |
| 8 | `FRACBITS` |
| 4 | version, 1 or 2 |
| 4 | length of the header |
| 8 | length of the body |
| 32 | SHA-256 of all other bytes |
| | header: JSON in ASCII, compressed with zlib |
| | body |

Integers are little-endian. A header that would take much memory is refused before it is parsed.
"""

import hashlib
import json
import os
import pathlib
import re
import stat
import struct
import zlib
from typing import Any

import numpy as np

from fracbits_jax.system import strict_json

MAGIC, VERSION = b'FRACBITS', 2
VERSIONS = (1, 2)  # that are read; `packed_rows` has how they differ

# Enough for 5,000 operations and 300,000 channels with bits of their own, and in memory at most 50 MB.
MAX_TEXT = 4 * 2**20
MAX_ENTRIES = 500_000
MAX_LISTS = 100_000
MAX_STRINGS = 150_000
MAX_DEPTH = 32

_HEAD = struct.Struct('<8sIIQ32s')
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def seal(header: Any, body: bytes) -> bytes:
  """The bytes of a file."""
  packed = zlib.compress(json.dumps(header, separators=(',', ':')).encode(), 9)
  digest = _digest(VERSION, packed, body, len(packed))
  return _HEAD.pack(MAGIC, VERSION, len(packed), len(body), digest) + packed + body


def load(path: str | os.PathLike) -> bytes:
  """The bytes of a file that is as long as its first bytes say; `ValueError` for others, without the file's name."""
  try:
    with pathlib.Path(path).open('rb') as file:
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise ValueError('it is no file')
      _lengths(file.read(_HEAD.size), status.st_size)
      file.seek(0)
      return file.read(status.st_size)
  except OSError as error:
    raise ValueError(f'it cannot be read ({error.strerror or error})') from None


def unseal(data: bytes) -> tuple[Any, memoryview, int]:
  """The header, the body and the version of a file whose bytes are those that were written.

  Raises:
    ValueError: what is wrong with it, without the file's name.
  """
  version, length, digest = _lengths(data[: _HEAD.size], len(data))
  rest = memoryview(data)[_HEAD.size :]
  packed, body = rest[:length], rest[length:]
  if _digest(version, packed, body, length) != digest:
    raise ValueError('its bytes have changed since it was written, by their SHA-256')
  return strict_json.loads(_text(packed).decode('ascii')), body, version


def _lengths(head: bytes, size: int) -> tuple[int, int, bytes]:
  """The version, the length of the header and the digest, of a file of `size` bytes."""
  if len(head) < _HEAD.size or head[:8] != MAGIC:
    raise ValueError(f'it does not begin with {MAGIC.decode()}')
  _, version, header_length, body_length, digest = _HEAD.unpack(head)
  if version not in VERSIONS:
    raise ValueError(f'it has version {version}, and this program reads versions {" and ".join(map(str, VERSIONS))}')
  expected = _HEAD.size + header_length + body_length
  if size != expected:
    raise ValueError(f'it has {size:,} bytes instead of {expected:,}')
  return version, header_length, digest


def _digest(version: int, packed: Any, body: Any, length: int) -> bytes:
  digest = hashlib.sha256(_HEAD.pack(MAGIC, version, length, len(body), bytes(32)))
  digest.update(packed)
  digest.update(body)
  return digest.digest()


def _text(packed: memoryview) -> bytes:
  """The text of a header, if parsing it takes little memory."""
  decompressor = zlib.decompressobj()
  try:
    text = decompressor.decompress(packed, MAX_TEXT)
  except zlib.error:
    raise ValueError('its header cannot be decompressed') from None
  if not decompressor.eof or decompressor.unused_data:
    raise ValueError(f'its header is longer than {MAX_TEXT:,} bytes, or does not end where it should')
  if not text.isascii():
    raise ValueError('its header is not in ASCII')
  lists, strings = text.count(b'[') + text.count(b'{'), text.count(b'"') // 2
  entries = lists + text.count(b',') + text.count(b':')  # if not fewer: some may be inside strings
  counts = ('lists', lists, MAX_LISTS), ('strings', strings, MAX_STRINGS), ('entries', entries, MAX_ENTRIES)
  for what, found, most in counts:
    if found > most:
      raise ValueError(f'its header has {found:,} {what}, and at most {most:,} are read')
  depth = _depth(text)
  if depth > MAX_DEPTH:
    raise ValueError(f'its header is nested {depth:,} deep, and at most {MAX_DEPTH} deep is read')
  return text


def _depth(text: bytes) -> int:
  """How deep the lists and objects of a JSON text are nested."""
  brackets = np.frombuffer(_STRING.sub(b'', text).translate(None, _NO_BRACKETS), np.uint8)
  opened = (brackets == ord('[')) | (brackets == ord('{'))
  return int(np.cumsum(np.where(opened, 1, -1)).max(initial=0))
