"""MobileNetV1 x 0.25 on 1,797 handwritten digits, BitOPs as at 3 bits; the default, which needs no download.

python main.py
python main.py --config=configs/digits.py:4    # as at 4 bits, 0.05452 GBitOPs

What it reaches stands in `docs/recipes.md`, and `benchmarks/accuracy/digits.py` repeats it.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.width = 0.25

  config.data.dataset = 'digits'
  config.data.batch_size = 64

  # SAT's factor suits many classes: with 10 of them and 256 inputs, logits start five times (sqrt(256 / 10)) too large.
  config.quant.sat = False

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  # One unit of loss for a cost of twice the target: enough to reach the budget within a few epochs and hold it.
  config.budget.kappa = 1.0

  # The paper's rate, scaled to this batch.
  learning_rate = 0.05 * config.data.batch_size / 256
  # At the weights' own rate the bits hardly move: the budget is met only after 18 of the 25 epochs, by lowering all
  # costly layers alike, and the bits end within a standard deviation of 0.27 (measured with 1 to 8 bits allowed).
  config.optimizer.bits_rate = 10.0

  config.pretrain = base.phase(25, 0.05, warmup_epochs=1)
  config.search = base.phase(25, learning_rate, warmup_epochs=2, cosine=(0.0, 0.8))
  config.finetune = base.phase(40, learning_rate, warmup_epochs=1)
  config.eval_epochs = 5.0
  return config
