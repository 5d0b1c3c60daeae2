"""Which parameters of a quantized network are ranges: those beside its quantized layers, whatever others are called."""

from collections.abc import Container, Iterable

RANGES = ('alpha', 'kernel_alpha')  # of the inputs, and with `lsq` of the kernel


def range_name(layer: str, which: str, parameters: Container[str]) -> str:
  """The name of a range.

  Args:
    layer: the path of its layer; of a weight that is named after its parameter, since its module has several, that of
      the parameter.
    which: of `RANGES`.
    parameters: names of the network's parameters.
  """
  return f'{layer}_{which}' if layer in parameters else f'{layer}/{which}'.removeprefix('/')


def range_names(layers: Iterable[str], parameters: Container[str]) -> frozenset[str]:
  """The names of those parameters that are ranges; one of the same name beside no quantized layer is none.

  Args:
    layers: the paths of the quantized layers.
    parameters: names of the network's parameters, the ranges among them, such as `block1/conv/alpha`.
  """
  names = (range_name(layer, which, parameters) for layer in layers for which in RANGES)
  return frozenset(name for name in names if name in parameters)
