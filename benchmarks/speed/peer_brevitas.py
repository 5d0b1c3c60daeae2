"""Steps of a PyTorch network, in float and trained with Brevitas, both eagerly."""

from collections.abc import Callable

import brevitas
import torch
from brevitas import nn as qnn
from torch import nn

from benchmarks.speed.peers_measure import Step

METHODS = {'float': 'PyTorch', 'qat': 'Brevitas, 8 bits'}
BITS = 8
STATISTICS_STEPS = 1  # over which Brevitas collects percentiles of the activations before it learns their scales


def versions() -> dict[str, str]:
  return {'brevitas': brevitas.__version__, 'torch': torch.__version__}


class Block(nn.Module):
  """A residual block of two 3x3 convolutions; its shortcut is a 1x1 convolution where the shape changes."""

  def __init__(self, conv: Callable, relu: Callable, channels: int, width: int, stride: int):
    super().__init__()
    self.body = nn.Sequential(
      *(conv(channels, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width), relu()),
      *(conv(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
    )
    plain = stride == 1 and channels == width
    self.shortcut = nn.Identity() if plain else conv(channels, width, 1, stride=stride, bias=False)
    self.after = relu()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.after(self.shortcut(x) + self.body(x))


def network(method: str) -> nn.Module:
  """The network of `peers.py`; quantized at the outputs of its ReLUs, which are the inputs of its convolutions."""
  conv, relu, dense, first = nn.Conv2d, nn.ReLU, nn.Linear, []
  if method != 'float':
    conv = lambda *args, **how: qnn.QuantConv2d(*args, weight_bit_width=BITS, **how)
    dense = lambda *args: qnn.QuantLinear(*args, bias=True, weight_bit_width=BITS)
    relu = lambda: qnn.QuantReLU(bit_width=BITS, collect_stats_steps=STATISTICS_STEPS)
    first = [qnn.QuantIdentity(bit_width=BITS, collect_stats_steps=STATISTICS_STEPS)]
  blocks = [Block(conv, relu, *how) for how in ((16, 16, 1), (16, 32, 2), (32, 64, 2))]
  stem = [*first, conv(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), relu()]
  return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(64, 10))


def make(method: str, batch: int) -> Step:
  torch.set_num_threads(1)
  torch.manual_seed(0)
  model = network(method)
  images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
  model.train()
  for _ in range(2 * STATISTICS_STEPS):
    model(images)
  optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True)

  def run(steps: int) -> float:
    for _ in range(steps):
      optimizer.zero_grad()
      loss = nn.functional.cross_entropy(model(images), labels)
      loss.backward()
      optimizer.step()
    return float(loss.detach())

  return Step(run=run, facts={})
