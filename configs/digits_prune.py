"""The recipe `digits` with channel pruning: every kernel has a bit-width of its own, and 0 bits take its channel away.

python main.py --config=configs/digits_prune.py    # as at 2 bits
"""

from configs import base, digits


def get_config(equivalent_bits='2'):
  config = digits.get_config()
  config.quant.granularity = 'kernel'
  config.quant.choices = tuple(range(9))
  config.quant.input_choices = tuple(range(2, 9))
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  return config
