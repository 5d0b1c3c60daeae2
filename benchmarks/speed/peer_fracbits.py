"""Steps of this project's own network, in float and quantized."""

import flax
import jax

import fracbits_jax
from benchmarks.speed import speed
from benchmarks.speed.peers_measure import Step

METHODS = {
  'float': 'this project',
  'layer': 'this project, search by layer',
  'finetune': 'this project, finetuning',
}


def versions() -> dict[str, str]:
  return {'fracbits_jax': fracbits_jax.__version__, 'flax': flax.__version__, 'jax': jax.__version__}


def make(method: str, batch: int) -> Step:
  setting = speed.Setting(network='tiny_resnet8', batch=batch, image_size=32, dtype='float32', num_classes=10)
  step = speed.make_step(method, setting)
  return Step(run=step.run, facts={'temp_bytes': step.facts['temp_bytes']})
