"""How the study trains on each data set: networks, epochs, rates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """How a data set is trained on. Every quantized network has `search_epochs + finetune_epochs`, whatever its method.

  Attributes:
    networks: model name -> width multiplier, those of the core grid first.
    core: how many of the networks are in the core grid.
    ablation: the network and the budget at which the core grid takes `ours` apart; everywhere in the full one.
    image_size: height and width, or `None` for the data set's own.
    batch_size: examples of a batch.
    pretrain_epochs: of the float network.
    pretrain_epochs_of: of those networks that have others.
    pretrain_rate: its peak learning rate.
    search_epochs: of methods that search.
    finetune_epochs: after the search.
    one_cosine: whether search and finetuning share one decay of the learning rate, or each has its own.
    rate: peak learning rate of the quantized phases.
    warmup_epochs: of each of them.
    bits_rate: the bits' learning rate as a multiple of the weights'.
    channel_bits_rate: of the bits of channels, as a multiple of that.
    kappa: of the fixed penalty; `None` for the paper's 1 per GBitOP or MB.
    reestimate_batches: of the methods that compute batch norm statistics anew.
    eval_epochs: between two evaluations on the validation split.
    folder: whether the data are class folders, which `set_data_dir` names, rather than a set of TFDS.
    one_core: whether a cell keeps to one core of the CPU. On several its sums have another order, and training ends
      elsewhere: with one core each, cells give the same numbers however many run at a time.
    changes: further values, by their path in the configuration.
  """

  networks: Mapping[str, float]
  core: int = 2
  ablation: tuple[str, str] = ('mobilenet_v1', 'bitops2')
  image_size: int | None = None
  batch_size: int = 64
  pretrain_epochs: float
  pretrain_rate: float
  search_epochs: float
  finetune_epochs: float
  one_cosine: bool = False
  rate: float
  warmup_epochs: float = 1.0
  bits_rate: float = 10.0
  channel_bits_rate: float = 10.0
  kappa: float | None = 1.0
  reestimate_batches: int = 16
  eval_epochs: float = 5.0
  pretrain_epochs_of: Mapping[str, float] = dataclasses.field(default_factory=dict)
  folder: bool = False
  one_core: bool = True
  changes: Changes = dataclasses.field(default_factory=dict)


# What a study is tuned by. `digits` is for trying things out: 400 test images decide nothing.
SETTINGS = {
  'digits': Setting(
    networks={'mobilenet_v1': 0.25, 'resnet20': 0.5, 'mobilenet_v2': 0.25},
    image_size=16,
    pretrain_epochs=25,
    pretrain_rate=0.05,
    search_epochs=10,
    finetune_epochs=10,
    rate=0.0125,
  ),
  # With the strided stem an epoch costs about a fifth of what it costs with the full-resolution one, so that there can
  # be more of them and of cells.
  'glyphs': Setting(
    networks={'mobilenet_v1': 0.25, 'resnet18': 0.125, 'mobilenet_v2': 0.25},
    pretrain_epochs=8,
    pretrain_rate=0.1,
    search_epochs=1,
    finetune_epochs=1,
    rate=0.05,
    warmup_epochs=0.1,
    kappa=4.0,  # with 1 so short a search ends at 1.28 of its budget
    reestimate_batches=32,
    eval_epochs=1.0,
    changes={'model.small_images': False},
  ),
  # CIFAR-10 as class folders: as long as two cores allow.
  'cifar10': Setting(
    networks={'resnet8': 0.5, 'resnet20': 0.5},
    ablation=('resnet8', 'bitops2'),
    folder=True,
    image_size=32,  # folders have 224 otherwise
    batch_size=64,
    pretrain_epochs=10,
    pretrain_epochs_of={'resnet20': 4},  # an epoch takes four times that of ResNet-8
    pretrain_rate=0.1,
    search_epochs=0.5,
    finetune_epochs=0.5,
    rate=0.05,
    warmup_epochs=0.05,
    kappa=4.0,
    reestimate_batches=32,
    eval_epochs=0.5,
    changes={'optimizer.weight_decay': 5e-4, 'data.random_crops': False},
  ),
  # The paper's recipe.
  'imagenet2012': Setting(
    networks={'mobilenet_v1': 1.0, 'resnet18': 1.0, 'mobilenet_v2': 1.0},
    batch_size=256,
    pretrain_epochs=150,
    pretrain_rate=0.05,
    search_epochs=120,
    finetune_epochs=30,
    one_cosine=True,
    rate=0.05,
    warmup_epochs=0.0,
    bits_rate=1.0,
    channel_bits_rate=1.0,
    kappa=None,
    reestimate_batches=100,
    eval_epochs=1.0,
    one_core=False,
    changes={'data.workers': 8},
  ),
}
