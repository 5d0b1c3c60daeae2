"""The recipe `digits` under a budget of size: kernels alone are quantized, and inputs stay float.

python main.py --config=configs/digits_size.py    # as at 2 bits, 0.05452 MB
"""

from configs import digits


def get_config(equivalent_bits='2'):
  config = digits.get_config(equivalent_bits)
  config.quant.weight_only = True
  config.quant.choices = tuple(range(1, 9))
  config.budget.metric = 'size'
  return config
