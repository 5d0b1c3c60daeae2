"""`mbv1_size` with one bit-width per output channel of a kernel: FracBits, kernel-wise.

python main.py --config=configs/mbv1_size_kernel.py      # as at 2 bits, 1.83 MB
python main.py --config=configs/mbv1_size_kernel.py:3    # as at 3 bits, 2.22 MB
python main.py --config=configs/mbv1_size_kernel.py:4    # as at 4 bits, 2.62 MB

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv1_size


def get_config(equivalent_bits='2'):
  config = mbv1_size.get_config(equivalent_bits)
  config.quant.granularity = 'kernel'
  return config
