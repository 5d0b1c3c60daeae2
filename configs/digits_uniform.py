"""The baseline of `digits`: uniform 3 bits from the same float network, for as many epochs, same budget.

python main.py --config=configs/digits_uniform.py
"""

from configs import digits


def get_config():
  config = digits.get_config()
  config.phases = ('pretrain', 'finetune')
  config.finetune.epochs = config.search.epochs + config.finetune.epochs
  return config
