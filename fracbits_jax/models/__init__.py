"""Networks by name; each definition serves the float network (`quant=None`) and the quantized one."""

import functools
from collections.abc import Callable

from flax import linen as nn

from fracbits_jax.layers import QuantConfig
from fracbits_jax.models.autoencoder import Autoencoder
from fracbits_jax.models.denoiser import Denoiser
from fracbits_jax.models.ds_cnn import DSCNN
from fracbits_jax.models.efficientnet_lite import EfficientNetLite
from fracbits_jax.models.gpt import GPT
from fracbits_jax.models.mobilenet_v1 import MobileNetV1
from fracbits_jax.models.mobilenet_v2 import MobileNetV2
from fracbits_jax.models.resnet import CifarResNet, ResNet
from fracbits_jax.models.vit import VisionTransformer


def _tiny_mobilenet(width: float = 1.0, **kwargs) -> nn.Module:
  return MobileNetV1(width=0.25 * width, **kwargs)


_MODELS: dict[str, Callable[..., nn.Module]] = {
  'mobilenet_v1': MobileNetV1,
  'mobilenet_v2': MobileNetV2,
  'efficientnet_lite0': EfficientNetLite,
  'resnet18': functools.partial(ResNet, stages=(2, 2, 2, 2)),
  'resnet34': functools.partial(ResNet, stages=(3, 4, 6, 3)),
  'resnet50': functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True),
  'preact_resnet18': functools.partial(ResNet, stages=(2, 2, 2, 2), preact=True),
  'preact_resnet34': functools.partial(ResNet, stages=(3, 4, 6, 3), preact=True),
  'preact_resnet50': functools.partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True, preact=True),
  'resnet8': functools.partial(CifarResNet, blocks=1),
  'resnet20': functools.partial(CifarResNet, blocks=3),
  'resnet56': functools.partial(CifarResNet, blocks=9),
  'resnet110': functools.partial(CifarResNet, blocks=18),
  'vit_small': functools.partial(VisionTransformer, dim=384, depth=12),
  'vit_tiny': functools.partial(VisionTransformer, dim=192, depth=12),
  'vit_mini': functools.partial(VisionTransformer, dim=64, depth=4, head_dim=16),
  # Decoders of about 1, 6, 25 and 85 million parameters, and what the vocabulary adds.
  'gpt_mini': functools.partial(GPT, dim=128, depth=4, head_dim=32),
  'gpt_small': functools.partial(GPT, dim=256, depth=8),
  'gpt_medium': functools.partial(GPT, dim=512, depth=8),
  'gpt_base': functools.partial(GPT, dim=768, depth=12),
  # MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597).
  'tiny_resnet8': functools.partial(CifarResNet, blocks=1, projections=True),
  'tiny_mobilenet': _tiny_mobilenet,
  'ds_cnn': DSCNN,
  'autoencoder': Autoencoder,
  'denoiser': Denoiser,
}


def names() -> tuple[str, ...]:
  """The names that `create` knows."""
  return tuple(_MODELS)


def create(name: str, num_classes: int = 1000, quant: QuantConfig | None = None, **kwargs) -> nn.Module:
  """Returns a network that maps images `[N, H, W, C]`, 0..255 in float, to logits `[N, num_classes]`.

  The images of `ds_cnn` are features over time; `autoencoder` maps vectors to `num_classes` outputs, and `denoiser`
  images to images, 0..1. The decoders `gpt_*` map tokens `[N, T]`, integers, to logits `[N, T, num_classes]` of the
  ones that follow.

  Args:
    name: one of `names()`.
    num_classes: outputs of the classifier.
    quant: how its layers are quantized; `None` gives the float network, whose parameters have the same names. The
      first convolution has an 8-bit kernel and images count as 8-bit inputs, the classifier has an 8-bit kernel.
    **kwargs: `width` (multiplier of all channels), `small_images` (a stem that keeps the resolution),
      `axis_name` (the mapped axis over which batch norm averages its statistics in training), `image_mean` (per
      colour channel in 0..255, subtracted from the images before the stem), `kept` (output channels of compacted
      layers, by name), and `dtype` (of the computation, such as `jnp.bfloat16`: parameters, statistics, the quantizers
      and the gradients of bits stay in float32); MobileNetV2 also takes `relu6`, and a decoder the fields of `gpt.GPT`.

  With the granularity `kernel` and 0 among `quant.choices`, channels that no residual sum ties to others can be pruned.

  Raises:
    ValueError: unknown name, or an argument that the network does not take.
  """
  if name not in _MODELS:
    raise ValueError(f'model {name!r} is unknown: choose one of {", ".join(names())}')
  try:
    return _MODELS[name](num_classes=num_classes, quant=quant, **kwargs)
  except TypeError as error:
    raise ValueError(f'model {name!r} does not take these arguments: {error}') from None
