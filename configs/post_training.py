"""EfficientNet-Lite0 without training: bits and ranges from the float network's answers to a few hundred images.

python main.py --config=configs/post_training.py      # as at 4 bits, 6.704 GBitOPs
python main.py --config=configs/post_training.py:6    # as at 6 bits, 14.19 GBitOPs

each with `--config.init_from=lite0.safetensors --config.data.data_dir=IMAGES`.

The images are class folders, of which the labels serve to measure alone. The search learns bits, clips and ranges by
distillation, with the weights as they are; at the integer bits the ranges are calibrated anew, batch norm's statistics
are moved as quantization moves them, and the weights follow at a small rate.

`fracbits_jax.train.post_training` does this, and more of it, in one call for a network of your own; what that reaches
stands in `docs/post_training.md`.
"""

from configs import base


def get_config(equivalent_bits='4'):
  config = base.get_config()
  config.phases = ('search', 'finetune')
  config.model.name = 'efficientnet_lite0'
  config.model.frozen_norm = True

  config.data.dataset = 'folder'
  config.data.batch_size = 32

  config.quant.choices = tuple(range(2, 9))
  config.quant.scheme = 'lsq'
  config.quant.kernel_ranges = 'channel'  # depthwise kernels need them most
  config.quant.calibration_batches = 4

  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  config.budget.controlled = True

  config.distill.weight = 1.0
  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.0
  config.optimizer.bits_rate = 100.0

  config.search = base.phase(8, 1e-3)
  config.search.weights_rate = 0.0
  config.finetune = base.phase(8, 1e-3)
  config.finetune.weights_rate = 0.03
  config.search.reestimate_batches = config.finetune.reestimate_batches = 8
  config.eval_epochs = 4.0
  return config
