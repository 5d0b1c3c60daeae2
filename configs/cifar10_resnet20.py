"""ResNet-20 on CIFAR-10 under the BitOPs of uniform bits, one bit-width a layer.

python main.py --config=configs/cifar10_resnet20.py      # as at 3 bits, 0.389 GBitOPs
python main.py --config=configs/cifar10_resnet20.py:4    # as at 4 bits, 0.670 GBitOPs

Not from the paper, and nothing is measured here. The network, its batch of 128 and its rate of 0.1 are those of He et
al. 2015 (arXiv 1512.03385, section 4.2); a decay of 5e-4 and a cosine over 200 epochs are common practice. Without
CIFAR-10, `--config.data.dataset=digits` runs the same on the embedded digits.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'resnet20'

  config.data.dataset = 'cifar10'
  config.data.batch_size = 128

  config.quant.choices = tuple(range(1, 9))
  # SAT's factor suits many classes: with 10 of them and 64 inputs, logits start sqrt(64 / 10) = 2.5 times too large.
  config.quant.sat = False

  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  # One unit of loss for a cost of twice the target; the paper's 1 per GBitOP would be 0.4 of that.
  config.budget.kappa = 1.0

  config.optimizer.weight_decay = 5e-4

  # As the paper divides its epochs: one cosine, four fifths of search and one of finetuning.
  learning_rate = 0.1 * config.data.batch_size / 128
  config.pretrain = base.phase(200, learning_rate)
  config.search = base.phase(160, learning_rate, cosine=(0.0, 0.8))
  config.finetune = base.phase(40, learning_rate, cosine=(0.8, 1.0))
  return config
