"""PyTorch's own version of the float networks, and their training step, to compare the speed with."""

from collections.abc import Callable

import torch
from torch import nn

_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv(channels: int, out: int, size: int, stride: int = 1, *, groups: int = 1, relu: bool = True) -> nn.Sequential:
  conv = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(out), *([nn.ReLU(inplace=True)] if relu else []))


def _classifier(channels: int) -> list[nn.Module]:
  return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]


class _Residual(nn.Module):
  """The sum of a body and of a shortcut, with a function after it."""

  def __init__(self, body: nn.Module, shortcut: nn.Module, after: nn.Module):
    super().__init__()
    self.body, self.shortcut, self.after = body, shortcut, after

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.after(self.shortcut(x) + self.body(x))


def _mobilenet_v1() -> nn.Module:
  layers, channels = [_conv(3, 32, 3, 2)], 32
  for out, stride in _V1_BLOCKS:
    layers += [_conv(channels, channels, 3, stride, groups=channels), _conv(channels, out, 1)]
    channels = out
  return nn.Sequential(*layers, *_classifier(channels))


def _mobilenet_v2() -> nn.Module:
  layers, channels = [_conv(3, 32, 3, 2)], 32
  for expansion, out, repeats, first_stride in _V2_STAGES:
    for i in range(repeats):
      hidden, stride = channels * expansion, first_stride if i == 0 else 1
      expand = [_conv(channels, hidden, 1)] if expansion > 1 else []
      depthwise = _conv(hidden, hidden, 3, stride, groups=hidden)
      body = nn.Sequential(*expand, depthwise, _conv(hidden, out, 1, relu=False))
      summed = stride == 1 and channels == out
      layers.append(_Residual(body, nn.Identity(), nn.Identity()) if summed else body)
      channels = out
  return nn.Sequential(*layers, _conv(channels, 1280, 1), *_classifier(1280))


def _resnet18() -> nn.Module:
  layers, channels = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
  for i in range(4):
    for j in range(2):
      out, stride = 64 * 2**i, 2 if i > 0 and j == 0 else 1
      shortcut = nn.Identity() if stride == 1 and channels == out else _conv(channels, out, 1, stride, relu=False)
      body = nn.Sequential(_conv(channels, out, 3, stride), _conv(out, out, 3, relu=False))
      layers.append(_Residual(body, shortcut, nn.ReLU(inplace=True)))
      channels = out
  return nn.Sequential(*layers, *_classifier(channels))


_NETWORKS = {'mobilenet_v1': _mobilenet_v1, 'mobilenet_v2': _mobilenet_v2, 'resnet18': _resnet18}


def names() -> tuple[str, ...]:
  """The networks that there are."""
  return tuple(_NETWORKS)


def device(platform: str) -> str | None:
  """PyTorch's device for a platform of JAX; `None` where there is none."""
  return {'cpu': 'cpu', 'gpu': 'cuda' if torch.cuda.is_available() else None}.get(platform)


def version() -> str:
  """PyTorch's version."""
  return torch.__version__


def make_run(
  name: str, *, batch: int, image_size: int, dtype: str, platform: str, channels_last: bool
) -> Callable[[int], float]:
  """A function that makes so many training steps, waits for them and returns the last loss.

  SGD with Nesterov's momentum on random images. With bfloat16 the network runs under PyTorch's automatic mixed
  precision; float32 products may be TensorFloat-32 on a GPU, as JAX's are.
  """
  where, layout = device(platform), torch.channels_last if channels_last else torch.contiguous_format
  if where == 'cuda':
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
  network = _NETWORKS[name]().to(where, memory_format=layout)
  images = (255 * torch.rand(batch, 3, image_size, image_size)).to(where, memory_format=layout)
  labels = torch.arange(batch, device=where) % 1000
  optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, nesterov=True)

  def run(steps: int) -> float:
    for _ in range(steps):
      optimizer.zero_grad()
      with torch.autocast(where, torch.bfloat16, enabled=dtype == 'bfloat16'):
        loss = nn.functional.cross_entropy(network(images), labels)
      loss.backward()
      optimizer.step()
    if where == 'cuda':
      torch.cuda.synchronize()
    return float(loss.detach())

  return run
