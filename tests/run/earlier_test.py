"""What version 0.1.0 left is read as what it was."""

import pathlib
import zipfile

import numpy as np
import pytest

from fracbits_jax import run
from fracbits_jax.export import integer, packed
from fracbits_jax.layers.wrap import with_fixed_bits
from fracbits_jax.run import finished, runner

MADE = pathlib.Path(__file__).parents[1] / 'golden' / 'made_with_0.1.0.zip'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('made')
  with zipfile.ZipFile(MADE) as archive:
    archive.extractall(folder)
  with np.load(folder / 'expected.npz') as expected:
    return folder, dict(expected)


def test_a_finished_run_gives_its_logits(made):
  folder, expected = made
  found = finished.load(folder / 'run')
  assert found.result['phase'] == 'finetune'
  network = with_fixed_bits(found.experiment.quant_model)
  logits = network.apply(found.variables, expected['images'].astype(np.float32))
  np.testing.assert_allclose(logits, expected['run'], rtol=1e-4, atol=1e-4)


def test_a_packed_network_gives_its_logits(made):
  folder, expected = made
  found = packed.read(folder / 'network.fracbits')
  logits, _ = integer.inference(found.graph)(expected['images'].astype(np.float32))
  np.testing.assert_allclose(logits, expected['packed'], rtol=1e-5, atol=1e-5)


def test_the_programs_on_its_pages_find_what_they_call():
  assert run.run is runner.run
