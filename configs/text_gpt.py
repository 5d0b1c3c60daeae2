"""A small decoder on the embedded phrases, its weights in the size of 3 bits and its inputs as they are; no download.

python main.py --config=configs/text_gpt.py      # as at 3 bits, 0.1497 MB
python main.py --config=configs/text_gpt.py:2    # as at 2 bits, 0.09979 MB

Not from the paper, and nothing is measured here. The text is made by a small grammar, `datasets/phrases.py` among the
data, and what counts is bits per character on its last twentieth. `--config.data.dataset=text` takes any text in UTF-8
instead, the file `--config.data.data_dir`, and `--config.data.tokens=bytes` any file; `--config.model.name=gpt_small`
and larger ones are for an accelerator, where `--config.model.decoder.scan=True` compiles one block instead of all.
"""

from configs import base


def weights(config, equivalent_bits):
  """What is quantized of the weights, and to which budget."""
  config.quant.scheme = 'lsq'  # there is no batch norm that would put right the scale of a kernel
  config.quant.sat = False
  config.quant.kernel_ranges = 'channel'
  config.quant.choices = tuple(range(1, 9))
  config.budget.metric = 'size'
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)


def get_config(equivalent_bits='3'):
  config = base.get_config()
  config.model.name = 'gpt_mini'
  config.model.width = 0.75  # 96 features, 0.4 million parameters: minutes on two cores
  config.model.decoder.kv_heads = 1

  config.data.dataset = 'phrases'
  config.data.context = 128
  config.data.batch_size = 16

  weights(config, equivalent_bits)
  config.quant.weight_only = True
  config.budget.controlled = True

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.01
  config.optimizer.bits_rate = 100.0

  config.pretrain = base.phase(3, 3e-3, warmup_epochs=0.1)
  config.search = base.phase(1, 1e-3, cosine=(0.0, 0.8))
  config.finetune = base.phase(1, 1e-3, warmup_epochs=0.05)
  config.report_steps = 100
  return config
