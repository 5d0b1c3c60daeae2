"""All fields of a recipe, with the paper's settings (FracBits, section 4); recipes change what differs."""

import math

from ml_collections import ConfigDict, config_dict


def bits_argument(text: str | float) -> float:
  """The bit-width that a recipe is given after a colon, as in `--config=configs/mbv1_bitops.py:4`."""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ValueError(f'equivalent bits {text!r} are not a number: give one after the colon, such as :4, or no colon')
  return value


def phase(epochs: float, learning_rate: float, *, warmup_epochs: float = 0, cosine=(0.0, 1.0)) -> ConfigDict:
  """Settings of one phase: its length, its peak learning rate, and the part of one cosine decay that it covers."""
  return ConfigDict(
    dict(
      epochs=float(epochs),  # how long the phase is; parts of an epoch are allowed
      learning_rate=float(learning_rate),  # the peak of the weights' learning rate
      warmup_epochs=float(warmup_epochs),  # over which the rate rises from 0
      cosine=cosine,  # which part of one cosine decay from 0 to 1 the phase covers, such as (0.0, 0.8)
      weights_rate=1.0,  # the weights' learning rate as a multiple of that of clips and ranges; 0 keeps the weights
      reestimate_batches=0,  # over which batch norm statistics are computed anew (or moved, where frozen) at the end
    )
  )


def paper_phases(config: ConfigDict, learning_rate: float) -> None:
  """The paper's schedule at its rate for a batch of 256: one cosine over 120 epochs of search and 30 of finetuning."""
  learning_rate *= config.data.batch_size / 256
  config.pretrain = phase(150, learning_rate)
  config.search = phase(120, learning_rate, cosine=(0.0, 0.8))
  config.finetune = phase(30, learning_rate, cosine=(0.8, 1.0))


def get_config() -> ConfigDict:
  """A complete configuration; `None` fields follow the data set or the budget, as said beside them."""
  config = ConfigDict()
  config.seed = 0  # of the weights, the order of the images, their augmentation and the draws
  config.phases = ('pretrain', 'search', 'finetune')  # those to run, in this order
  config.policy = config_dict.placeholder(str)  # a policy file to finetune instead of searching
  config.init_from = config_dict.placeholder(str)  # a run's folder, or published weights as a .safetensors file

  config.model = ConfigDict()
  config.model.name = 'mobilenet_v1'  # or another network of fracbits_jax.models
  config.model.width = 1.0  # multiplies the number of channels of every layer
  config.model.dtype = 'float32'  # or bfloat16, for the computation: parameters, statistics and bits stay in float32
  config.model.remat = False  # compute batch norm and quantized tensors again for gradients: less memory of GPU or TPU
  config.model.frozen_norm = False  # search and finetune keep the float network's batch norm statistics
  # These follow init_from where they are None, and without it:
  config.model.small_images = config_dict.placeholder(bool)  # None: a full-resolution stem up to 64 x 64 images
  config.model.image_mean = config_dict.placeholder(tuple)  # None: (); by colour in 0..255, subtracted from the images
  config.model.relu6 = config_dict.placeholder(bool)  # None: False; only MobileNetV2 has it
  # Decoders of language alone have these; None: as the network of this name has it.
  config.model.decoder = ConfigDict()
  config.model.decoder.dim = config_dict.placeholder(int)  # features of a token
  config.model.decoder.depth = config_dict.placeholder(int)  # blocks
  config.model.decoder.head_dim = config_dict.placeholder(int)  # features of an attention head
  config.model.decoder.kv_heads = config_dict.placeholder(int)  # heads of keys and values; None: as many as of queries
  config.model.decoder.mlp = config_dict.placeholder(str)  # swiglu or gelu
  config.model.decoder.norm = config_dict.placeholder(str)  # rms or layer
  config.model.decoder.positions = config_dict.placeholder(str)  # rotary or learned
  config.model.decoder.tied = config_dict.placeholder(bool)  # the head is the table of embeddings
  config.model.decoder.scan = config_dict.placeholder(bool)  # one loop over the blocks, compiled once

  config.data = ConfigDict()
  config.data.dataset = 'imagenet2012'  # any image classification set of TFDS; 'folder', 'arrays' or 'text' in data_dir
  config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own default
  config.data.image_size = config_dict.placeholder(int)  # None: the data set's own
  config.data.random_crops = config_dict.placeholder(bool)  # False: whole images, shifted; None: as the set has it
  config.data.exif_orientation = False  # True: turn images as their EXIF data say; TIFF files always are
  config.data.background = config_dict.placeholder(tuple)  # (R, G, B) behind transparency; None: what the file has
  config.data.noise = 0.0  # standard deviation of the noise to be taken out of images, as a part of 255; 0: none
  config.data.tokens = 'characters'  # of a text; or bytes
  config.data.context = 128  # tokens of a text that the network sees at once
  config.data.batch_size = 256  # over all devices
  config.data.accumulate = 1  # parts of a batch that a device computes one after the other; one update for all
  config.data.workers = 0  # processes that read and augment images; 0: a thread, enough for small sets

  config.quant = ConfigDict()
  config.quant.granularity = 'layer'  # one bit-width a kernel; or kernel, one for each output channel
  config.quant.choices = tuple(range(2, 9))  # allowed bit-widths; 0, with one a channel, prunes it
  config.quant.input_choices = config_dict.placeholder(tuple)  # None: as choices, without 0
  config.quant.init_bits = config_dict.placeholder(float)  # None: the budget's uniform bit-width + 0.5
  config.quant.weight_only = False  # leave the inputs of layers as they are
  config.quant.quantize_residuals = False  # what comes into a residual block once, for convolution and shortcut
  config.quant.scheme = 'original'  # or modified (kernels by floor), lsq (learned step sizes)
  config.quant.kernel_ranges = 'layer'  # with lsq one range a kernel; or channel, one for each output channel
  config.quant.kernel_levels = 'twos_complement'  # with lsq; or balanced, with few bits: none is 0, all by pairs
  config.quant.group_size = config_dict.placeholder(int)  # with lsq one range for so many weights of a channel, as 32
  config.quant.range_bits = 16  # of the range of a group, or 32; they count in the size
  config.quant.input_offset = False  # with lsq: ranges of signed inputs lie around an offset that is learned
  config.quant.stochastic = False  # draw one of the two neighbouring bit-widths instead of interpolating
  config.quant.mixture = 'values'  # interpolates the two neighbouring bit-widths; elements: each takes one of the two
  config.quant.sat = True  # rescale the classifier's kernel as SAT does
  config.quant.alpha_init = 8.0  # where the clips of the inputs start without calibration
  config.quant.calibration_batches = 8  # over which the clips are calibrated; 0 leaves every clip at alpha_init
  config.quant.calibration = 'squares'  # or absolute, trimmed: where activations have outliers
  config.quant.recalibrate = False  # clips and ranges follow the bits when a search's become integers

  config.budget = ConfigDict()
  config.budget.metric = 'bitops'  # or size, lookup, memory (RAM: the most that is stored at once while it runs)
  config.budget.table = config_dict.placeholder(str)  # of the metric lookup: a table's name or the path of a CSV file
  config.budget.equivalent_bits = 3.0  # the budget is what this bit-width costs everywhere
  config.budget.target = config_dict.placeholder(float)  # in the metric's unit; goes before equivalent_bits
  config.budget.bits_per_weight = config_dict.placeholder(float)  # of the metric size, in place of a target, as 4.5
  config.budget.also = ConfigDict()
  config.budget.also.bitops = config_dict.placeholder(float)  # a budget that has to hold as well, in GBitOPs
  config.budget.also.size = config_dict.placeholder(float)  # the same in MB
  config.budget.also.lookup = config_dict.placeholder(float)  # the same in the unit of the table
  config.budget.also.memory = config_dict.placeholder(float)  # the same in kB of 10^3 bytes
  # The penalty, fixed: kappa |cost / target - 1|.
  config.budget.kappa = config_dict.placeholder(float)  # None: the target; 1 for lookup, memory or several budgets
  # The penalty, controlled: there is no kappa to tune.
  config.budget.controlled = False  # a multiplier rises while the cost is over the target, instead of a fixed kappa
  config.budget.gain = 4.0  # how fast that multiplier rises
  config.budget.damping = 40.0  # how much it is held back while the cost falls
  config.budget.discretization = 'exact'  # or offset, the paper's: one offset for all, whatever it leaves unused

  config.optimizer = ConfigDict()
  config.optimizer.name = 'sgd'  # with Nesterov momentum, or adamw; of the weights
  config.optimizer.momentum = 0.9  # of adamw: beta 1
  config.optimizer.weight_decay = 4e-5  # of the kernels of dense layers and of convolutions that are not depthwise
  config.optimizer.clip_norm = config_dict.placeholder(float)  # None: any; the largest norm of the weights' gradient
  config.optimizer.bits_name = 'sgd'  # what moves the bits; or adam
  config.optimizer.bits_clip = config_dict.placeholder(float)  # None: any; the largest gradient of a bit-width
  config.optimizer.bits_rate = 1.0  # the bits' learning rate as a multiple of the weights'
  config.optimizer.channel_bits_rate = 1.0  # of bit-widths of channels, as a multiple of bits_rate
  config.optimizer.bits_balance = 0.0  # 1: bits of layers that cost little move as fast as others; or between
  config.optimizer.hardening = 0.0  # part of the search, its last, in which the bits are drawn to integers
  config.optimizer.dampening = 0.0  # draws weights to their levels in the finetuning, with quant.scheme=lsq

  config.distill = ConfigDict()
  config.distill.weight = 0.0  # share of the loss that is the distance from the float network's logits; 0: none
  config.distill.temperature = 1.0  # by which both logits are divided
  config.distill.phases = ('search', 'finetune')  # in which that is so

  config.checkpoint_seconds = 60.0  # between two checkpoints; each phase ends with one as well
  config.checkpoint_steps = config_dict.placeholder(int)  # steps between two of them, beside those by time
  config.report_steps = 200  # between two rows of metrics.jsonl; an epoch where that is shorter
  config.eval_epochs = 1.0  # epochs between two evaluations on the validation split

  paper_phases(config, 0.05)
  return config.lock()
