"""The baseline of `glyphs`: uniform bits from the same float network, for as many epochs, same budget.

python main.py --config=configs/glyphs_uniform.py      # as at 2 bits, 0.00690 GBitOPs
python main.py --config=configs/glyphs_uniform.py:3    # as at 3 bits, 0.01091 GBitOPs
"""

from configs import glyphs


def get_config(equivalent_bits='2'):
  config = glyphs.get_config(equivalent_bits)
  config.phases = ('pretrain', 'finetune')
  config.budget.damping, config.budget.gain = 40.0, 4.0  # which a search alone reads
  config.finetune.epochs = config.search.epochs + config.finetune.epochs
  return config
