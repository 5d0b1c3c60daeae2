"""The recipe `text_gpt` with the inputs of layers quantized as well, BitOPs as at 4 bits.

python main.py --config=configs/text_gpt_bitops.py      # as at 4 bits, 0.8175 GBitOPs
python main.py --config=configs/text_gpt_bitops.py:3    # as at 3 bits, 0.4598 GBitOPs

They are those of a window of 128 tokens. Products of two activations, as within attention, are neither quantized nor
counted.
"""

from configs import base, text_gpt


def get_config(equivalent_bits='4'):
  config = text_gpt.get_config()
  config.quant.weight_only = False
  config.quant.group_size, config.quant.kernel_ranges = None, 'channel'  # sums of integers have one scale a channel
  config.quant.choices = tuple(range(2, 9))
  config.budget.metric, config.budget.bits_per_weight = 'bitops', None
  config.optimizer.bits_rate, config.optimizer.bits_balance = 100.0, 0.0  # not tried out
  config.budget.damping, config.budget.gain = 40.0, 4.0
  config.search = base.phase(1, 1e-3, cosine=(0.0, 0.8))
  config.finetune = base.phase(1, 1e-3, warmup_epochs=0.05)
  config.budget.equivalent_bits = base.bits_argument(equivalent_bits)
  return config
