"""JSON that anybody may have written: no key twice in one object, no number that takes long to read."""

import json
from typing import Any

_MAX_DIGITS = 40


def loads(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: what is wrong with it, without the name of its file.
  """
  try:
    return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def shown(value: Any) -> str:
  """A value of a JSON file for a message: one line, and short however long the value is."""
  if value is None or isinstance(value, dict | list):
    return 'missing' if value is None else 'an object' if isinstance(value, dict) else 'a list'
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:40]}...'


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    for key, _ in pairs:
      if key in seen:
        raise ValueError(f'{shown(key)} is given twice in one object')
      seen.add(key)
  return found


def _integer(digits: str) -> int:
  if len(digits) > _MAX_DIGITS:  # int takes the longer, the longer they are, and then speaks of limits of its own
    raise ValueError(f'an integer of {len(digits):,} digits')
  return int(digits)
