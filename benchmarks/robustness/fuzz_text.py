"""Texts with parts that are changed, deleted, repeated, nested or taken from elsewhere, and damaged bytes."""

import dataclasses
import functools
import random
import re
from collections.abc import Callable

DEEP = [f'{left * depth}{right * depth}' for left, right in (('[', ']'), ('{"a":', '}')) for depth in (9, 9999)]
ANYWHERE = [
  '', '0', '1', '8', '33', '-1', '-0', '8.0', '2.5', '1e0', '1e-400', '1e29', '1e31', '1e400', '1_0', '0x8', '٨', '²',
  '9' * 19, '1' + '0' * 400, '1' + '0' * 5000, '1' * 100_000, 'nan', 'NaN', 'Infinity', '-Infinity', 'inf', 'null',
  'true', 'false', '\0', '\n', '\r', '\t', '\x0b', '\x1b[31m', '\x7f', '\x85', '\u2028', '\u202e', '\ufeff', '\udc80',
  'é', 'e\u0301', '\U000e0041', '😀', 'x' * 300, 'x' * 100_000, '"', "'", '""', '"8"', '"8,8"', ',', ',,,', ':', '#',
  '/', '{}', '[]',
]  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Texts that are broken.

  Attributes:
    files: valid ones.
    parts: where the parts of a valid one begin and end.
    strangers: what is put in the place of a part.
  """

  files: tuple[str, ...]
  parts: Callable[[str], tuple[tuple[int, int], ...]]
  strangers: list[str]


@functools.cache
def json_parts(text: str) -> tuple[tuple[int, int], ...]:
  """The values of a JSON file, and the members of its objects."""
  parts: list[tuple[int, int]] = []
  opened: list[tuple[int, int | None]] = []
  key: int | None = None  # where the member of the next value begins
  begin = 0
  for token in _TOKEN.finditer(text):
    if token[0] in '[{':
      opened.append((token.start(), key))
      key = None
    elif token[0] == ':':
      key = begin
    elif token[0] != ',':
      begin, key = opened.pop() if token[0] in ']}' else (token.start(), key)
      parts += [(start, token.end()) for start in (begin, key) if start is not None]
      key = None
  return tuple(parts)


@functools.cache
def csv_parts(text: str) -> tuple[tuple[int, int], ...]:
  """The lines of a CSV file, and their fields."""
  return tuple(found.span() for pattern in (r'[^\n]+', r'[^,\n]+') for found in re.finditer(pattern, text))


def noise(rng: random.Random) -> bytes:
  """Bytes of no meaning."""
  return rng.randbytes(rng.randrange(300))


def broken_text(rng: random.Random, texts: Texts) -> str:
  """A text with one to five parts changed."""
  text = rng.choice(texts.files)
  parts = texts.parts(text)
  before = len(text) + 1
  for begin, end in sorted((rng.choice(parts) for _ in range(rng.choice((1, 1, 1, 1, 2, 5)))), reverse=True):
    if end <= before:
      text, before = text[:begin] + _changed(rng, texts, text[begin:end]) + text[end:], begin
  return text


def broken_file(rng: random.Random, texts: Texts) -> bytes:
  """The bytes of a text, in the range from one changed part to noise."""
  if rng.randrange(20) == 0:
    return noise(rng)
  content = broken_text(rng, texts).encode('utf-8', 'surrogatepass')
  return damaged(rng, content) if rng.randrange(6) == 0 else content


def _changed(rng: random.Random, texts: Texts, part: str) -> str:
  """What comes to stand in the place of a part."""
  how = rng.randrange(11)
  if how < 4:
    return rng.choice(texts.strangers)
  if how < 6:  # a part of another place, where it may well belong
    text = rng.choice(texts.files)
    begin, end = rng.choice([at for at in texts.parts(text) if how == 4 or text[at[0]] == part[:1]] or [(0, 0)])
    return text[begin:end]
  if how == 6:  # often, and layers under names of their own
    times = rng.choice((2, 2, 2, 2, 2, 3, 40)) if rng.randrange(500) else 9999
    names = range(times) if rng.randrange(2) else [*range(times - 1), 0]
    between = rng.choice((', ', ', ', ',', '\n', ''))
    return between.join(part.replace('"name": "', f'"name": "{name or ""}') for name in names)
  if how == 7:
    depth = rng.choice((1, 1, 2, rng.randrange(800, 1000)))  # there is a depth that can be read, but hardly
    left, right = rng.choice((('[', ']'), ('{"a": ', '}'), ('"', '"')))
    return left * depth + part + right * depth
  at = rng.randrange(len(part) + 1)
  if how == 8:
    return part[:at] + rng.choice(texts.strangers) + part[at:]
  return part[:at] + (chr(rng.randrange(0xD800)) if how == 9 else rng.choice('0123456789')) + part[at + 1 :]


def damaged(rng: random.Random, content: bytes) -> bytes:
  """Bytes that went through something."""
  at = rng.randrange(len(content) + 1)
  how = rng.randrange(8)
  if how == 0:
    return content[:at]
  if how == 1:
    return content[at:]
  if how == 2:
    return rng.choice((b'\xef\xbb\xbf', b'\xff\xfe', b'\xef\xbb\xbf\xef\xbb\xbf', b'\0')) + content
  if how == 3:
    return content.decode('utf-8', 'replace').encode(rng.choice(('utf-16', 'utf-32', 'utf-7')))
  if how == 4:
    return content.replace(b'\n', rng.choice((b'\r\n', b'\r', b'', b'\0', b'\xe2\x80\xa8')))
  if how == 5 and rng.randrange(20) == 0:  # too large, or nearly
    return content + rng.choice((b' ', b'\n', b'#', b'[', b'1', b',')) * rng.choice((990_000, 3_990_000, 5_000_000))
  flipped = bytearray(content)
  for _ in range(rng.choice((1, 1, 3, 30))):
    if flipped:
      flipped[rng.randrange(len(flipped))] = rng.randrange(256)
  return bytes(flipped)
