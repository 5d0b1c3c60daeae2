"""A small vision transformer on 1,797 handwritten digits, BitOPs as at 4 bits; needs no download.

python main.py --config=configs/digits_vit.py      # as at 4 bits, 0.2055 GBitOPs
python main.py --config=configs/digits_vit.py:3    # as at 3 bits, 0.1175 GBitOPs

Products of two activations, as within attention, are neither quantized nor counted.
"""

from configs import base


def get_config(equivalent_bits='4'):
  config = base.get_config()
  config.model.name = 'vit_mini'

  config.data.dataset = 'digits'
  config.data.batch_size = 64

  # No batch norm puts right what the other schemes do to the scale of a kernel.
  config.quant.scheme = 'lsq'
  config.quant.sat = False

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.05
  # Adam's rates are small: at 100 times theirs the bits move as in the other recipes.
  config.optimizer.bits_rate = 100.0

  config.pretrain = base.phase(60, 2e-3, warmup_epochs=5)
  config.search = base.phase(25, 1e-3, warmup_epochs=2, cosine=(0.0, 0.8))
  config.finetune = base.phase(30, 1e-3, warmup_epochs=1)
  config.eval_epochs = 5.0
  return config
