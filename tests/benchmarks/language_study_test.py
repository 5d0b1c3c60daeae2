"""The study of a decoder: its text in another order, its phases, and its table."""

import itertools
import json

import numpy as np
import pytest

from benchmarks.accuracy import language


@pytest.mark.parametrize('seed', range(5))
def test_a_mixed_text_has_all_pieces_of_the_text_and_no_other(seed, tmp_path):
  rng = np.random.default_rng(seed)
  parts = [f'part {i}: ' + 'ab é\n' * int(rng.integers(1, 200)) + 'end' for i in range(60)]
  path = tmp_path / 'text.txt'
  path.write_text('\n\n'.join(parts), encoding='utf-8')
  found = language.mixed(path, tmp_path / 'work').read_text(encoding='utf-8')
  again = found.removesuffix('\n\n').split('\n\n')
  assert sorted(again) == sorted(parts)
  assert again != parts
  followers = dict(itertools.pairwise(parts))
  together = sum(followers.get(a) == b for a, b in itertools.pairwise(again))
  short = sum(len(part) < language.PIECE / 2 for part in parts)
  assert together >= short / 2  # parts shorter than a piece keep what follows them


@pytest.mark.parametrize('bits', language.BITS)
def test_all_methods_have_as_many_steps_and_ours_one_cosine_over_both_phases(bits):
  ours, uniform = (language.config_of(method, bits, 0, 'text.txt') for method in ('ours', 'uniform'))
  assert (ours.phases, uniform.phases) == (('search', 'finetune'), ('finetune',))
  assert ours.search.epochs + ours.finetune.epochs == pytest.approx(uniform.finetune.epochs)
  (start, middle), (again, end) = ours.search.cosine, ours.finetune.cosine
  assert (start, middle, end) == (0, again, 1)
  assert middle == pytest.approx(ours.search.epochs / uniform.finetune.epochs)
  assert tuple(uniform.finetune.cosine) == (0, 1)
  on_top = language.config_of('ours_on_top', bits, 0, 'text.txt')
  assert on_top.finetune.epochs == pytest.approx(uniform.finetune.epochs)
  assert on_top.search.epochs == ours.search.epochs
  assert ours.budget.bits_per_weight == uniform.budget.bits_per_weight == bits


def test_the_table_pairs_each_method_with_uniform_bits_of_its_seed_and_order(tmp_path):
  def row(method, seed, test, order='mixed'):
    fields = {'method': method, 'bits': 2.5, 'seed': seed, 'test': test, 'float': 2.0 + seed, 'order': order}
    return json.dumps({**fields, 'bits_per_weight': 2.5})

  path = tmp_path / 'results.jsonl'
  lines = [row('uniform', 0, 2.3), row('uniform', 1, 2.4), row('ours', 0, 2.25), row('ours', 1, 2.3)]
  path.write_text('\n'.join([*lines, row('ours', 0, 9.0, 'file')]) + '\n')
  found = language.table(language.read_results(path, 'mixed'))
  assert '| 32 | float | 2.5000 ± 0.7071 |' in found
  assert '| 2.5 | ours | 2.2750 ± 0.0354 | -0.0750 (0.0250) |  | 2.500 |' in found
  assert '9.0' not in found
  assert '9.0' in language.table(language.read_results(path, 'file'))
