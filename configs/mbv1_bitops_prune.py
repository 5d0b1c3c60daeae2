"""`mbv1_bitops` that may prune channels as well, with 0 to 8 bits for each kernel: FracBits, channel pruning.

python main.py --config=configs/mbv1_bitops_prune.py      # as at 3 bits, 5.73 GBitOPs
python main.py --config=configs/mbv1_bitops_prune.py:4    # as at 4 bits, 9.64 GBitOPs
python main.py --config=configs/mbv1_bitops_prune.py:5    # as at 5 bits, 14.66 GBitOPs

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv1_bitops


def get_config(equivalent_bits='3'):
  config = mbv1_bitops.get_config(equivalent_bits)
  # 0 bits are a pruned channel, so each kernel has bits of its own; inputs keep the bits that they could have.
  config.quant.input_choices = tuple(config.quant.choices)
  config.quant.choices = tuple(range(9))
  config.quant.granularity = 'kernel'
  return config
