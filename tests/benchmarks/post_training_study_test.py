import pytest

from benchmarks.accuracy import post_training
from fracbits_jax import cost
from fracbits_jax.cost import Layer


def test_what_is_the_same_for_all_methods_runs_once_and_the_table_says_so(capsys):
  cells = post_training.cells_of((0, 1), ('bitops8', 'bitops6'), ('ours', 'hessian'), rows={('ours', 'bitops6', 0)})
  assert cells == [
    (0, 'bitops8', 'uniform'),
    (0, 'bitops6', 'hessian'),
    (1, 'bitops8', 'uniform'),
    (1, 'bitops6', 'ours'),
    (1, 'bitops6', 'hessian'),
  ]
  figures = {'accuracy': 0.9, 'float_accuracy': 0.9, 'agreement': 1.0, 'minutes': 2.0}
  ran = [('uniform', 'bitops8'), ('ours', 'bitops6'), ('hessian', 'bitops6')]
  post_training.print_table({(method, budget, 0): figures for method, budget in ran})
  lines = [line.split(' | ')[:2] for line in capsys.readouterr().out.splitlines()[3:]]
  assert lines == [['| bitops8', 'all: 8 bits everywhere'], ['| bitops6', 'ours'], ['| bitops6', 'hessian']]


def test_the_budget_of_the_largest_bits_is_their_cost():
  table = [Layer(name='conv', macs=10**9, weights=10, channels=2, choices=post_training.CHOICES, input_bits=8)]
  assert post_training.budget_of(table, 'bitops', 8).target == pytest.approx(64)
  with pytest.raises(ValueError, match='already met by the largest'):
    cost.budget('bitops', table, equivalent_bits=8)
  assert post_training.budget_of(table, 'bitops', 6).target == pytest.approx(48)
