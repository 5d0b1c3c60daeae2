"""`mbv2_bitops` without SAT's rescaling of the classifier: FracBits-PACT.

python main.py --config=configs/mbv2_bitops_pact.py      # as at 3 bits, 3.32 GBitOPs
python main.py --config=configs/mbv2_bitops_pact.py:4    # as at 4 bits, 5.35 GBitOPs

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import mbv2_bitops


def get_config(equivalent_bits='3'):
  config = mbv2_bitops.get_config(equivalent_bits)
  config.quant.sat = False
  return config
