"""Layer tables for tests of policies."""

from fracbits_jax import cost, models
from fracbits_jax.cost import Layer
from fracbits_jax.layers import QuantConfig

TABLE = (
  Layer(name='stem', macs=1000, weights=100, channels=4, kernel_bits=8, input_bits=8),
  Layer(name='block/a', macs=3000, weights=300, channels=3, per_channel=True),
  Layer(name='block/b', macs=9000, weights=900, channels=5, choices=(2, 4, 8), input_choices=(2, 4, 8)),
  Layer(name='head', macs=500, weights=500, channels=5, biases=5, kernel_bits=8),
)


def network(granularity='layer', choices=(4, 8), name='mobilenet_v2', width=1.0):
  quant = QuantConfig(granularity=granularity, choices=choices)
  return cost.trace(models.create(name, num_classes=1000, quant=quant, width=width), (224, 224, 3))
