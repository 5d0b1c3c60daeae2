"""MobileNetV1 x 0.25 on 1,797 handwritten digits, BitOPs as at 3 bits; the default, which needs no download.

python main.py
"""

from configs import base


def get_config():
  config = base.get_config()
  config.model.width = 0.25

  config.data.dataset = 'digits'
  config.data.batch_size = 64

  config.quant.choices = tuple(range(1, 9))

  config.budget.equivalent_bits = 3.0
  config.budget.kappa = 1.0

  # With the weights' rate the bits hardly leave their start in so short a search.
  config.optimizer.bits_rate = 10.0
  config.optimizer.weight_decay = 4e-5

  config.pretrain = base.phase(30, 0.05, warmup_epochs=1)
  config.search = base.phase(30, 0.05, cosine=(0.0, 0.8))
  config.finetune = base.phase(15, 0.05)
  config.eval_epochs = 5.0
  return config
