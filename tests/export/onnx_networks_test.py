"""Every operation of the list, in random company, in files that onnxruntime and the package qonnx run."""

import numpy as np
import pytest

from benchmarks.robustness import onnx_networks, random_networks

AT_ONCE = 3
FINE = {'equal', 'equal but for ties'}


def companies(seed):
  """All operations of the list, in groups."""
  names = np.random.default_rng(seed).permutation(list(random_networks.OPERATIONS)).tolist()
  return [tuple(names[i : i + AT_ONCE]) for i in range(0, len(names), AT_ONCE)]


def judged(verdicts, widths, round_):
  """(how the file was run, verdict) for a network of each company."""
  for seed, names in enumerate(companies(round_), start=100 * round_):
    scheme = random_networks.SCHEMES[seed % 3]
    granularity = ('kernel', 'layer')[seed % 2]
    source, x = random_networks.of_operations(names, seed, widths=widths, scheme=scheme, granularity=granularity)
    for how, verdict in verdicts(source, x):
      yield f'{names}, {scheme}, {granularity}, {how}', verdict


@pytest.mark.parametrize('widths', [(2,), (2, 4, 8)])
def test_onnx_files_load_at_the_defaults_and_give_the_networks_answers(widths):
  found = dict(judged(onnx_networks.onnx_verdicts, widths, round_=len(widths) + widths[0]))
  assert len(found) == len(companies(0)) * len(onnx_networks.SESSIONS) > 30
  assert {how: verdict for how, verdict in found.items() if verdict not in FINE} == {}
  assert sum(verdict == 'equal' for verdict in found.values()) > 0.8 * len(found)


def test_qonnx_files_give_the_networks_answers_also_when_cleaned_up():
  found = dict(judged(onnx_networks.qonnx_verdicts, onnx_networks.QONNX_WIDTHS, round_=1))
  assert {how: verdict for how, verdict in found.items() if verdict not in FINE} == {}
  assert sum(verdict == 'equal' for verdict in found.values()) > 0.8 * len(found)
