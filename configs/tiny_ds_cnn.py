"""The DS-CNN of MLPerf Tiny on features of sounds, BitOPs as at 3 bits and half the size of 8 bits: 0.011032 MB.

python main.py --config=configs/tiny_ds_cnn.py      # as at 3 bits, 0.0415 GBitOPs
python main.py --config=configs/tiny_ds_cnn.py:4    # as at 4 bits, 0.0579 GBitOPs

Not from the paper, and nothing is measured here. The network is that of keyword spotting in Banbury et al. 2021 (arXiv
2106.07597), which asks 90% of it: 12 classes, 49 frames of 10 coefficients each. `--config.data.data_dir` names a file
of such features as integers of 8 bits, 128 for zero; `--config.data.dataset=digits` needs none.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'ds_cnn'
  config.model.image_mean = (128.0,)

  config.data.dataset = 'arrays'
  config.data.batch_size = 128

  # SAT's factor suits many classes: with 12 of them and 64 inputs, logits start sqrt(64 / 12) = 2.3 times too large.
  config.quant.sat = False
  config.quant.scheme = 'lsq'  # whose classifier starts at the scale of the float network's

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.also.size = 0.011032

  learning_rate = 0.05 * config.data.batch_size / 256
  config.pretrain = base.phase(50, learning_rate)
  config.search = base.phase(40, learning_rate, cosine=(0.0, 0.8))
  config.finetune = base.phase(10, learning_rate, cosine=(0.8, 1.0))
  return config
