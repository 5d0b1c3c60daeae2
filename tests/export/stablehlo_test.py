import os
import subprocess
import sys

import export_nets
import jax
import numpy as np
import pytest
from export_nets import IMAGES

from fracbits_jax.export import stablehlo

# As on a machine without this project.
RUN = """
import sys
sys.modules['fracbits_jax'] = sys.modules['flax'] = None
import pathlib
import jax
import numpy as np

network = jax.export.deserialize(pathlib.Path(sys.argv[1]).read_bytes())
images = np.load(sys.argv[2])
np.savez(sys.argv[3], all=network.call(images), some=network.call(images[:3]))
"""


@pytest.mark.parametrize(('scheme', 'granularity'), [('original', 'kernel'), ('lsq', 'layer'), ('lsq', 'kernel')])
def test_it_runs_bit_for_bit_without_the_networks_code(scheme, granularity, tmp_path):
  source = export_nets.source(scheme, granularity)
  said = stablehlo.write(source, tmp_path / 'net.stablehlo')
  assert 'for cpu, cuda, tpu and any number of examples' in said
  np.save(tmp_path / 'images.npy', IMAGES)
  files = [str(tmp_path / name) for name in ('net.stablehlo', 'images.npy', 'logits.npz')]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', RUN, *files], check=True, cwd=tmp_path, env=environment)
  network = jax.jit(source.model.apply)
  with np.load(tmp_path / 'logits.npz') as found:
    np.testing.assert_array_equal(found['all'], network(source.variables, IMAGES))
    np.testing.assert_array_equal(found['some'], network(source.variables, IMAGES[:3]))
