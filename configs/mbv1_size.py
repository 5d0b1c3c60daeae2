"""MobileNetV1 on ImageNet under the size of uniform bits; kernels alone are quantized, one bit-width a layer: FracBits.

python main.py --config=configs/mbv1_size.py      # as at 2 bits, 1.83 MB
python main.py --config=configs/mbv1_size.py:3    # as at 3 bits, 2.22 MB
python main.py --config=configs/mbv1_size.py:4    # as at 4 bits, 2.62 MB

The paper reports 69.7% top-1 at 1.83 MB, where uniform 2 bits reach 66.3%, and 71.3% at 2.22 MB, where uniform 3 bits
reach 70.7%; the other budget is not reported here, and nothing is measured here.
"""

from configs import mbv1_bitops


def get_config(equivalent_bits='2'):
  config = mbv1_bitops.get_config(equivalent_bits)
  config.quant.weight_only = True
  config.quant.choices = tuple(range(1, 9))
  config.budget.metric = 'size'
  return config
