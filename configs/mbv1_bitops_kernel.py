"""`mbv1_bitops` with one bit-width per output channel of a kernel: FracBits, kernel-wise.

python main.py --config=configs/mbv1_bitops_kernel.py      # as at 3 bits, 5.73 GBitOPs
python main.py --config=configs/mbv1_bitops_kernel.py:4    # as at 4 bits, 9.64 GBitOPs
python main.py --config=configs/mbv1_bitops_kernel.py:5    # as at 5 bits, 14.66 GBitOPs

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv1_bitops


def get_config(equivalent_bits='3'):
  config = mbv1_bitops.get_config(equivalent_bits)
  config.quant.granularity = 'kernel'
  return config
