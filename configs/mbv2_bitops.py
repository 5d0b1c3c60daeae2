"""MobileNetV2 on ImageNet under the BitOPs of uniform bits, one bit-width a layer: FracBits, section 4.

python main.py --config=configs/mbv2_bitops.py      # as at 3 bits, 3.32 GBitOPs
python main.py --config=configs/mbv2_bitops.py:4    # as at 4 bits, 5.35 GBitOPs

The paper reports 67.8% top-1 at 3.32 GBitOPs, and 67.2% for uniform 3 bits; the other budget is not reported here, and
nothing is measured here.

Without ImageNet, `--config.data.dataset=digits` runs the same on the embedded digits.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'mobilenet_v2'

  config.data.dataset = 'imagenet2012'
  config.data.batch_size = 256

  config.quant.choices = tuple(range(2, 9))

  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)

  base.paper_phases(config, learning_rate=0.1)
  return config
