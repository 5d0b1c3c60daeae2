"""The recipe `digits` with channel pruning: every kernel has a bit-width of its own, and 0 bits take its channel away.

python main.py --config=configs/digits_prune.py    # as at 2 bits, 0.01719 GBitOPs

What it reaches stands in `docs/recipes.md`, and `benchmarks/accuracy/variants.py` repeats it on smaller images.
"""

from configs import digits


def get_config(equivalent_bits='2'):
  config = digits.get_config(equivalent_bits)
  config.quant.granularity = 'kernel'
  config.quant.choices = tuple(range(9))
  config.quant.input_choices = tuple(range(2, 9))
  config.budget.controlled = True
  # A kernel's bits see one channel's share of the layer's gradient: at ten times the weights' rate they hardly move,
  # the search ends 26% over its budget, and no channel goes (measured on 16 x 16 images, kappa = 1).
  config.optimizer.bits_rate = 100.0
  return config
