"""A denoising autoencoder on handwritten digits, BitOPs as at 2 bits; needs no download.

python main.py --config=configs/digits_denoise.py      # as at 2 bits, 0.002261 GBitOPs
python main.py --config=configs/digits_denoise.py:3    # as at 3 bits, 0.004153 GBitOPs

Not from the paper. The images have Gaussian noise of 0.3 of the range of a pixel, and the network gives back what they
were without it: what is measured is the error on images and noise that it has not seen. What it reaches stands in
`docs/recipes.md`.
"""

from configs import base


def get_config(equivalent_bits='2'):
  config = base.get_config()
  config.model.name = 'denoiser'

  config.data.dataset = 'digits'
  config.data.image_size = 16
  config.data.noise = 0.3
  config.data.batch_size = 64

  # A reconstruction has a scale, and the other schemes give the last kernel one of their own.
  config.quant.scheme = 'lsq'
  config.quant.sat = False
  config.quant.choices = tuple(range(1, 9))

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.0
  # At 1000 the bits of the last layer's inputs go to 7, and what the others have left is worse than uniform bits.
  config.optimizer.bits_rate = 100.0

  config.pretrain = base.phase(40, 3e-3, warmup_epochs=2)
  config.search = base.phase(20, 3e-3, warmup_epochs=1, cosine=(0.0, 0.8))
  config.finetune = base.phase(20, 3e-3, warmup_epochs=1)
  config.eval_epochs = 5.0
  return config
