"""Networks that were written without quantization, with fractional bits in their layers: linen's and NNX's."""

from typing import Any

from flax import linen as nn

from fracbits_jax.layers import wrap
from fracbits_jax.layers.quant_config import QuantConfig
from fracbits_jax.layers.rules import DEFAULT, EDGE_BITS, Rules


def quantize_model(
  model: Any,
  inputs: Any,
  rules: Rules = (),
  *,
  default: QuantConfig | None = DEFAULT,
  edge_bits: int | None = EDGE_BITS,
  **kwargs: Any,
) -> Any:
  """A network as it is, with fractional bit-widths in its layers.

  Every `nn.Conv`, `nn.ConvTranspose`, `nn.Dense`, `nn.DenseGeneral` (those of attention too) and `nn.Einsum`, and what
  extends them, takes the configuration of the first rule whose pattern matches its whole path; the rest takes
  `default`. The kernels of the first and the last layer, and the inputs of the first, have `edge_bits` unless the
  configuration fixes other ones. Inputs that can be negative are quantized on a range with two sides: whether they can
  is seen with random inputs and parameters, since whatever follows a ReLU never is.

  The default is the scheme `lsq`, whose ranges are learned. The others map every kernel to [-1, 1] and are for layers
  that have a batch norm behind them.

  Args:
    model: a linen module, or an NNX module, which is changed in place.
    inputs: an example of what it is called with, or a tuple of several; integers, such as tokens, must be valid ones.
    rules: pairs of a regular expression and a configuration, or `None` for layers that stay float.
    default: for layers that no rule matches.
    edge_bits: of the first and the last layer, or `None` to treat them as all others.
    **kwargs: for the call, such as `train=False`.

  Returns:
    A module with the same call and the same parameters, to which `alpha`, the clips of the inputs, and the collection
    `bits` are added. Variables of the float network become its own by `from_float`.

  Raises:
    ValueError: a rule that matches no layer, with the paths there are; a network without layers.
  """
  if isinstance(model, nn.Module):
    return wrap.quantize_model(model, inputs, rules, default=default, edge_bits=edge_bits, **kwargs)
  from fracbits_jax.layers import nnx_adapter  # which loads flax.nnx

  return nnx_adapter.quantize_model(model, inputs, rules, default=default, edge_bits=edge_bits, **kwargs)
