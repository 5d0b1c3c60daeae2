"""ResNet-18 on ImageNet under the BitOPs of uniform bits, one bit-width a layer: FracBits, section 4.

python main.py --config=configs/resnet18_bitops.py      # as at 3 bits, 22.83 GBitOPs
python main.py --config=configs/resnet18_bitops.py:4    # as at 4 bits, 34.70 GBitOPs

The accuracy that the paper gives for this is not reported here, and nothing is measured here; `resnet18_bitops_kernel`
has its figure for one bit-width a kernel.

Without ImageNet, `--config.data.dataset=digits` runs the same on the embedded digits.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'resnet18'

  config.data.dataset = 'imagenet2012'
  config.data.batch_size = 256

  config.quant.choices = tuple(range(1, 9))

  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)

  base.paper_phases(config, learning_rate=0.05)
  return config
