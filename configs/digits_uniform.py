"""The baseline of `digits`: uniform bits from the same float network, for as many epochs, same budget.

python main.py --config=configs/digits_uniform.py      # as at 3 bits, 0.03275 GBitOPs
python main.py --config=configs/digits_uniform.py:4    # as at 4 bits, 0.05452 GBitOPs
"""

from configs import digits


def get_config(equivalent_bits='3'):
  config = digits.get_config(equivalent_bits)
  config.phases = ('pretrain', 'finetune')
  config.finetune.epochs = config.search.epochs + config.finetune.epochs
  return config
