"""A text of a million characters that a small grammar makes; nothing is downloaded and nothing is stored.

Its sentences hold what a network can learn in minutes and does not learn alike with few bits and with many:

* agreement: verbs follow the number of their noun, over clauses nested in one another, and so do pronouns;
* sums and differences of numbers up to 99;
* dates: the day behind a day, over the ends of weeks, months and years;
* counting in words, on or back, by steps of one or two;
* brackets of three kinds, nested up to four deep.

What is drawn are raw numbers of the bit generator Philox, whose stream is frozen, and all else are integers and text: a
version is the same everywhere, and a test pins it.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

VERSION = '1.0.0'
LENGTH = 1_000_000  # characters
_SEED = 0

_NOUNS = (
  ('cat', 'cats'), ('dog', 'dogs'), ('child', 'children'), ('farmer', 'farmers'), ('woman', 'women'), ('fox', 'foxes'),
  ('bird', 'birds'), ('baker', 'bakers'), ('king', 'kings'), ('mouse', 'mice'), ('painter', 'painters'),
  ('neighbour', 'neighbours'),
)  # fmt: skip
_VERBS = (
  ('sees', 'see'), ('follows', 'follow'), ('likes', 'like'), ('hears', 'hear'), ('carries', 'carry'),
  ('watches', 'watch'), ('knows', 'know'), ('helps', 'help'),
)  # fmt: skip
_ACTIONS = (('sleeps', 'sleep'), ('runs', 'run'), ('sings', 'sing'), ('waits', 'wait'), ('is', 'are'), ('has', 'have'))
_STATES = ('tired', 'happy', 'hungry', 'late', 'quiet', 'alone')
_THINGS = ('a hat', 'no money', 'two coins', 'an idea', 'red shoes')
_ADJECTIVES = ('old', 'small', 'clever', 'kind', 'young', 'brave', 'green')
_DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')
_MONTHS = (
  ('January', 31), ('February', 28), ('March', 31), ('April', 30), ('May', 31), ('June', 30), ('July', 31),
  ('August', 31), ('September', 30), ('October', 31), ('November', 30), ('December', 31),
)  # fmt: skip
_UNITS = (
  'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve', 'thirteen',
  'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
)  # fmt: skip
_TENS = ['twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety']
_BRACKETS = ('()', '[]', '{}')


_Value = TypeVar('_Value')


class _Draws:
  """Random integers, from the raw numbers of a bit generator."""

  def __init__(self, seed: int):
    self._philox = np.random.Philox(seed)
    self._left: Iterator[int] = iter(())

  def below(self, count: int) -> int:
    """One from 0 to `count` - 1; the bias of the remainder is that of 2^64, nothing."""
    found = next(self._left, None)
    if found is None:
      self._left = iter(self._philox.random_raw(4096).tolist())
      found = next(self._left)
    return int(found) % count

  def one_of(self, values: Sequence[_Value]) -> _Value:
    """One of several."""
    return values[self.below(len(values))]


@functools.lru_cache(maxsize=4)
def text(length: int = LENGTH, seed: int = _SEED) -> str:
  """The text: paragraphs of sentences, cut at its length.

  Args:
    length: characters; a longer text begins with a shorter one.
    seed: of all that is drawn.
  """
  draws, paragraphs, total = _Draws(seed), [], 0
  while total < length:
    paragraph = ' '.join(_sentence(draws) for _ in range(3 + draws.below(4))) + '\n'
    paragraphs.append(paragraph)
    total += len(paragraph)
  return ''.join(paragraphs)[:length]


def _sentence(draws: _Draws) -> str:
  kinds = (_agreement, _agreement, _agreement, _sum, _sum, _date, _counting, _brackets)
  return kinds[draws.below(len(kinds))](draws)


def _agreement(draws: _Draws) -> str:
  """One or two sentences on the same noun: `The cats that the old king likes are tired. They sing.`"""
  plural = draws.below(2)
  subject = _noun_phrase(draws, plural, depth=0)
  first = f'{subject[0].upper()}{subject[1:]} {_predicate(draws, plural, depth=0)}.'
  return first if draws.below(3) else f'{first} {("It", "They")[plural]} {_predicate(draws, plural, depth=1)}.'


def _noun_phrase(draws: _Draws, plural: int, depth: int) -> str:
  adjective = f'{draws.one_of(_ADJECTIVES)} ' if draws.below(2) else ''
  found = f'the {adjective}{draws.one_of(_NOUNS)[plural]}'
  if depth < 2 and not draws.below(3):
    other = draws.below(2)
    if draws.below(2):
      return f'{found} that {_noun_phrase(draws, other, depth + 1)} {draws.one_of(_VERBS)[other]}'
    return f'{found} that {draws.one_of(_VERBS)[plural]} {_noun_phrase(draws, other, depth + 1)}'
  return found


def _predicate(draws: _Draws, plural: int, depth: int) -> str:
  if draws.below(2):
    return f'{draws.one_of(_VERBS)[plural]} {_noun_phrase(draws, draws.below(2), depth + 1)}'
  action = draws.one_of(_ACTIONS)
  object_of = {'is': _STATES, 'has': _THINGS}.get(action[0])
  return action[plural] if object_of is None else f'{action[plural]} {draws.one_of(object_of)}'


def _sum(draws: _Draws) -> str:
  a, b = draws.below(100), draws.below(100)
  return f'{a} + {b} = {a + b}.' if draws.below(2) else f'{max(a, b)} - {min(a, b)} = {max(a, b) - min(a, b)}.'


def _date(draws: _Draws) -> str:
  """`After Sunday, 31 December comes Monday, 1 January.`"""
  weekday, month = draws.below(7), draws.below(12)
  name, days = _MONTHS[month]
  # Every fourth is the end of a month, or it would hardly be met.
  day = days if not draws.below(4) else 1 + draws.below(days)
  following = f'{day + 1} {name}' if day < days else f'1 {_MONTHS[(month + 1) % 12][0]}'
  return f'After {_DAYS[weekday]}, {day} {name} comes {_DAYS[(weekday + 1) % 7]}, {following}.'


def _counting(draws: _Draws) -> str:
  """`Nine, eleven, thirteen.`, or back."""
  count, step = 3 + draws.below(4), 1 + draws.below(2)
  start = draws.below(100 - step * (count - 1))
  numbers = [_in_words(start + step * i) for i in range(count)]
  return ', '.join(numbers if draws.below(3) else numbers[::-1]).capitalize() + '.'


def _in_words(number: int) -> str:
  if number < 20:
    return _UNITS[number]
  tens, units = divmod(number, 10)
  return _TENS[tens - 2] + (f'-{_UNITS[units]}' if units else '')


def _brackets(draws: _Draws) -> str:
  return f'{_bracket(draws, 1)}.'


def _bracket(draws: _Draws, depth: int) -> str:
  left, right = tuple(draws.one_of(_BRACKETS))
  parts = []
  for _ in range(1 + draws.below(3)):
    inner = depth < 4 and draws.below(2)
    parts.append(_bracket(draws, depth + 1) if inner else 'abcdefgh'[draws.below(8)])
  return f'{left}{" ".join(parts)}{right}'
