"""The autoencoder of MLPerf Tiny on features of sounds, in the flash of 3 bits where it has a choice; inputs of 8 bits.

python main.py --config=configs/tiny_autoencoder.py      # as at 3 bits, 0.2040 MB
python main.py --config=configs/tiny_autoencoder.py:4    # as at 4 bits, 0.2166 MB

Not from the paper, and nothing is measured here. The network is that of anomaly detection in Banbury et al. 2021 (arXiv
2106.07597): 640 inputs, five frames of 128 mel bands, which it reconstructs; its first and its last kernel have 8 bits,
and all at 8 bits take 0.2668 MB. `--config.data.data_dir` names a file of such vectors as integers of 8 bits;
`--config.data.dataset=digits` needs none, and reconstructs the images.
"""

from configs import base


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'autoencoder'

  config.data.dataset = 'arrays'
  config.data.batch_size = 128

  config.quant.input_choices = (8,)  # flash does not depend on them
  # A reconstruction has a scale, and the other schemes give the last kernel one of their own.
  config.quant.scheme = 'lsq'
  config.quant.sat = False

  config.budget.metric = 'size'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.0
  # A mean squared error of 0.02 pulls at the bits a fiftieth as hard as a cross entropy of 1. On digits at 100 they end
  # where they began, at 1000 those of the bottleneck half a bit above the others.
  config.optimizer.bits_rate = 1000.0

  config.pretrain = base.phase(100, 1e-3)
  config.search = base.phase(60, 1e-3, cosine=(0.0, 0.8))
  config.finetune = base.phase(40, 1e-3, warmup_epochs=1)
  return config
