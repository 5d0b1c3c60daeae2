"""MobileNetV1 on ImageNet under a BitOPs budget equivalent to 3 bits, 5.73 GBitOPs: FracBits, table 1.

The paper reports 68.7% top-1 for this budget, and 67.1% for uniform 3 bits by SAT.

python main.py --config=configs/mbv1_bitops.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.model.name = 'mobilenet_v1'

  config.data.dataset = 'imagenet2012'
  config.data.batch_size = 256

  config.quant.choices = tuple(range(2, 9))

  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = 3.0

  # One cosine over 150 epochs: 120 of search, 30 of finetuning.
  learning_rate = 0.05 * config.data.batch_size / 256
  config.pretrain = base.phase(150, learning_rate)
  config.search = base.phase(120, learning_rate, cosine=(0.0, 0.8))
  config.finetune = base.phase(30, learning_rate, cosine=(0.8, 1.0))
  return config
