"""The MobileNetV1 x 0.25 of MLPerf Tiny on a folder of images, BitOPs as at 3 bits, 104 kB of flash, 36.9 kB of RAM.

python main.py --config=configs/tiny_mobilenet.py      # as at 3 bits, 0.0948 GBitOPs
python main.py --config=configs/tiny_mobilenet.py:4    # as at 4 bits, 0.1437 GBitOPs

Not from the paper, and nothing is measured here. Of flash it is half of what 8 bits take, of RAM two thirds: the image
alone takes half. The network and its 96 x 96 images are those of visual wake words in
Banbury et al. 2021 (arXiv 2106.07597), which asks 80%; their two classes are images with a person and without.
`--config.data.data_dir` names the folder; `--config.data.dataset=digits` needs none.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'tiny_mobilenet'

  config.data.dataset = 'folder'
  config.data.image_size = 96

  # SAT's factor suits many classes: with two of them and 256 inputs, logits start sqrt(256 / 2) = 11 times too large.
  config.quant.sat = False
  config.quant.scheme = 'lsq'  # whose classifier starts at the scale of the float network's

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.also.size = 0.10406  # MB of flash, for the weights
  config.budget.also.memory = 36.9  # kB of RAM

  learning_rate = 0.05 * config.data.batch_size / 256
  config.pretrain = base.phase(50, learning_rate)
  config.search = base.phase(40, learning_rate, cosine=(0.0, 0.8))
  config.finetune = base.phase(10, learning_rate, cosine=(0.8, 1.0))
  return config
