"""`cifar10_resnet20` on CIFAR-100.

python main.py --config=configs/cifar100_resnet20.py      # as at 3 bits, 0.389 GBitOPs
python main.py --config=configs/cifar100_resnet20.py:4    # as at 4 bits, 0.670 GBitOPs

Not from the paper, and nothing is measured here.
"""

from configs import cifar10_resnet20


def get_config(equivalent_bits='3'):
  config = cifar10_resnet20.get_config(equivalent_bits)
  config.data.dataset = 'cifar100'
  config.quant.sat = True  # its factor fits 64 inputs to 100 classes: sqrt(64 / 100) = 0.8
  return config
