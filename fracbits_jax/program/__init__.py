"""Any network as its program: where it multiplies with a weight, and the same with quantizers there.

Public: `quantize_model` and `from_float`, for linen and NNX networks and functions that others wrote.
"""

from fracbits_jax.program.linen import QuantizedModel
from fracbits_jax.program.networks import from_float, quantize_model
from fracbits_jax.program.rules import DEFAULT, EDGE_BITS, Rules

__all__ = ['DEFAULT', 'EDGE_BITS', 'QuantizedModel', 'Rules', 'from_float', 'quantize_model']
