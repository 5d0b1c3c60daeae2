"""`mbv2_size` with one bit-width per output channel of a kernel: FracBits, kernel-wise.

python main.py --config=configs/mbv2_size_kernel.py      # as at 3 bits, 2.11 MB

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv2_size


def get_config(equivalent_bits='3'):
  config = mbv2_size.get_config(equivalent_bits)
  config.quant.granularity = 'kernel'
  return config
