"""MobileNetV1 x 0.25 on 50,000 letters and digits in 62 classes, BitOPs as at 2 bits; needs no download.

python main.py --config=configs/glyphs.py      # as at 2 bits, 0.00690 GBitOPs
python main.py --config=configs/glyphs.py:3    # as at 3 bits, 0.01091 GBitOPs

The set is drawn on first use, in about a minute. Few bits hurt here, unlike on digits, and test letters are of fonts
that training has not seen. This is the study's `ours` (benchmarks/README.md), which says what each setting gives.
"""

from configs import base


def get_config(equivalent_bits='2'):
  config = base.get_config()
  config.model.width = 0.25
  # A strided stem, as for large images: an epoch costs a fifth of what it costs with the full-resolution one.
  config.model.small_images = False

  config.data.dataset = 'glyphs'
  # An epoch costs a CPU the same with larger batches, and makes fewer steps: at 128 the loss does not fall before the
  # second epoch.
  config.data.batch_size = 64

  config.quant.scheme = 'lsq'
  config.quant.sat = False
  # Two's complement would have one level more below 0 than above it, of 4 at 2 bits.
  config.quant.kernel_levels = 'balanced'
  config.quant.choices = tuple(range(1, 9))  # from 2 on a budget as at 2 bits would leave nothing to search
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True
  # Gently down to the budget, or layers fall to 1 bit in the first steps and stay there.
  config.budget.damping, config.budget.gain = 10.0, 2.0
  # As for digits: within few steps the weights' own rate hardly moves the bits.
  config.optimizer.bits_rate = 10.0

  config.pretrain = base.phase(8, 0.1, warmup_epochs=0.1)
  config.search = base.phase(0.5, 0.05, warmup_epochs=0.1, cosine=(0.0, 0.8))
  config.finetune = base.phase(1.5, 0.05, warmup_epochs=0.1)

  # The float network teaches the finetuning alone: in the search it costs a forward pass a step and gains nothing.
  config.distill.weight, config.distill.temperature, config.distill.phases = 0.5, 2.0, ('finetune',)
  config.finetune.reestimate_batches = 32
  return config
