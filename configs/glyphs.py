"""MobileNetV1 x 0.25 on 50,000 letters and digits in 62 classes, BitOPs as at 2 bits; needs no download.

python main.py --config=configs/glyphs.py    # as at 2 bits, 0.01744 GBitOPs
python main.py --config=configs/glyphs.py:3    # as at 3 bits, 0.03444 GBitOPs
"""

from configs import base


def get_config(equivalent_bits='2'):
  config = base.get_config()
  config.model.width = 0.25

  config.data.dataset = 'glyphs'
  config.data.batch_size = 128

  # With 62 classes and 256 inputs SAT's factor would make logits start twice (sqrt(256 / 62)) too large.
  config.quant.sat = False

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True
  config.optimizer.bits_rate = 10.0

  config.pretrain = base.phase(4, 0.1, warmup_epochs=0.2)
  config.search = base.phase(2, 0.05, warmup_epochs=0.1, cosine=(0.0, 0.8))
  config.finetune = base.phase(2, 0.05, warmup_epochs=0.1)
  config.eval_epochs = 1.0
  return config
