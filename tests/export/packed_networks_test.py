import jax
import numpy as np
import packed_nets
import pytest

from benchmarks.robustness import random_networks
from fracbits_jax.export import packed
from fracbits_jax.graph import graph, ops

# `affine` is what packing makes; the others are given by no function of `jax.numpy` for an unknown number of images.
_MADE_OTHERWISE = {'constant', 'expand_dims'}


def _networks(seed=0):
  """Networks that together have every piece in them, under every scheme and granularity, and in bfloat16."""
  rng = np.random.default_rng(seed)
  pieces, layers = rng.permutation(list(packed_nets.PIECES)).tolist(), list(packed_nets.LAYERS)
  for at in range(0, len(pieces), 2):
    chosen = tuple(pieces[at : at + 2])
    scheme = ('original', 'modified', 'lsq')[at // 2 % 3]
    yield packed_nets.Net(
      pieces=chosen,
      layers=tuple(layers[(at // 2 + i) % len(layers)] for i in range(len(chosen))),
      scheme=scheme,
      ranges=random_networks.ranges_of(at // 2, scheme),
      offset=random_networks.has_offset(at // 2, scheme),
      levels=random_networks.levels_of(at // 2 + 1, scheme),
      granularity=('layer', 'kernel')[at // 2 % 2],
      dtype=('float32', 'float32', 'bfloat16')[at // 2 % 3],
    )


def test_whatever_is_written_is_read_with_equal_answers(tmp_path):
  x = np.random.default_rng(1).standard_normal((2, *packed_nets.SHAPE)).astype(np.float32)
  words = np.array([[0, 4, 2], [5, 1, 6]], np.int32)  # 6 is beyond the last word, which gives NaN in the network, too
  cases = [(model, x) for model in _networks()] + [(packed_nets.Words(words=count), words) for count in (7, 6)]
  met = set()
  for seed, (model, inputs) in enumerate(cases):
    source = packed_nets.source(model, inputs, seed)
    packed.write(source, tmp_path / 'net')
    found = packed.read(tmp_path / 'net').graph
    met.update(node.op for node in found.nodes)
    both = jax.jit(
      lambda variables, x, found=found, model=model: (graph.evaluate(found, x)[0], model.apply(variables, x))
    )
    y, expected = both(source.variables, inputs)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3 * np.nanmax(np.abs(expected)), err_msg=str(model))
  assert set(ops.OPS) - met == _MADE_OTHERWISE


def test_a_network_that_would_not_be_read_back_is_not_written(tmp_path):
  model = packed_nets.Words(words=3)
  source = packed_nets.source(model, np.zeros((1, 2), np.int32), 0)
  (kernel,) = [node.params['kernel'] for node in source.brief_graph.nodes if node.op == 'kernel']
  object.__setattr__(kernel, 'exact', np.full_like(kernel.exact, np.nan))
  with pytest.raises(ValueError, match='the kernel of QuantDense_0 cannot be packed: its values are not finite'):
    packed.write(source, tmp_path / 'net')
  assert not list(tmp_path.iterdir())
