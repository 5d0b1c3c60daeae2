"""MobileNetV1 on ImageNet under the BitOPs of uniform bits, one bit-width a layer: FracBits, table 1.

python main.py --config=configs/mbv1_bitops.py      # as at 3 bits, 5.73 GBitOPs
python main.py --config=configs/mbv1_bitops.py:4    # as at 4 bits, 9.64 GBitOPs
python main.py --config=configs/mbv1_bitops.py:5    # as at 5 bits, 14.66 GBitOPs

The paper reports 68.7% top-1 at 5.73 GBitOPs, and 67.1% for uniform 3 bits by SAT; the other budgets are not reported
here, and nothing is measured here.

Without ImageNet, `--config.data.dataset=digits` runs the same on the embedded digits.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'mobilenet_v1'

  config.data.dataset = 'imagenet2012'
  config.data.batch_size = 256

  config.quant.choices = tuple(range(2, 9))

  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)

  base.paper_phases(config, learning_rate=0.05)
  return config
