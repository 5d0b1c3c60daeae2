"""All fields of a recipe, with the paper's settings (FracBits, section 4); recipes change what differs."""

from ml_collections import ConfigDict, config_dict


def phase(epochs: float, learning_rate: float, *, warmup_epochs: float = 0, cosine=(0.0, 1.0)) -> ConfigDict:
  """Settings of one phase: its length, its peak learning rate, and the part of one cosine decay that it covers."""
  return ConfigDict(
    dict(
      epochs=float(epochs),
      learning_rate=float(learning_rate),
      warmup_epochs=float(warmup_epochs),
      cosine=cosine,
    )
  )


def get_config() -> ConfigDict:
  """A complete configuration; `None` fields follow the data set or the budget, as said beside them."""
  config = ConfigDict()
  config.seed = 0
  config.phases = ('pretrain', 'search', 'finetune')
  config.policy = config_dict.placeholder(str)  # a policy file to finetune instead of searching

  config.model = ConfigDict()
  config.model.name = 'mobilenet_v1'
  config.model.width = 1.0
  config.model.small_images = config_dict.placeholder(bool)  # None: a full-resolution stem up to 64 x 64 images

  config.data = ConfigDict()
  config.data.dataset = 'imagenet2012'  # any image classification set of TFDS; 'folder' for class folders in data_dir
  config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own default
  config.data.image_size = config_dict.placeholder(int)  # None: the data set's own
  config.data.batch_size = 256  # over all devices
  config.data.workers = 0  # processes that read and augment images; 0: a thread, enough for small sets

  config.quant = ConfigDict()
  config.quant.granularity = 'layer'
  config.quant.choices = tuple(range(2, 9))
  config.quant.input_choices = config_dict.placeholder(tuple)  # None: as choices, without 0
  config.quant.init_bits = config_dict.placeholder(float)  # None: the budget's uniform bit-width + 0.5
  config.quant.weight_only = False
  config.quant.scheme = 'original'
  config.quant.sat = True
  config.quant.alpha_init = 8.0
  config.quant.calibration_batches = 8  # 0 leaves every clip at alpha_init

  config.budget = ConfigDict()
  config.budget.metric = 'bitops'
  config.budget.equivalent_bits = 3.0
  config.budget.target = config_dict.placeholder(float)  # in GBitOPs or MB; goes before equivalent_bits
  config.budget.kappa = config_dict.placeholder(float)  # None: the target, which is the paper's 1 per GBitOP or MB

  config.optimizer = ConfigDict()
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 4e-5
  config.optimizer.bits_rate = 1.0  # the bits' learning rate as a multiple of the weights'

  config.checkpoint_seconds = 60.0  # least time between two checkpoints; each phase ends with one as well
  config.report_steps = 200  # between two rows of metrics.jsonl; an epoch where that is shorter
  config.eval_epochs = 1.0  # epochs between two evaluations on the validation split

  config.pretrain = phase(150, 0.05)
  config.search = phase(120, 0.05, cosine=(0.0, 0.8))
  config.finetune = phase(30, 0.05, cosine=(0.8, 1.0))
  return config.lock()
