"""MobileNetV2 on ImageNet under the size of uniform bits; kernels alone are quantized, one bit-width a layer: FracBits.

python main.py --config=configs/mbv2_size.py      # as at 3 bits, 2.11 MB

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv2_bitops


def get_config(equivalent_bits='3'):
  config = mbv2_bitops.get_config(equivalent_bits)
  config.quant.weight_only = True
  config.quant.choices = tuple(range(1, 9))
  config.budget.metric = 'size'
  return config
