"""The embedded text: its characters are pinned, and its sentences say what is so."""

import hashlib
import re

from fracbits_jax.data import sets
from fracbits_jax.data.datasets import phrases


def test_the_text_of_this_version_is_the_same_everywhere():
  text = phrases.text()
  assert len(text) == phrases.LENGTH
  digest = hashlib.sha256(text.encode()).hexdigest()
  assert (phrases.VERSION, digest) == ('1.0.0', 'a1b767017844a55b2012429f8de77cc253ea99ecf9d55150627df41cf088cc0c')
  assert text.startswith(phrases.text(5000))
  assert phrases.text(1000, seed=1) != phrases.text(1000)


def test_sums_dates_and_brackets_are_right():
  text = phrases.text()
  sums = re.findall(r'(\d+) ([+-]) (\d+) = (\d+)\.', text)
  assert len(sums) > 5000
  assert all(int(a) + (1 if sign == '+' else -1) * int(b) == int(c) for a, sign, b, c in sums)
  days = {phrases._DAYS.index(a): phrases._DAYS.index(b) for a, b in re.findall(r'After (\w+), .* comes (\w+),', text)}
  assert days == {i: (i + 1) % 7 for i in range(7)}
  assert 'After Sunday, 31 December comes Monday, 1 January.' in text
  for group in re.findall(r'(?<=[.\n] )[(\[{].*?[)\]}](?=\.)', text)[:500]:
    while (shorter := re.sub(r'\([a-h ]*\)|\[[a-h ]*\]|\{[a-h ]*\}', '', group)) != group:
      group = shorter
    assert not group.strip('abcdefgh ')


def test_verbs_follow_their_noun():
  text = phrases.text()
  singular, plural = ({pair[i] for pair in phrases._NOUNS} for i in (0, 1))
  ends = {verb: i for pair in (*phrases._VERBS, *phrases._ACTIONS) for i, verb in enumerate(pair)}
  simple = re.findall(r'The (?:\w+ )?(\w+) (\w+)[ .]', text)
  pairs = [(noun, verb) for noun, verb in simple if noun in singular | plural and verb in ends]
  assert len(pairs) > 3000
  assert all((noun in plural) == bool(ends[verb]) for noun, verb in pairs)


def test_it_is_a_data_set_that_needs_nothing():
  found = sets.load('phrases', context=64)
  assert found.contents.version == phrases.VERSION
  assert found.num_classes == 62
  assert [len(split.tokens) for split in (found.train, found.validation, found.test)] == [900_000, 50_000, 50_000]
  assert found.notes == ()
