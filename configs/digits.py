"""MobileNetV1 x 0.25 on 1,797 handwritten digits, BitOPs as at 3 bits; the default, which needs no download.

python main.py

What it reaches stands in the README, and `benchmarks/digits.py` repeats it.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.model.width = 0.25

  config.data.dataset = 'digits'
  config.data.batch_size = 64

  config.quant.choices = tuple(range(1, 9))
  # SAT scales logits for many classes; with 10 of them and 256 inputs it makes them five times too large, and the
  # search begins with gradients that throw the bits about.
  config.quant.sat = False

  config.budget.equivalent_bits = 3.0
  # One unit of loss for a cost of twice the target: enough to hold the budget from about the tenth epoch on.
  config.budget.kappa = 1.0

  # The paper's rate, scaled to this batch. Higher ones threw the search off (at 0.05 the loss after 10 epochs was
  # six times that at 0.0125), and so did starting without a warmup (three times).
  learning_rate = 0.05 * config.data.batch_size / 256
  # At the weights' own rate the bits hardly leave their start: 20 times it spreads them by one bit within 10 epochs.
  config.optimizer.bits_rate = 20.0

  config.pretrain = base.phase(25, 0.05, warmup_epochs=1)
  config.search = base.phase(40, learning_rate, warmup_epochs=2, cosine=(0.0, 0.8))
  config.finetune = base.phase(25, learning_rate, warmup_epochs=1)
  config.eval_epochs = 5.0
  return config
