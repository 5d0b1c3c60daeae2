"""`resnet18_bitops` without SAT's rescaling of the classifier: FracBits-PACT.

python main.py --config=configs/resnet18_bitops_pact.py      # as at 3 bits, 22.83 GBitOPs
python main.py --config=configs/resnet18_bitops_pact.py:4    # as at 4 bits, 34.70 GBitOPs

The accuracy that the paper gives for this is not reported here, and nothing is measured here.
"""

from configs import resnet18_bitops


def get_config(equivalent_bits='3'):
  config = resnet18_bitops.get_config(equivalent_bits)
  config.quant.sat = False
  return config
