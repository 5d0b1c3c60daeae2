"""Which parameters of a network are ranges, by its layer table."""

from collections.abc import Container, Sequence

from fracbits_jax.cost.layer_table import Layer
from fracbits_jax.layers import FLOAT_BITS, ranges


def range_names(layers: Sequence[Layer], parameters: Container[str]) -> frozenset[str]:
  """The names of those parameters that are ranges of quantized layers.

  A parameter of one's own that has such a name elsewhere, or one that ends like it, is none.

  Args:
    layers: the layer table.
    parameters: names of the network's parameters, such as `block1/conv/alpha`.
  """
  return ranges.range_names((layer.path for layer in layers if layer.kernel_bits != FLOAT_BITS), parameters)
