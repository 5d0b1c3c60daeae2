"""A small decoder on the embedded phrases, 3.5 bits a weight and inputs as they are; needs no download.

python main.py --config=configs/text_gpt.py        # 3.5 bits a weight, 0.1746 MB
python main.py --config=configs/text_gpt.py:2.5    # 2.5 bits a weight, 0.1247 MB

Half a bit of each weight is its share of the range of 16 bits that 32 weights have: uniform bits are 3 and 2.

Not from the paper, and no test text is measured here. The text is made by a small grammar, `datasets/phrases.py` among
the data, and what counts is bits per character on its last twentieth. `--config.data.dataset=text` takes any text in
UTF-8 instead, the file `--config.data.data_dir`, and `--config.data.tokens=bytes` any file;
`--config.model.name=gpt_small` and larger ones are for an accelerator, where `--config.model.decoder.scan=True`
compiles one block instead of all.
"""

from configs import base


def weights(config):
  """How the weights are quantized."""
  config.quant.scheme = 'lsq'  # there is no batch norm that would put right the scale of a kernel
  config.quant.sat = False
  config.quant.group_size = 32
  config.quant.choices = tuple(range(1, 9))


def get_config(bits_per_weight='3.5'):
  config = base.get_config()
  config.model.name = 'gpt_mini'
  # 96 features, 0.4 million parameters, which take minutes on two cores; groups divide 96 and the 256 within a block.
  config.model.width = 0.75
  config.model.decoder.kv_heads = 1

  config.data.dataset = 'phrases'
  config.data.context = 128
  config.data.batch_size = 16

  weights(config)
  config.quant.weight_only = True
  config.budget.metric = 'size'
  config.budget.bits_per_weight = base.bits_argument(bits_per_weight)
  config.budget.controlled = True

  config.optimizer.name = 'adamw'
  config.optimizer.weight_decay = 0.01
  # On tinyshakespeare, with 1.5 million weights and 2.5 bits each (seed 0, validation, bits per character): 2.1362 with
  # uniform bits, 2.1346 after a quarter of the steps as search, 2.1238 after a tenth with balanced bits, and 2.1209 in
  # one cosine.
  config.optimizer.bits_rate, config.optimizer.bits_balance = 3000.0, 1.0
  config.budget.damping, config.budget.gain = 10.0, 2.0

  config.pretrain = base.phase(3, 3e-3, warmup_epochs=0.1)
  config.search = base.phase(0.2, 1e-3, warmup_epochs=0.02, cosine=(0.0, 0.1))
  config.finetune = base.phase(1.8, 1e-3, warmup_epochs=0.05, cosine=(0.1, 1.0))
  config.report_steps = 25  # the search has 88
  return config
