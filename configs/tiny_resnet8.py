"""The ResNet-8 of MLPerf Tiny on CIFAR-10, BitOPs as at 3 bits, 38.7 kB of flash and 24.6 of RAM, half of 8 bits'.

python main.py --config=configs/tiny_resnet8.py      # as at 3 bits, 0.1369 GBitOPs
python main.py --config=configs/tiny_resnet8.py:4    # as at 4 bits, 0.2213 GBitOPs

Not from the paper, and nothing is measured here. The network is that of Banbury et al. 2021 (arXiv 2106.07597), which
asks 85% of it; the training is that of `cifar10_resnet20`.
"""

from configs import cifar10_resnet20


def get_config(equivalent_bits='3'):
  config = cifar10_resnet20.get_config(equivalent_bits)
  config.model.name = 'tiny_resnet8'
  config.quant.scheme = 'lsq'  # no batch norm carries the scale of the shortcuts' kernels
  config.quant.quantize_residuals = True  # a device stores what comes into a block once, in few bits
  config.budget.also.size = 0.0387  # MB of flash, for the weights
  config.budget.also.memory = 24.6  # kB of RAM
  return config
