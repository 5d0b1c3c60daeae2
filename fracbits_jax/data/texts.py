"""Texts: a file of UTF-8 or the embedded phrases, as tokens in three parts, and windows of them.

The first nine tenths of a text train, the twentieth behind them validates and the last one tests, by position. A token
is a character or a byte:

* `bytes`: 256 of them, whatever the text is; a character that is not in ASCII is several.
* `characters`: those that are in the part that trains, in the order of their code points, and behind them one for all
  that are not, the replacement character U+FFFD. What is unknown in the other parts is that token, which has to be told
  as any other.
"""

import hashlib
import os
import pathlib

import numpy as np

from fracbits_jax.data.contents import Contents
from fracbits_jax.data.dataset import TEXT, Dataset, Spec
from fracbits_jax.data.datasets import phrases
from fracbits_jax.data.sources import Windows

TOKENS = ('characters', 'bytes')
UNKNOWN = '\ufffd'
_REMEDY = 'give a text in UTF-8, or a folder with one'
_PARTS = (18, 1)  # twentieths of a text that train, and that validate


def load(name: str, path: str | None, *, tokens: str, context: int) -> Dataset:
  """The data set of a text.

  Args:
    name: `text`, or `phrases`, for which no path is needed.
    path: of the file, or of a folder with one file whose name ends in `.txt`.
    tokens: of `TOKENS`.
    context: T, tokens that a network sees at once.

  Raises:
    ValueError: one sentence: no such file, no UTF-8, or a text that is too short.
  """
  if tokens not in TOKENS:
    raise ValueError(f'data.tokens={tokens!r} is unknown: give one of {", ".join(TOKENS)}')
  content, what = _read(path) if name == TEXT else (phrases.text().encode(), name)
  codes, vocabulary, notes = _of_bytes(content) if tokens == 'bytes' else _of_characters(content, what)
  parts = _parted(codes)
  # A window and a token to go on with; of the others one that can be told.
  if len(parts[0]) <= context or min(map(len, parts)) < 2:
    raise ValueError(
      f'{what} has {len(codes):,} {tokens}, of which {len(parts[0]):,} train, too few for data.context={context}: give '
      'a longer text, or a smaller data.context'
    )
  train, validation, test = (Windows(part, context) for part in parts)
  return Dataset(
    name=name,
    spec=Spec(image_size=0, channels=0),
    image_size=0,
    class_names=vocabulary,
    train=train,
    validation=validation,
    test=test,
    contents=Contents(
      class_names=vocabulary,
      sizes=(len(train), len(validation), len(test)),
      version=None if name == TEXT else phrases.VERSION,
      files=hashlib.sha256(content).hexdigest()[:16] if name == TEXT else None,
    ),
    notes=notes,
    tokens=tokens,
    context=context,
  )


def _read(path: str | None) -> tuple[bytes, str]:
  """What a file holds, and its path."""
  if path is None:
    raise ValueError(f'data.dataset=text needs data.data_dir: {_REMEDY}; data.dataset=phrases needs none')
  found = pathlib.Path(os.path.expanduser(path))
  try:
    if found.is_dir():
      files = sorted(found.glob('*.txt'))
      if len(files) != 1:
        raise ValueError(f'{found} holds {len(files)} files whose names end in .txt: give a folder with one, or a file')
      found = files[0]
    return found.read_bytes(), str(found)
  except OSError as error:
    raise ValueError(f'{found} cannot be read ({error.strerror or error}): {_REMEDY}') from None


def _parted(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens to train, to validate and to test."""
  first = len(codes) * _PARTS[0] // 20
  second = len(codes) * sum(_PARTS) // 20
  return codes[:first], codes[first:second], codes[second:]


def _of_bytes(content: bytes) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
  """Tokens, their names, and what is to be said of them."""
  return np.frombuffer(content, np.uint8), tuple(f'{byte:#04x}' for byte in range(256)), ()


def _of_characters(content: bytes, what: str) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
  """The same by characters."""
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{what} is no UTF-8, at byte {error.start:,}: give it in UTF-8, or set data.tokens=bytes, which takes any file'
    ) from None
  points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  known = np.unique(_parted(points)[0])
  known = known[known != ord(UNKNOWN)]
  at = np.searchsorted(known, points)
  is_known = (at < len(known)) & (known[np.minimum(at, len(known) - 1)] == points) if len(known) else points < 0
  codes = np.where(is_known, at, len(known)).astype(np.uint8 if len(known) < 256 else np.int32)
  notes = [
    f'{count:,} of {len(part):,} characters {why} are not in the part that trains: they are one token, {UNKNOWN}'
    for part, why in zip(_parted(is_known)[1:], ('to validate', 'to test'), strict=True)
    if (count := int(np.sum(~part)))
  ]
  return codes, (*map(chr, known.tolist()), UNKNOWN), tuple(notes)
